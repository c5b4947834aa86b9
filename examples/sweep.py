"""Try many parameters, draw them as a heat-map, and ask whether the best is more than luck.

Shows     a grid with a condition, all cores, the deflated Sharpe ratio, a sweep that goes on later
Needs     the extra [plot], and a broker to ask: keys for Alpaca, a network for Yahoo, or the sandbox
Run       MARKETDATA_BROKER=sandbox MARKETDATA_HOME=./try-marketdata \
          MARKETDATA_CLOCK=2024-06-20T15:00:30-04:00 python examples/sweep.py
Prints    (with that run line, the first time; the prices are SIMULATED)

     fast  slow  sharpe  deflated_sharpe  return  trades
        4    30   0.503            0.231   0.574    28.0
       16    20   0.484            0.216   0.523    44.0
       12    30   0.391            0.159   0.380    23.0
        8    20   0.348            0.136   0.313    37.0
        8    30   0.327            0.126   0.284    26.0
    130 points tried, 0 of them earlier
    the best is what luck looks like: 0.23
    holding the share: Sharpe 0.185
    wrote msft-sweep.html, SIMULATED prices
"""

from algorithms import sweep
from algorithms.library import SmaCross

GRID = {"fast": range(4, 44, 4), "slow": range(20, 160, 10)}
COLUMNS = ["fast", "slow", "sharpe", "deflated_sharpe", "return", "trades"]


def main() -> None:
    found = sweep(
        SmaCross(symbols=["MSFT"]),
        GRID,
        start="2019-01-01",
        end="2024-06-01",
        where=lambda point: point.fast < point.slow,
        store="msft-sweep.jsonl",  # what is done is kept: a second run, or a larger grid, goes on
    )
    best = found.frame.sort_values("sharpe", ascending=False).head(5)
    print(best[COLUMNS].round(3).to_string(index=False))
    print(f"{found.tried} points tried, {found.resumed} of them earlier")
    chance = found.best()["deflated_sharpe"]
    print(
        f"the best is {'more than luck' if chance > 0.95 else 'what luck looks like'}: {chance:.2f}"
    )
    held = found.backtest().benchmark["sharpe"]
    print(f"holding the share: Sharpe {held:.3f}")
    found.heatmap(path="msft-sweep.html")
    print("wrote msft-sweep.html" + (", SIMULATED prices" if found.simulated else ""))


if __name__ == "__main__":
    main()
