"""A paper account: its orders, positions and cash, brought up to date whenever it is asked.

Events of a moment happen in this order: what a minute that just ended did inside, orders that
expire, what the minute that begins opened at. Of several orders on one symbol stops come first:
where a minute reached both exits of a bracket, the loss is what happened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from decimal import ROUND_DOWN, Decimal
from functools import partial
from itertools import pairwise
from typing import Final

from marketdata.sandbox.trading import matching
from marketdata.sandbox.trading.book import (
    ZERO,
    PaperFill,
    PaperOrder,
    PaperPosition,
    fill_id,
)
from marketdata.sandbox.trading.tape import Minute, Tape
from marketdata.spans import Span
from marketdata.types import MINUTE

CASH: Final = Decimal(100_000)
MULTIPLIER: Final = Decimal(2)
"""Buying power is twice what is not bound: 50 % initial margin. Source: Alpaca, Account."""
_SMALLEST: Final = Decimal("1e-9")
_SPLIT, _INSIDE, _EXPIRY, _OPEN = range(4)

_Event = tuple[int, int, str, Callable[[], None]]


class Desk:
    """One account.

    Attributes
    ----------
    most_shares : Decimal, int or None
        The most that one fill may be: larger orders fill in parts, a part a minute. None fills
        whole orders.
    ids_checked_last : bool
        A client order id that was used before is noticed only where nothing else is wrong.
    counts : Counter
        ``orders``, ``duplicates``, ``refused``, ``canceled``, ``expired``, ``replaced``, ``fills``.
    """

    def __init__(self, tape: Tape, key: str, cash: Decimal = CASH) -> None:
        self.tape = tape
        self.key = key
        self.cash = cash
        self.deposited = cash
        self.opened = tape.now
        self.orders: dict[str, PaperOrder] = {}
        self._recent: list[PaperOrder] = []
        """Those that are open, and some that were."""
        self.by_client_id: dict[str, PaperOrder] = {}
        self.positions: dict[str, PaperPosition] = {}
        self.fills: list[PaperFill] = []
        self.groups: dict[str, list[PaperOrder]] = {}
        self.most_shares: Decimal | int | None = None
        self.ids_checked_last = False
        self.counts: Counter[str] = Counter()
        self._split_symbols: set[str] = set()
        self.seen = tape.now
        """Up to when the market has been followed, inclusive."""

    # -------------------------------------------------------------------------- figures

    def value_of(self, position: PaperPosition) -> Decimal:
        price = self.tape.last(position.symbol)
        return position.qty * (position.entry if price is None else price)

    def figures(self) -> dict[str, Decimal]:
        """Return cash, equity, values by side, margins and buying power."""
        values = [self.value_of(p) for p in self.positions.values()]
        long = sum((v for v in values if v > 0), ZERO)
        short = sum((v for v in values if v < 0), ZERO)
        equity = self.cash + long + short
        margin = (long - short) / MULTIPLIER
        reserved = sum((o.reserves for o in self.open_orders()), ZERO)
        free = max((equity - margin) * MULTIPLIER - reserved, ZERO)
        return {
            "cash": self.cash,
            "equity": equity,
            "long": long,
            "short": short,
            "margin": margin,
            "buying_power": free,
        }

    def add(self, order: PaperOrder) -> None:
        """Take an order, and its legs, into the books."""
        for one in [order, *order.legs]:
            self.orders[one.id] = self.by_client_id[one.client_order_id] = one
            self._recent.append(one)
            if one.group is not None:
                self.groups.setdefault(one.group, []).append(one)

    def open_orders(self, symbol: str | None = None) -> list[PaperOrder]:
        self._recent = [o for o in self._recent if o.is_open]
        return [o for o in self._recent if symbol in (None, o.symbol)]

    def held_for_orders(self, symbol: str) -> Decimal:
        """Return how many shares open orders would close; two exits of a group count once."""
        return sum((o.left for o in self.closing(symbol)), ZERO)

    def closing(self, symbol: str) -> list[PaperOrder]:
        """Return the open orders that close a position; of two exits of a group only one."""
        position = self.positions.get(symbol)
        sign = 0 if position is None else position.qty
        working = [o for o in self.open_orders(symbol) if o.works and o.sign * sign < 0]
        return list({o.group or o.id: o for o in working}.values())

    # ----------------------------------------------------------------------- catching up

    def catch_up(self) -> None:
        """Let everything happen that has happened in the market since this was last called."""
        now = self.tape.now
        if now <= self.seen:
            return
        start, self.seen = self.seen, now
        # A day at a time: an order that has ended asks for no more prices.
        calendar = self.tape.calendar
        first, last = calendar.session_at(start) + 1, calendar.session_at(now) + 1
        midnights = calendar.midnight[first:last].tolist()
        for begin, end in pairwise([start, *(m for m in midnights if m < now), now]):
            self._live_through(begin, end)
        for order in self.open_orders():
            if order.status == "accepted" and self.tape.is_open(extended=order.extended_hours):
                order.status = "new"

    def _live_through(self, start: int, end: int) -> None:
        """Let happen what happened after `start`, up to `end`."""
        symbols = {o.symbol for o in self.open_orders()} | set(self.positions)
        events = list(self._splits(symbols, start, end))
        if self.open_orders():
            events += self._prices(start, end)
            moments = {o.expires for o in self.open_orders()}
            events += [(m, _EXPIRY, "", self._expiring(m)) for m in moments if start < m <= end]
        for _, _, _, happen in sorted(events, key=lambda event: event[:3]):
            happen()

    def _splits(self, symbols: Iterable[str], start: int, now: int) -> Iterable[_Event]:
        for symbol in symbols:
            for moment, ratio in self.tape.splits(symbol, start, now):
                yield moment, _SPLIT, symbol, partial(self._split, symbol, ratio, moment)

    def _prices(self, start: int, now: int) -> list[_Event]:
        """Return what the minutes since `start` did, of the symbols that have open orders."""
        calendar = self.tape.calendar
        events: list[_Event] = []
        for symbol in {o.symbol for o in self.open_orders()}:
            extended = any(o.extended_hours for o in self.open_orders(symbol))
            # A minute that began before `start` may have ended since.
            reach = Span(start - MINUTE + 1, now + 1)
            for hours in calendar.trading_spans(reach, "extended" if extended else "regular"):
                for minute in self.tape.minutes(symbol, hours):
                    events += self._of_minute(symbol, minute, start, now)
        return events

    def _of_minute(self, symbol: str, minute: Minute, start: int, now: int) -> Iterator[_Event]:
        regular, end = self.tape.calendar.is_open(minute.label), minute.label + MINUTE
        if minute.label > start:
            yield minute.label, _OPEN, symbol, self._opening(symbol, minute, regular)
        if start < end <= now:
            yield end, _INSIDE, symbol, self._ending(symbol, minute, regular)

    def _opening(self, symbol: str, minute: Minute, regular: bool) -> Callable[[], None]:
        def happen() -> None:
            for order in self._queue(symbol, minute.label, regular):
                self._try(order, matching.at_price(order, minute.open), minute.label)

        return happen

    def _ending(self, symbol: str, minute: Minute, regular: bool) -> Callable[[], None]:
        high, low = max(minute.high, minute.open), min(minute.low, minute.open)

        def happen() -> None:
            for order in self._queue(symbol, minute.label, regular):
                self._try(order, matching.inside(order, high, low), minute.label + MINUTE)

        return happen

    def _queue(self, symbol: str, moment: int, regular: bool) -> list[PaperOrder]:
        waiting = [
            o
            for o in self.open_orders(symbol)
            if o.works and o.working_from <= moment and (regular or o.extended_hours)
        ]
        return sorted(waiting, key=lambda o: (o.stop_price is None, o.created))

    def _try(self, order: PaperOrder, price: Decimal | None, moment: int) -> None:
        # An order earlier in the queue may have cancelled this one.
        if price is not None and order.works:
            self.fill(order, price, moment)

    def _expiring(self, moment: int) -> Callable[[], None]:
        def happen() -> None:
            for order in self.open_orders():
                if order.expires <= moment:
                    self._expire(order, moment)

        return happen

    def _expire(self, order: PaperOrder, moment: int) -> None:
        day = order.time_in_force == "day"
        self._end(order, "expired" if day else "canceled", moment)
        for leg in order.legs:
            if leg.is_open and leg.expires > moment:
                self._end(leg, "canceled", moment)

    def _split(self, symbol: str, ratio: Decimal, moment: int) -> None:
        """Multiply the position; orders at prices of before are cancelled (a guess: Alpaca says
        that it may adjust or cancel them)."""
        position = self.positions.get(symbol)
        self._split_symbols.add(symbol)
        if position is not None:
            position.qty *= ratio
            position.entry /= ratio
        for order in self.open_orders(symbol):
            self._end(order, "canceled", moment)

    # ---------------------------------------------------------------------- what happens

    def trade_now(self, order: PaperOrder) -> None:
        """Fill a new order at the quote of this moment, if it is good for it."""
        quote = self.tape.quote(order.symbol)
        if quote is None or not order.works or not self.tape.is_open(extended=order.extended_hours):
            return
        price = quote[1] if order.side == "buy" else quote[0]
        if order.status in ("accepted", "pending_new"):
            order.status = "new"
        self._try(order, matching.at_price(order, price), self.tape.now)

    def fill(self, order: PaperOrder, price: Decimal, moment: int) -> None:
        """Book a fill of what is left of `order`, or of `most_shares` of it."""
        if order.notional is not None:
            qty = (order.notional / price).quantize(_SMALLEST, ROUND_DOWN)
        else:
            qty = (
                order.left
                if self.most_shares is None
                else min(order.left, Decimal(self.most_shares))
            )
        order.filled += qty
        order.paid += qty * price
        done = order.qty is None or order.left == 0
        order.status = "filled" if done else "partially_filled"
        order.moments |= {"filled": moment, "updated": moment}
        self.counts["fills"] += 1
        name = fill_id(moment, order.id, order.filled)
        self.fills.append(PaperFill(name, moment, order, qty, price, order.filled))
        self.cash -= order.sign * qty * price
        position = self.positions.setdefault(order.symbol, PaperPosition(order.symbol))
        position.add(order.sign * qty, price)
        if position.qty == 0:
            del self.positions[order.symbol]
        self._follow(order, qty, moment, done=done)

    def _follow(self, order: PaperOrder, qty: Decimal, moment: int, *, done: bool) -> None:
        """Do to the others of a group what a fill of one of them does."""
        if order.role == "entry":
            if done:
                for leg in order.legs:
                    leg.active, leg.working_from = True, moment
                    # The stop-loss is said to be held for as long as the take-profit works.
                    alone = len(order.legs) == 1
                    leg.status = "new" if alone or leg.role == "take_profit" else "held"
                    leg.moments["updated"] = moment
            return
        for twin in self._twins(order):
            if done:
                self._end(twin, "canceled", moment)
            elif twin.qty is not None:
                twin.qty -= qty

    def _twins(self, order: PaperOrder) -> list[PaperOrder]:
        members = self.groups.get(order.group or "", [])
        return [o for o in members if o is not order and o.role != "entry" and o.is_open]

    def cancel(self, order: PaperOrder) -> None:
        """Cancel an open order, and what is left of its group."""
        self.counts["canceled"] += 1
        for one in [order, *self.groups.get(order.group or "", [])]:
            if one.is_open:
                self._end(one, "canceled", self.tape.now)

    def _end(self, order: PaperOrder, status: str, moment: int) -> None:
        order.status = status
        order.moments |= {status: moment, "updated": moment}
        if status == "expired":
            self.counts["expired"] += 1

    # ------------------------------------------------------------------------------ audit

    def contradictions(self) -> list[str]:
        """Return what does not add up: fills against orders, positions and cash. Positions that
        were split are left out."""
        wrong = []
        held: dict[str, Decimal] = {}
        cash = self.deposited
        by_order: dict[str, Decimal] = {}
        for fill in self.fills:
            signed = fill.order.sign * fill.qty
            held[fill.order.symbol] = held.get(fill.order.symbol, ZERO) + signed
            by_order[fill.order.id] = by_order.get(fill.order.id, ZERO) + fill.qty
            cash -= signed * fill.price
        if cash != self.cash:
            wrong.append(f"cash is {self.cash}, its fills make {cash}")
        whole = self._split_symbols
        shares = {s: p.qty for s, p in self.positions.items() if s not in whole}
        if shares != {s: q for s, q in held.items() if q and s not in whole}:
            wrong.append(f"positions are {shares}, their fills make {held}")
        for order in self.orders.values():
            if by_order.get(order.id, ZERO) != order.filled:
                wrong.append(f"order {order.id} has filled {order.filled}")
            if order.qty is not None and order.filled > order.qty:
                wrong.append(f"order {order.id} has filled more than its quantity")
        if len({f.id for f in self.fills}) != len(self.fills):
            wrong.append("two fills share an id")
        return wrong
