"""Rank a small universe by RSI, and see which of it trades above its 50-day average.

Shows     indicators of many symbols beside their bars; the history they need is read by itself
Needs     marketdata with a broker to ask: keys for Alpaca, a network for Yahoo, or the sandbox
Run       MARKETDATA_BROKER=sandbox MARKETDATA_HOME=./try-marketdata \
          MARKETDATA_CLOCK=2024-06-20T15:00:30-04:00 python examples/indicators.py
Prints    (with that run line; the prices are SIMULATED)

              close  rsi_14  above sma_50  atr %
    symbol
    XOM       71.75   34.47         False   2.48
    MSFT     213.82   37.22         False   2.61
    AMD       81.60   39.87         False   7.52
    KO        49.11   42.65         False   1.88
    COST    1026.78   49.65          True   2.31
    NVDA     238.58   58.67          True   4.73
    TSLA     621.75   63.39          True   5.90
    AAPL     103.58   68.10          True   3.09
"""

import marketdata as md

UNIVERSE = ["AAPL", "AMD", "COST", "KO", "MSFT", "NVDA", "TSLA", "XOM"]


def main() -> None:
    newest = md.get_indicators(UNIVERSE, ["rsi_14", "sma_50", "atr_14"], limit=1, bars=True)
    newest = newest.droplevel("timestamp")
    newest["above sma_50"] = newest["close"] > newest["sma_50"]
    newest["atr %"] = 100 * newest["atr_14"] / newest["close"]
    columns = ["close", "rsi_14", "above sma_50", "atr %"]
    print(newest[columns].sort_values("rsi_14").round(2))


if __name__ == "__main__":
    main()
