"""A venue on a market that the test moves, for the tests of contracts, integration and faults."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from algorithms.orders import Order, OrderState
from algorithms.venues.alpaca_paper import AlpacaPaper
from marketdata.clock import FixedClock, to_micros
from marketdata.sandbox import Sandbox
from marketdata.sandbox.trading import Desk

AFTERNOON = "2024-03-14T15:00:30-04:00"
"""A Thursday in session."""
EVENING = "2024-03-14T18:00:00-04:00"
KEY, SECRET = "PK-TEST-KEY", "a-secret-nobody-may-see"


class PaperMarket:
    """A sandbox, its clock, and a venue on it."""

    def __init__(self, sandbox: Sandbox, clock: FixedClock, **options: Any) -> None:
        self.sandbox = sandbox
        self.clock = clock
        self.options = {"timeout": 5.0, **options}
        self.venue = self.restarted()

    def restarted(self, **options: Any) -> AlpacaPaper:
        """Return a venue of a process that knows nothing of the one before."""
        return AlpacaPaper(KEY, SECRET, url=self.sandbox.url, **{**self.options, **options})

    @property
    def desk(self) -> Desk:
        """The account, seen from behind."""
        return self.sandbox.trading.desk(KEY)

    @property
    def now(self) -> int:
        return self.clock.now_us()

    def price(self, symbol: str) -> float:
        last = self.desk.tape.last(symbol)
        assert last is not None
        return float(last)

    def at(self, moment: str) -> None:
        self.clock.set(datetime.fromisoformat(moment))

    def pass_time(self, **delta: float) -> None:
        """Move the clock, and let the account live through it: months take longer than a request
        may on a busy machine."""
        self.clock.advance(**delta)
        self.desk.catch_up()

    def asked(self, method: str, path: str) -> int:
        """Return how many requests of a method and path have come."""
        log = self.sandbox.requests
        return sum(r.method == method for r in log.matching(path) if r.path == path)


@contextmanager
def paper_market(moment: str = AFTERNOON, **options: Any) -> Iterator[PaperMarket]:
    clock = FixedClock(datetime.fromisoformat(moment))
    with Sandbox(clock=clock) as sandbox:
        market = PaperMarket(sandbox, clock, **options)
        yield market
        market.venue.close()


def micros(text: str) -> int:
    return to_micros(datetime.fromisoformat(text))


def bracket(
    entry: Order, *, take_profit: float | None = None, stop_loss: float | None = None
) -> list[Order]:
    """Return the exits of an entry as the engine makes them."""
    exits = [
        Order(
            f"{entry.id}.{n}",
            entry.symbol,
            -entry.quantity,
            limit,
            stop,
            created=entry.created,
            parent=entry.id,
            state=OrderState.HELD,
        )
        for n, (limit, stop) in enumerate([(None, stop_loss), (take_profit, None)], 1)
        if (limit, stop) != (None, None)
    ]
    if len(exits) == 2:
        exits[0].twin, exits[1].twin = exits[1].id, exits[0].id
    return exits
