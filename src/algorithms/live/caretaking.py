"""Orders at a broker of algorithms that nobody steps any more: stopped, or given up.

What would open a position is taken back; exits that protect one stay. An author's code has no part
in it: a class that only watches stands where the journal left the algorithm, and what the broker
does is booked on it, until both agree.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping

import numpy as np

from algorithms.account import Account
from algorithms.algorithm import Algorithm
from algorithms.engine import Engine
from algorithms.hours import hours_between
from algorithms.live.broker_book import BrokerBook
from algorithms.live.broking import Courier, News
from algorithms.live.hosting import Hosted
from algorithms.live.risk import RiskGuard
from algorithms.live.stepped import Stepped, stepped_of
from algorithms.market import MarketData
from algorithms.series import COLUMNS, Series

log = logging.getLogger("algorithms.live")


class Caretaker:
    """Stands in for one algorithm at a broker.

    Parameters
    ----------
    hosted : Hosted
        With a snapshot in the journal.
    """

    def __init__(self, hosted: Hosted) -> None:
        registration = hosted.claim.record.registration
        cursor, text = hosted.cursor, hosted.snapshot
        assert cursor is not None
        assert text is not None
        told = json.loads(text)
        held = {*told["engine"]["positions"], *(o["symbol"] for o in told["engine"]["orders"])}
        symbols = sorted({*registration.symbols, *held})
        frame = registration.timeframe
        # No price is asked for: orders end, fills are booked, and that is all.
        empty = np.empty(0, np.int64)
        market = MarketData(
            {
                (s, frame): Series(s, frame, empty, empty, np.empty((len(COLUMNS), 0)))
                for s in symbols
            },
            hours_between(cursor, cursor),
        )
        self._guard = RiskGuard()
        self._engine = Engine(
            Algorithm(symbols=symbols, timeframe=frame, name=hosted.name),
            market,
            Account(registration.cash),
            prefix=hosted.prefix,
            matches=False,
        )
        self._engine.begin(cursor, resumed={**told["engine"], "now": cursor})
        self._guard.restore(told["risk"])
        self._book = BrokerBook(cursor)
        if "broker" in told:
            self._book.restore(told["broker"])

    def withdraw(self, reason: str, news: News | None = None, *, flatten: bool = False) -> Stepped:
        """Hear what the broker says, take back what would open a position, and return the whole.

        Parameters
        ----------
        flatten : bool
            Take back the exits too, and close all positions at the market.
        """
        engine = self._engine
        fills = [] if news is None else self._book.hear(engine, news)
        for order in engine.waiting_orders():
            if (order.parent is None and order.tag != "flatten") or flatten:
                engine.cancel(order, reason)
        if flatten:
            for symbol in list(engine.account.positions):
                engine.context.close_position(symbol, tag="flatten")
            engine.blotter.accept(lambda: engine.market.day_end(engine.now), None)
        return stepped_of(engine, self._guard, self._book, fills)

    @property
    def idle(self) -> bool:
        """Whether there is nothing that the broker could do for it."""
        return not self._engine.blotter.waiting and not self._book.unsettled


class Caretaking:
    """The caretakers of a runner's algorithms, and which of these are to leave when they are done."""

    def __init__(self, couriers: Mapping[str, Courier]) -> None:
        self._couriers = couriers
        self._reasons: dict[Hosted, tuple[str, bool]] = {}
        self._caretakers: dict[Hosted, Caretaker] = {}
        self._leaving: set[Hosted] = set()

    def begin(self, hosted: Hosted, reason: str, *, leave: bool, flatten: bool = False) -> bool:
        """Look after an algorithm's orders from its next step on.

        Parameters
        ----------
        leave : bool
            Whether it is let go once the broker agrees.

        Returns
        -------
        bool
            False where there is nothing to look after: no broker, or it never began.
        """
        if hosted.venue not in self._couriers or hosted.snapshot is None or hosted.cursor is None:
            return False
        self._reasons[hosted] = (reason, flatten)
        if leave:
            self._leaving.add(hosted)
        return True

    def end(self, hosted: Hosted) -> None:
        """Look after it no longer: it runs again, or belongs to somebody else."""
        self._reasons.pop(hosted, None)
        self._caretakers.pop(hosted, None)
        self._leaving.discard(hosted)

    def leaves(self, hosted: Hosted) -> bool:
        return hosted in self._leaving

    def steps(self) -> dict[Hosted, Stepped]:
        """Return what is to be stored of those that begin, or of which a broker has news."""
        found: dict[Hosted, Stepped] = {}
        for hosted in {**self._reasons, **self._caretakers}:
            reason, flatten = self._reasons.pop(hosted, (None, False))
            if reason is None and hosted.news is None:
                continue
            news, hosted.news = hosted.news, None
            try:
                caretaker = self._caretakers.get(hosted) or Caretaker(hosted)
                self._caretakers[hosted] = caretaker
                found[hosted] = caretaker.withdraw(reason or "withdrawn", news, flatten=flatten)
            except Exception:
                # What one algorithm left must not end the others.
                log.exception("%s: its orders at %s need a hand", hosted.name, hosted.venue)
                self._caretakers.pop(hosted, None)
        return found

    def stored(self, hosted: Hosted) -> None:
        """Note that the journal has its step, and the courier knows."""
        if hosted in self._caretakers:
            self._couriers[hosted.venue].look()

    def settled(self, hosted: Hosted) -> bool:
        """Whether the broker has just what is stored of it."""
        caretaker = self._caretakers.get(hosted)
        if hosted in self._reasons or hosted.news is not None or caretaker is None:
            return False
        return caretaker.idle or self._couriers[hosted.venue].agrees(hosted.id)

    def done(self) -> list[Hosted]:
        """Return those that may leave."""
        return [hosted for hosted in self._leaving if self.settled(hosted)]

    def unsettled(self) -> list[Hosted]:
        """Return those whose orders the broker has not all taken back yet."""
        return [h for h in {**self._reasons, **self._caretakers} if not self.settled(h)]
