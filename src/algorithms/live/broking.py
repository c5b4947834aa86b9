"""Orders at a broker: what is stored here is what the broker is brought to, and what it did is told.

A `Courier` is told what algorithms believe, once that is stored: the orders that wait, those that
ended and may still stand there, the fills that are booked. Again and again it reads what the broker
has and acts on the differences: what is not there is submitted (the id makes that safe to repeat),
what ended here is cancelled, what filled there is told back. Nothing depends on having seen an
answer, so a process that is killed anywhere is followed by one that finds the same differences.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import marketdata as md
from algorithms.errors import VenueError
from algorithms.live.records import Delivery
from algorithms.orders import Order, OrderState
from algorithms.venues import BrokerFill, BrokerVenue
from algorithms.venues.reconciling import (
    Difference,
    Remedy,
    VenueReading,
    read_venue,
    reconcile,
)

log = logging.getLogger("algorithms.live")

POLL_SECONDS: Final = 5.0
"""How often the broker is looked at while orders wait there."""
_QUIET_SECONDS: Final = 60.0
_RETRY_FIRST: Final = 0.5
_RETRY_MOST: Final = 60.0
_JOIN: Final = 10.0


@dataclass(frozen=True)
class Belief:
    """What one algorithm's stored state says of the broker.

    Attributes
    ----------
    prefix : str
        Of the ids of all its orders.
    orders : tuple of Order
        Copies: those that wait, and those that ended and may still stand at the broker.
    positions : mapping of str to float
    booked : frozenset of str
        Ids of the broker's fills that are booked.
    since : int
        Fills from then on may not be booked yet; microseconds UTC.
    """

    prefix: str
    orders: tuple[Order, ...]
    positions: Mapping[str, float]
    booked: frozenset[str]
    since: int


@dataclass
class News:
    """What a broker has to say to one algorithm; saying it again changes nothing.

    Attributes
    ----------
    fills : list of BrokerFill
        Not booked yet, by time.
    ended : list of (order id, state, reason)
        Orders that wait here and are over there.
    settled : set of str
        Orders that ended here and are over there too.
    delivered : dict of str to (Delivery, reason)
        What is newly known of orders.
    """

    fills: list[BrokerFill] = field(default_factory=list)
    ended: list[tuple[str, OrderState, str]] = field(default_factory=list)
    settled: set[str] = field(default_factory=set)
    delivered: dict[str, tuple[Delivery, str]] = field(default_factory=dict)

    @property
    def concerns_orders(self) -> bool:
        """Whether the algorithm is to be told."""
        return bool(self.fills or self.ended or self.settled)


class Courier:
    """Brings one broker and the algorithms that trade there to agree, on a thread of its own.

    Parameters
    ----------
    venue : BrokerVenue
    wake : callable
        Called, on the courier's thread, when there is news.
    poll : float
        Seconds between two looks at the broker while orders wait there.
    """

    def __init__(
        self, venue: BrokerVenue, wake: Callable[[], None], *, poll: float = POLL_SECONDS
    ) -> None:
        self.venue = venue
        self.error: str | None = None
        self._wake = wake
        self._poll = poll
        self._lock = threading.Lock()
        self._due = threading.Event()
        self._ended = threading.Event()
        self._beliefs: dict[int, Belief] = {}
        self._news: dict[int, News] = {}
        self._agreed: dict[int, Belief] = {}
        self._known: dict[str, Delivery] = {}
        self._reported: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="algorithm-courier", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------------ for the runner

    def tell(self, algorithm: int, belief: Belief) -> None:
        """Take note of what is stored of an algorithm from now on."""
        with self._lock:
            before = self._beliefs.get(algorithm)
            self._beliefs[algorithm] = belief
            changed = before is None or _states(before) != _states(belief)
        if changed:
            self._due.set()

    def forget(self, algorithm: int) -> None:
        """Look after an algorithm's orders no longer; those at the broker stand."""
        with self._lock:
            self._beliefs.pop(algorithm, None)
            self._news.pop(algorithm, None)
            self._agreed.pop(algorithm, None)

    def look(self) -> None:
        """Look at the broker at once."""
        self._due.set()

    def agrees(self, algorithm: int) -> bool:
        """Whether the broker was found to have just what was told last of an algorithm."""
        with self._lock:
            belief = self._beliefs.get(algorithm)
            return belief is None or self._agreed.get(algorithm) is belief

    def take(self) -> dict[int, News]:
        """Return the newest news of each algorithm, once."""
        with self._lock:
            news, self._news = self._news, {}
        return news

    def close(self) -> None:
        """End after the request at hand. Orders at the broker stand."""
        self._ended.set()
        self._due.set()
        self._thread.join(_JOIN)

    # ---------------------------------------------------------------------------- the rounds

    def _run(self) -> None:
        failures = 0
        while not self._ended.is_set():
            self._due.clear()
            pause = self._pause()
            try:
                self._round()
                failures, self.error = 0, None
            except md.MarketDataError as error:
                failures += 1
                pause = min(_RETRY_MOST, _RETRY_FIRST * 2 ** min(failures, 10))
                told = error.facts.get("retry_after")
                if isinstance(told, int | float):
                    pause = max(pause, min(float(told), _RETRY_MOST))
                level = logging.WARNING if failures == 1 else logging.INFO
                log.log(level, "the broker is asked again in %.1f s: %s", pause, error)
                self.error = str(error)
                self._ended.wait(pause)
                continue
            except Exception as error:
                log.exception("the broker's answers could not be dealt with")
                self.error = repr(error)
                self._ended.wait(_RETRY_MOST)
                continue
            self._due.wait(pause)

    def _pause(self) -> float:
        with self._lock:
            waiting = any(belief.orders for belief in self._beliefs.values())
        return self._poll if waiting else _QUIET_SECONDS

    def _round(self) -> None:
        with self._lock:
            beliefs = dict(self._beliefs)
        if not beliefs:
            return
        orders = [order for belief in beliefs.values() for order in belief.orders]
        booked = frozenset().union(*(belief.booked for belief in beliefs.values()))
        reading = read_venue(self.venue, orders, min(b.since for b in beliefs.values()))
        owner = _Owners(beliefs)
        found = reconcile(
            orders, _total(beliefs), reading, booked=booked, ours=lambda i: owner(i) is not None
        )
        news: dict[int, News] = {algorithm: News() for algorithm in beliefs}
        self._tell_fills(reading, booked, owner, news)
        self._tell_settled(orders, reading, owner, news)
        for difference in found.differences:
            self._act(difference, orders, owner, news)
        differ = {owner(d.subject) for d in found.differences if d.remedy is not Remedy.REPORT}
        with self._lock:
            for algorithm, each in news.items():
                if algorithm not in differ and not each.concerns_orders:
                    self._agreed[algorithm] = beliefs[algorithm]
                if algorithm in self._beliefs and (each.concerns_orders or each.delivered):
                    self._news[algorithm] = _merged(self._news.get(algorithm), each)
            any_news = bool(self._news)
        if any_news:
            self._wake()

    def _act(
        self,
        difference: Difference,
        orders: Sequence[Order],
        owner: _Owners,
        news: dict[int, News],
    ) -> None:
        remedy, order_id = difference.remedy, difference.subject
        if remedy is Remedy.RESUBMIT and difference.order is not None:
            self._submit(difference.order, orders, owner, news)
        elif remedy is Remedy.MARK and difference.there is not None:
            there = difference.there
            algorithm = owner(order_id)
            if there.state.final and algorithm is not None:
                reason = there.reason or f"{there.state} by the broker"
                news[algorithm].ended.append((order_id, there.state, reason))
        elif remedy in (Remedy.CANCEL, Remedy.ADOPT):
            # Orders are stored before they are sent: what is not known here has ended here.
            self._cancel(order_id)
        elif remedy is Remedy.REPORT and str(difference.says) not in self._reported:
            self._reported.add(str(difference.says))
            log.warning("%s: %s", order_id, difference.says)

    def _submit(
        self, order: Order, orders: Sequence[Order], owner: _Owners, news: dict[int, News]
    ) -> None:
        algorithm = owner(order.id)
        assert algorithm is not None
        if self._known.get(order.id) is Delivery.REFUSED:
            # Its end is told already and not stored yet: the broker may not take it after all.
            news[algorithm].ended.append((order.id, OrderState.REJECTED, "refused by the broker"))
            return
        children = [
            o
            for o in orders
            if not o.state.final
            and (o.parent == order.id or (o.twin == order.id and o.parent == order.parent))
        ]
        try:
            there = self.venue.submit(order, children)
        except VenueError as error:
            if error.transient:
                raise
            log.warning("%s was refused: %s", order.id, error)
            self._known[order.id] = Delivery.REFUSED
            news[algorithm].delivered[order.id] = (Delivery.REFUSED, error.message)
            news[algorithm].ended.append((order.id, OrderState.REJECTED, error.message))
            return
        for order_id in there:
            self._deliver(order_id, Delivery.SENT, owner, news)
        self._due.set()  # to see at once what became of it

    def _cancel(self, order_id: str) -> None:
        try:
            self.venue.cancel(order_id)
        except VenueError as error:
            if error.transient:
                raise
            log.warning("%s could not be cancelled: %s", order_id, error)
        self._due.set()

    def _tell_fills(
        self,
        reading: VenueReading,
        booked: frozenset[str],
        owner: _Owners,
        news: dict[int, News],
    ) -> None:
        for fill in reading.fills:
            algorithm = owner(fill.order_id)
            if algorithm is not None and fill.id not in booked:
                news[algorithm].fills.append(fill)

    def _tell_settled(
        self,
        orders: Iterable[Order],
        reading: VenueReading,
        owner: _Owners,
        news: dict[int, News],
    ) -> None:
        for order in orders:
            there = reading.orders.get(order.id)
            if there is not None:
                self._deliver(order.id, Delivery.SENT, owner, news)
            if order.state.final and (there is None or there.state.final):
                algorithm = owner(order.id)
                if algorithm is not None:
                    news[algorithm].settled.add(order.id)
                    self._deliver(order.id, Delivery.DONE, owner, news)

    def _deliver(
        self, order_id: str, delivery: Delivery, owner: _Owners, news: dict[int, News]
    ) -> None:
        algorithm = owner(order_id)
        if algorithm is None or self._known.get(order_id) is delivery:
            return
        self._known[order_id] = delivery
        news[algorithm].delivered[order_id] = (delivery, "")


class _Owners:
    """Whose an order is, by its id."""

    def __init__(self, beliefs: Mapping[int, Belief]) -> None:
        self._prefixes = {belief.prefix: algorithm for algorithm, belief in beliefs.items()}

    def __call__(self, order_id: str) -> int | None:
        prefix, dot, _ = order_id.rpartition(".")
        return self._prefixes.get(prefix + dot)


def _total(beliefs: Mapping[int, Belief]) -> dict[str, float]:
    total: dict[str, float] = {}
    for belief in beliefs.values():
        for symbol, shares in belief.positions.items():
            total[symbol] = total.get(symbol, 0.0) + shares
    return total


def _states(belief: Belief) -> list[tuple[str, OrderState]]:
    return [(order.id, order.state) for order in belief.orders]


def _merged(before: News | None, after: News) -> News:
    """Return the newest of both: what is said anew covers what was not taken yet, but deliveries,
    which are said once."""
    if before is not None:
        after.delivered = before.delivered | after.delivered
    return after
