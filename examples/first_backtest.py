"""Write a strategy, run it over two years, and look at the picture: README's first back-test.

Shows     a strategy of one's own in a dozen lines, all its figures, its picture
Needs     the extra [plot], and a broker to ask: keys for Alpaca, a network for Yahoo, or the sandbox
Run       MARKETDATA_BROKER=sandbox MARKETDATA_HOME=./try-marketdata \
          MARKETDATA_CLOCK=2024-06-20T15:00:30-04:00 python examples/first_backtest.py
Prints    (with that run line; the prices are SIMULATED)

    SIMULATED prices: not a market's
    SmaCross (short=20, long=50) on AAPL, 1day bars
    2022-06-21 to 2024-06-18, 502 moments

                           strategy  buy and hold
    Return                 +23.26 %      +47.70 %   Trades                         6
    CAGR                   +11.06 %      +21.62 %   Still open                     1
    Volatility              26.60 %       33.51 %   Hit rate                 16.67 %
    Sharpe ratio               0.53          0.75   Profit factor               1.53
    Sortino ratio              0.81                 Expectancy a trade      3,137.68
    Calmar ratio               0.25                 Average win            54,475.23
    Max drawdown           -44.18 %      -48.04 %   Average loss           -7,129.83
    Longest drawdown       635 days                 Average trade            +7.19 %
    Average drawdown       -10.07 %                 Best trade              +85.20 %
    Time in the market      60.76 %                 Worst trade             -12.77 %
    Average exposure        60.38 %                 Average holding          73 days
    Turnover a year            3.32                 SQN                         0.30
    Alpha                   -1.84 %                 Fees                        0.00
    Beta                       0.63                 Dividends                 645.61
    Correlation                0.79                 Final equity          123,257.35

    502 bars; data 16b54f9cde59f1d1b7407bee
"""

from algorithms import Algorithm, Param, backtest, crossed_above, crossed_below


class SmaCross(Algorithm):
    symbols = ["AAPL"]
    indicators = {"fast": "sma_{short}", "slow": "sma_{long}"}
    short, long = Param(20, low=2), Param(50, low=3)

    def on_bar(self, ctx):
        if crossed_above(ctx.fast, ctx.slow):
            ctx.order_target_percent(1.0)
        elif crossed_below(ctx.fast, ctx.slow):
            ctx.close_position()


if __name__ == "__main__":
    result = backtest(SmaCross, start="2022-06-20", end="2024-06-20", cash=100_000)
    print(result)
    result.plot(path="first-backtest.html")
