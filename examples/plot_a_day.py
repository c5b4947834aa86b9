"""Draw the minutes of the newest session, before and after hours included, into an HTML page.

Shows     session="extended", tz="exchange", md.plot
Needs     the extra [plot], and a broker to ask: keys for Alpaca, a network for Yahoo, or the sandbox
Run       MARKETDATA_BROKER=sandbox MARKETDATA_HOME=./try-marketdata \
          MARKETDATA_CLOCK=2024-06-20T15:00:30-04:00 python examples/plot_a_day.py
Prints    (with that run line; the prices are SIMULATED)

    628 bars from 04:07 to 14:59 New York time
    open AAPL-day.html in a browser; it needs no network
    SIMULATED prices
"""

import marketdata as md

PAGE = "AAPL-day.html"


def main() -> None:
    bars = md.get_bars("AAPL", "1min", period="1d", session="extended", tz="exchange")
    if bars.empty:
        print("no bars yet: the session has not begun")
        return
    first, last = bars.index[0], bars.index[-1]
    md.plot(bars, title=f"AAPL, {last:%a %d %b %Y}", path=PAGE)
    print(f"{len(bars)} bars from {first:%H:%M} to {last:%H:%M} New York time")
    print(f"open {PAGE} in a browser; it needs no network")
    if bars.attrs["marketdata"]["simulated"]:
        print("SIMULATED prices")


if __name__ == "__main__":
    main()
