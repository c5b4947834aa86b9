"""Trade the spread of two symbols, long one and short the other, and see what each side earned.

Shows     two symbols in one strategy, a hedge ratio from the past only, long and short together
Needs     marketdata with a broker to ask: keys for Alpaca, a network for Yahoo, or the sandbox
Run       MARKETDATA_BROKER=sandbox MARKETDATA_HOME=./try-marketdata \
          MARKETDATA_CLOCK=2024-06-20T15:00:30-04:00 python examples/pair.py
Prints    (with that run line; the prices are SIMULATED)

                  count      sum
    symbol side
    KO     long       6   165.77
           short      9  6924.93
    PEP    long       9  1737.64
           short      6 -3756.96
    return +5.07%, beta to holding both +0.01
    net exposure between -32% and +31% of equity
    SIMULATED prices
"""

from algorithms import backtest
from algorithms.library import Pair


def main() -> None:
    result = backtest(Pair(symbols=["KO", "PEP"], entry=1.8), start="2021-01-01", end="2024-06-01")
    trades = result.trades
    trades["side"] = trades["quantity"].gt(0).map({True: "long", False: "short"})
    print(trades.groupby(["symbol", "side"])["pnl"].agg(["count", "sum"]).round(2).to_string())
    figures = result.metrics
    net = (result.positions * result.closes).sum(axis=1) / result.equity
    print(f"return {figures['return']:+.2%}, beta to holding both {figures['beta']:+.2f}")
    print(f"net exposure between {net.min():+.0%} and {net.max():+.0%} of equity")
    if result.run.simulated:
        print("SIMULATED prices")


if __name__ == "__main__":
    main()
