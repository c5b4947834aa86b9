"""Hold the ten strongest of fifty companies, rebalanced monthly, through splits and dividends.

Shows     fifty symbols, returns by month, and the corporate actions that were booked
Needs     marketdata with a broker to ask: keys for Alpaca, a network for Yahoo, or the sandbox
Run       MARKETDATA_BROKER=sandbox MARKETDATA_HOME=./try-marketdata \
          MARKETDATA_CLOCK=2024-06-20T15:00:30-04:00 python examples/monthly_momentum.py
Prints    (with that run line; the prices are SIMULATED)

    month  Jan  Feb   Mar  Apr  May  Jun  Jul  Aug  Sep  Oct  Nov  Dec
    year
    2022   0.7 -7.9  -4.9 -2.5  0.4 -2.0  6.2 -5.7 -0.3  5.1  1.8 -2.8
    2023  -2.7 -1.2  13.7 -0.2 -6.6  3.4  1.8 -3.4  6.4 -3.2  1.6  5.8
    2024  -1.6 -0.2  -1.5  9.1  4.6  NaN  NaN  NaN  NaN  NaN  NaN  NaN
    booked: 4 splits, 2,616.84 of dividends
    return +11.33% against +21.69% of holding all fifty; turnover 3.8 a year
    SIMULATED prices
"""

from algorithms import backtest
from algorithms.library import MonthlyMomentum


def main() -> None:
    result = backtest(MonthlyMomentum(top=10), start="2022-01-01", end="2024-06-01")
    print(result.monthly_returns.mul(100).round(1).to_string())
    kinds = result.actions["kind"].value_counts()
    figures = result.metrics
    print(f"booked: {kinds['split']} splits, {figures['dividends']:,.2f} of dividends")
    print(
        f"return {figures['return']:+.2%} against {figures['buy_and_hold_return']:+.2%} of holding "
        f"all fifty; turnover {figures['turnover']:.1f} a year"
    )
    if result.run.simulated:
        print("SIMULATED prices")


if __name__ == "__main__":
    main()
