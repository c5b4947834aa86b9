"""Back-test two moving averages against buying and holding, and draw what happened.

Shows     a first back-test: one strategy of the catalogue, its figures, its picture
Needs     marketdata with a broker to ask: keys for Alpaca, a network for Yahoo, or the sandbox
Run       MARKETDATA_BROKER=sandbox MARKETDATA_HOME=./try-marketdata \
          MARKETDATA_CLOCK=2024-06-20T15:00:30-04:00 python examples/sma_cross.py
Prints    (with that run line; the prices are SIMULATED)

    return               0.4754
    cagr                 0.1211
    sharpe               0.5761
    max_drawdown        -0.5226
    trades               8.0000
    hit_rate             0.1250
    final_equity    147543.7018

    return          0.6565
    sharpe          0.6153
    max_drawdown   -0.5665
    wrote AAPL-sma-cross.html, SIMULATED prices
"""

from algorithms import backtest
from algorithms.library import SmaCross

FIGURES = ["return", "cagr", "sharpe", "max_drawdown", "trades", "hit_rate", "final_equity"]


def main() -> None:
    result = backtest(
        SmaCross(symbols=["AAPL"], fast=20, slow=50), start="2021-01-01", end="2024-06-01"
    )
    print(result.metrics[FIGURES].round(4).to_string())
    print()
    print(result.benchmark[["return", "sharpe", "max_drawdown"]].round(4).to_string())
    result.plot(path="AAPL-sma-cross.html")
    print("wrote AAPL-sma-cross.html" + (", SIMULATED prices" if result.run.simulated else ""))


if __name__ == "__main__":
    main()
