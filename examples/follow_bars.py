"""Wait for each minute to close, as a trading loop of your own does, here on a replayed clock.

Shows     md.follow: each newly closed bar once, in order; where to go on after a restart
Needs     marketdata; it brings its own market (the sandbox), on a clock that runs 120 times as fast
Run       MARKETDATA_HOME=./try-marketdata python examples/follow_bars.py
          (the replay begins at 2024-06-20T15:00:30-04:00; leave out clock= and broker= for your own)
Prints    (it takes a few seconds; the prices are SIMULATED)

    14:58  AAPL  103.16  MSFT  210.86
    14:59  AAPL  103.15  MSFT  210.74
    15:00  AAPL  103.22  MSFT  210.69
    15:01  AAPL  103.28  MSFT  210.70
    15:02  AAPL  103.20  MSFT  210.50
    15:03  AAPL  103.15  MSFT  210.30
    15:04  AAPL  103.09  MSFT  210.07
    to go on after a restart: start="2024-06-20T15:04:00.000001-04:00"
    SIMULATED prices
"""

import pandas as pd

import marketdata as md

SYMBOLS = ["AAPL", "MSFT"]
BEGIN = "2024-06-20T15:00:30-04:00"
LAST = pd.Timestamp("2024-06-20T15:04-04:00")


def main() -> None:
    with (
        md.connect(broker="sandbox", clock=f"replay:{BEGIN}@120") as data,
        # Without start= the first bar is the next one to close.
        data.follow(SYMBOLS, "1min", start="2024-06-20T14:58-04:00", tz="exchange") as closed,
    ):
        for bars in closed:
            minute = bars.index[0][1]
            prices = "  ".join(f"{s}  {bars.loc[(s, minute), 'close']:.2f}" for s in SYMBOLS)
            print(f"{minute:%H:%M}  {prices}")
            if minute == LAST:
                break
    go_on = minute + pd.Timedelta(1, "us")
    print(f'to go on after a restart: start="{go_on.isoformat()}"')
    if bars.attrs["marketdata"]["simulated"]:
        print("SIMULATED prices")


if __name__ == "__main__":
    main()
