"""Run a strategy live with paper money, here on a replayed clock, and compare with a back-test.

Shows     the process behind `marketdata algo run`: orders and fills stored in PostgreSQL as they happen
Needs     marketdata; it brings its own market (the sandbox), on a clock that runs 240 times as fast
Run       MARKETDATA_HOME=./try-marketdata python examples/live_paper.py
          (the replay begins at 2024-06-20T15:00:30-04:00; leave out clock= and broker= for your own)
Prints    (it takes some ten seconds; the prices are SIMULATED)

    stopped after 4 fills of AAPL
    a back-test of the same minutes has the same fills: True
    SIMULATED prices
"""

import threading
import time
from contextlib import closing

import pandas as pd

import marketdata as md
from algorithms import Algorithm, Context, NoSlippage, backtest
from algorithms.blotter import Costs
from algorithms.live.journal import Journal
from algorithms.live.runner import LiveRunner
from algorithms.live.sources import registration_of

BEGIN = "2024-06-20T15:00:30-04:00"


class Above(Algorithm):
    """Holds a hundred shares while the price is above its average of five minutes."""

    symbols = ["AAPL"]
    timeframe = "1min"
    session = "extended"  # the replay may well come to the close while the servers start
    indicators = {"average": "sma_5"}

    def on_bar(self, ctx: Context) -> None:
        ctx.order_target(100 if ctx.close[-1] > ctx.average[-1] else 0)


def main() -> None:
    with md.connect(broker="sandbox", clock=f"replay:{BEGIN}@240") as data:
        database = data.database()
        with closing(Journal(database.url, database.schema)) as journal:
            wanted = registration_of(
                Above(), f"{__file__}:Above", costs=Costs(slippage=NoSlippage())
            )
            journal.register(wanted, fresh=True)
            runner = LiveRunner(data, journal, names=["Above"])
            life = threading.Thread(target=runner.run)
            life.start()
            while len(journal.fills("Above")) < 4 and life.is_alive():
                time.sleep(0.05)
            runner.stop()
            life.join()
            rows = journal.fills("Above")
        live = [(symbol, quantity, price) for _, _, symbol, _, quantity, price, *_ in rows]
        # The bar that the first order was decided on came before the one it was filled in.
        first = pd.Timestamp(rows[0][3]) - pd.Timedelta("1min")
        result = backtest(Above, start=first, client=data, slippage=NoSlippage())
    print(f"stopped after {len(live[:4])} fills of", *{symbol for symbol, *_ in live})
    tested = [(f.symbol, f.quantity, f.price) for f in result.run.fills[: len(live)]]
    print("a back-test of the same minutes has the same fills:", tested == live)
    if result.run.simulated:
        print("SIMULATED prices")


if __name__ == "__main__":
    main()
