"""What a holding returned, with and without its dividends, and what a reader knew at the time.

Shows     adjusted prices, the corporate actions behind them, and the same question asked of the past
Needs     marketdata with a broker to ask: keys for Alpaca, a network for Yahoo, or the sandbox
Run       MARKETDATA_BROKER=sandbox MARKETDATA_HOME=./try-marketdata \
          MARKETDATA_CLOCK=2024-06-20T15:00:30-04:00 python examples/true_prices.py
Prints    (with that run line; the prices are SIMULATED)

    return of the year, %
      raw    {'AAPL': 92.28, 'KO': 15.88, 'NVDA': -81.34}
      split  {'AAPL': 92.28, 'KO': 15.88, 'NVDA': 86.64}
      all    {'AAPL': 93.23, 'KO': 19.41, 'NVDA': 86.83}
      as a reader of the evening before NVDA's split saw it
      all    {'AAPL': 82.35, 'KO': 20.33, 'NVDA': 86.85}
    symbol          kind    ex_date  new  old  cash
      NVDA cash_dividend 2024-06-06  NaN  NaN  0.60
      NVDA         split 2024-06-10 10.0  1.0   NaN
        KO cash_dividend 2024-06-17  NaN  NaN  0.37
      AAPL cash_dividend 2024-06-18  NaN  NaN  0.13
"""

import warnings
from typing import Any

import marketdata as md

SYMBOLS = ["AAPL", "KO", "NVDA"]


def returned(adjustment: Any, **query: Any) -> dict[Any, float]:
    close = md.get_bars(
        SYMBOLS,
        adjustment=adjustment,
        field="close",
        start="2023-06-20",
        end="2024-06-20",
        tz=None,
        **query,
    )
    return (100 * (close.iloc[-1] / close.iloc[0] - 1)).round(2).to_dict()


def main() -> None:
    warnings.simplefilter("ignore", md.SplitInRangeWarning)  # the raw column shows just that
    print("return of the year, %")
    for name in ("raw", "split", "all"):
        print(f"  {name:<6}", returned(name))
    print("  as a reader of the evening before NVDA's split saw it")
    print(f"  {'all':<6}", returned("all", as_of="2024-06-07T20:00:00-04:00"))
    actions = md.get_actions(SYMBOLS, start="2024-04-01", end="2024-06-20")
    print(actions[["symbol", "kind", "ex_date", "new", "old", "cash"]].to_string(index=False))


if __name__ == "__main__":
    main()
