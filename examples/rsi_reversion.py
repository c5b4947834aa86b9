"""Buy dips in a rising market with a stop-loss, and see which of the two orders ended each trade.

Shows     a bracket order, tags, and the table of trades
Needs     marketdata with a broker to ask: keys for Alpaca, a network for Yahoo, or the sandbox
Run       MARKETDATA_BROKER=sandbox MARKETDATA_HOME=./try-marketdata \
          MARKETDATA_CLOCK=2024-06-20T15:00:30-04:00 python examples/rsi_reversion.py
Prints    (with that run line; the prices are SIMULATED)

    entry_time  exit_time  quantity  entry_price  exit_price      pnl  exit_tag
    2021-03-12 2021-03-16    2243.0        42.32       40.64 -3099.59 stop-loss
    2021-05-07 2021-05-24    2050.0        44.68       46.00  2687.41   rebound
    2021-05-25 2021-06-08    2119.0        44.61       42.85 -3738.65 stop-loss
    2021-12-20 2021-12-22    2245.0        40.43       41.45  2271.52   rebound
    2022-01-04 2022-01-27    2281.0        40.83       41.29  1030.53   rebound
    2022-02-11 2022-03-07    2257.0        41.54       40.05 -3378.64 stop-loss
    2022-04-01 2022-05-02    2117.0        43.24       43.02  -484.00   rebound
    2022-06-16 2022-06-29    2009.0        45.00       47.05  4099.96   rebound
    2022-07-26 2022-08-04    1962.0        47.76       50.46  5297.75   rebound
    2022-08-11 2022-09-02    2042.0        48.71       48.79   143.45   rebound
    2022-09-19 2022-09-28    2071.0        48.14       48.92  1595.28   rebound
    2022-10-04 2022-10-10    2108.0        47.76       46.04 -3642.16 stop-loss
    2023-02-13 2023-02-16    2049.0        47.49       48.92  2910.32   rebound
    2023-02-28 2023-03-24    2104.0        47.88       45.80 -3656.26 stop-loss
    2023-10-09 2023-10-24    2158.0        44.96       45.85  1901.02   rebound
    2023-11-21 2023-12-08    2107.0        47.19       47.44   506.81   rebound
    2023-12-13 2023-12-27    2138.0        46.38       46.84  1711.85   rebound
    2024-01-29 2024-01-30    2101.0        47.88       49.17  2689.90   rebound
    2024-02-21 2024-03-06    2142.0        48.29       48.09  -449.04   rebound
    2024-04-02 2024-04-16    2098.0        49.21       51.21  4195.91   rebound
    2024-05-02 2024-05-17    2101.0        51.01       51.33   692.84   rebound
    2024-05-29        NaT    2136.0        50.45       49.56 -1890.45
    21 trades, 67% won, +11.40% in all
    SIMULATED prices
"""

from algorithms import backtest
from algorithms.library import RsiReversion

COLUMNS = ["entry_time", "exit_time", "quantity", "entry_price", "exit_price", "pnl", "exit_tag"]


def main() -> None:
    result = backtest(RsiReversion(symbols=["KO"], stop=0.04), start="2021-01-01", end="2024-06-01")
    trades = result.trades[COLUMNS].copy()
    for name in ("entry_time", "exit_time"):
        trades[name] = trades[name].dt.tz_convert("America/New_York").dt.date
    # The stop-loss carries the tag of its entry; the other exit is the strategy's own order.
    trades["exit_tag"] = trades["exit_tag"].replace("dip", "stop-loss")
    print(trades.round(2).to_string(index=False))
    won = result.metrics
    print(f"{won['trades']:.0f} trades, {won['hit_rate']:.0%} won, {won['return']:+.2%} in all")
    if result.run.simulated:
        print("SIMULATED prices")


if __name__ == "__main__":
    main()
