"""Choose parameters on two years, trade the next half year with them, go on: what a sweep is worth.

Shows     walk-forward windows, what was chosen in each, and the back-test that they make together
Needs     the extra [plot], and a broker to ask: keys for Alpaca, a network for Yahoo, or the sandbox
Run       MARKETDATA_BROKER=sandbox MARKETDATA_HOME=./try-marketdata \
          MARKETDATA_CLOCK=2024-06-20T15:00:30-04:00 python examples/walk_forward.py
Prints    (with that run line; the prices are SIMULATED)

           test_start   test_end  length   low  high  sharpe_in  sharpe_out
    window
    0      2021-01-04 2021-07-01       8 35.00 65.00       1.43         NaN
    1      2021-07-02 2021-12-31       8 40.00 75.00       1.48         NaN
    2      2022-01-03 2022-07-01       8 40.00 75.00       1.19        3.22
    3      2022-07-05 2022-12-30       8 40.00 75.00       1.56        0.74
    4      2023-01-03 2023-06-30       8 40.00 75.00       1.58       -1.28
    5      2023-07-03 2023-12-29       8 35.00 75.00       1.58        1.67
    6      2024-01-02 2024-05-31       8 35.00 75.00       1.75         NaN
    315 runs to choose from; chosen ones, one after the other: +28.65%, Sharpe 0.85
    holding the share: +28.76%
    wrote ko-walk-forward.html, SIMULATED prices
"""

from algorithms import walk_forward
from algorithms.library import RsiReversion

COLUMNS = ["test_start", "test_end", "length", "low", "high", "sharpe_in", "sharpe_out"]


def main() -> None:
    forward = walk_forward(
        RsiReversion(symbols=["KO"], trend_length=50),
        {"length": [3, 5, 8], "low": range(20, 45, 5), "high": [55, 65, 75]},
        train="2y",
        test="6mo",
        start="2019-01-01",
        end="2024-06-01",
    )
    print(forward.windows[COLUMNS].to_string(float_format="{:.2f}".format))
    figures = forward.metrics
    print(f"{forward.tried} runs to choose from; chosen ones, one after the other: ", end="")
    print(f"{figures['return']:+.2%}, Sharpe {figures['sharpe']:.2f}")
    print(f"holding the share: {forward.result.benchmark['return']:+.2%}")
    forward.plot(path="ko-walk-forward.html")
    simulated = forward.result.run.simulated
    print("wrote ko-walk-forward.html" + (", SIMULATED prices" if simulated else ""))


if __name__ == "__main__":
    main()
