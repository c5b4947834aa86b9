"""Read the last 500 minutes of one stock twice, and see which tier answered.

Shows     one call, the frame it returns, and where the bars came from
Needs     marketdata with a broker to ask: keys for Alpaca, a network for Yahoo, or the sandbox
Run       MARKETDATA_BROKER=sandbox MARKETDATA_HOME=./try-marketdata \
          MARKETDATA_CLOCK=2024-06-20T15:00:30-04:00 python examples/first_read.py
Prints    (with that run line, the first time; the prices are SIMULATED)

    500 bars of AAPL, 2024-06-18 13:10 to 2024-06-20 14:59 in New York
                                 open    high     low   close    volume
    timestamp
    2024-06-20 14:57:00-04:00  103.08  103.15  103.02  103.13  424211.0
    2024-06-20 14:58:00-04:00  103.13  103.19  103.08  103.16  379320.0
    2024-06-20 14:59:00-04:00  103.17  103.19  103.10  103.15   84835.0
    first read:  broker:1, broker pages: 1
    second read: redis:1, broker pages: 0
    SIMULATED prices
"""

import marketdata as md


def main() -> None:
    bars = md.get_bars("AAPL", "1min", limit=500, tz="exchange")
    if bars.empty:
        print("no bars: the broker answered, and there were none")
        return
    first, last = bars.index[0], bars.index[-1]
    print(f"{len(bars)} bars of AAPL, {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} in New York")
    print(bars[["open", "high", "low", "close", "volume"]].tail(3))

    again = md.get_bars("AAPL", "1min", limit=500, tz="exchange")
    for name, frame in (("first read: ", bars), ("second read:", again)):
        facts = frame.attrs["marketdata"]
        print(f"{name} {facts['tiers']}, broker pages: {facts['broker_pages']}")
    if bars.attrs["marketdata"]["simulated"]:
        print("SIMULATED prices")


if __name__ == "__main__":
    main()
