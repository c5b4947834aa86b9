"""Trade breakouts on hourly bars, with a stop that is trailed along the middle band.

Shows     hourly bars, stop orders that move, an order that may not exceed a share of a bar's volume
Needs     marketdata with a broker to ask: keys for Alpaca, a network for Yahoo, or the sandbox
Run       MARKETDATA_BROKER=sandbox MARKETDATA_HOME=./try-marketdata \
          MARKETDATA_CLOCK=2024-06-20T15:00:30-04:00 python examples/bollinger_breakout.py
Prints    (with that run line; the prices are SIMULATED)

                   count     mean      sum
    exit_tag
    trailing stop      7  4545.44  31818.1
    state
    canceled    181
    filled       14
    735 hourly bars: +31.82%, in the market 25% of the time
    SIMULATED prices
"""

from algorithms import VolumeShare, backtest
from algorithms.library import BollingerBreakout


def main() -> None:
    strategy = BollingerBreakout(symbols=["TSLA"], timeframe="1hour", length=30)
    result = backtest(
        strategy, start="2024-01-01", end="2024-06-01", slippage=VolumeShare(limit=0.025)
    )
    ended = result.trades.groupby("exit_tag")["pnl"].agg(["count", "mean", "sum"])
    print(ended.round(2).to_string())
    print(result.orders["state"].value_counts().to_string())
    figures = result.metrics
    print(
        f"{result.run.bars} hourly bars: {figures['return']:+.2%}, "
        f"in the market {figures['exposure']:.0%} of the time"
    )
    if result.run.simulated:
        print("SIMULATED prices")


if __name__ == "__main__":
    main()
