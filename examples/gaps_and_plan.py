"""Ask what a read would cost, fill five sessions, and see that nothing is missing any more.

Shows     md.explain, md.gaps and md.coverage; none of them asks the broker anything
Needs     marketdata with a broker to ask: keys for Alpaca, a network for Yahoo, or the sandbox
Run       MARKETDATA_BROKER=sandbox MARKETDATA_HOME=./try-marketdata \
          MARKETDATA_CLOCK=2024-06-20T15:00:30-04:00 python examples/gaps_and_plan.py
Prints    (with that run line, the first time; the prices are SIMULATED)

    before: 1 broker calls for at most 4,500 bars
        never asked: 2024-06-13T08:00:00+00:00 .. 2024-06-20T19:00:00+00:00
    read 1,890 bars of regular hours; the extended ones are stored as well
    after: 0 broker calls for at most 0 bars
        stored: 2024-06-13T00:00:00+00:00 .. 2024-06-20T19:00:00+00:00
    SIMULATED prices
"""

import marketdata as md

SYMBOL, PERIOD = "KO", "5d"


def report(when: str) -> None:
    plan = md.explain(SYMBOL, "1min", period=PERIOD)
    print(f"{when}: {plan.calls} broker calls for at most {plan.bars:,} bars")
    for gap in md.gaps(SYMBOL, "1min", period=PERIOD):
        print(f"    never asked: {gap}")


def main() -> None:
    report("before")
    bars = md.get_bars(SYMBOL, "1min", period=PERIOD)
    print(f"read {len(bars):,} bars of regular hours; the extended ones are stored as well")
    report("after")
    for interval in md.coverage(SYMBOL, "1min"):
        print(f"    stored: {interval}")
    if bars.attrs["marketdata"]["simulated"]:
        print("SIMULATED prices")


if __name__ == "__main__":
    main()
