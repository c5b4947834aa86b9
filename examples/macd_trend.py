"""Trade MACD with and without short sales, with and without costs, and compare.

Shows     short selling, fees and slippage, results side by side
Needs     marketdata with a broker to ask: keys for Alpaca, a network for Yahoo, or the sandbox
Run       MARKETDATA_BROKER=sandbox MARKETDATA_HOME=./try-marketdata \
          MARKETDATA_CLOCK=2024-06-20T15:00:30-04:00 python examples/macd_trend.py
Prints    (with that run line; the prices are SIMULATED)

                    long  long, costs  both ways  both ways, costs
    metric
    return        -0.209       -0.236     -0.547            -0.577
    sharpe        -0.059       -0.091     -0.311            -0.360
    max_drawdown  -0.543       -0.548     -0.758            -0.766
    trades        29.000       29.000     54.000            54.000
    exposure       0.323        0.323      0.600             0.600
    fees           0.000       58.000      0.000           103.000
    SIMULATED prices
"""

from algorithms import BasisPoints, PerShare, backtest
from algorithms.library import MacdTrend

FIGURES = ["return", "sharpe", "max_drawdown", "trades", "exposure", "fees"]


def main() -> None:
    window = {"start": "2021-01-01", "end": "2024-06-01"}
    costs = {"fees": PerShare(0.005, minimum=1.0), "slippage": BasisPoints(5)}
    runs = {
        "long": backtest(MacdTrend, **window),
        "long, costs": backtest(MacdTrend, **window, **costs),
        "both ways": backtest(MacdTrend(short=True), **window),
        "both ways, costs": backtest(MacdTrend(short=True), **window, **costs),
    }
    first, *others = runs.values()
    table = first.compare(*others).loc[FIGURES]
    table.columns = list(runs)
    print(table.round(3).to_string())
    if first.run.simulated:
        print("SIMULATED prices")


if __name__ == "__main__":
    main()
