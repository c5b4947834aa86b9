"""The event loop, for back-tests and live alike. At each moment, the close of one or more bars:

1. **Bars close**: every series moves to its newest closed bar.
2. **Corporate actions** whose ex-date has come are booked, on positions, on cash and on orders that
   wait. Before the fills: trading on the ex-date is on the new basis from its open on, and a
   dividend belongs to who held the share the day before.
3. **Fills**: orders given at an earlier moment meet the bar that has just closed, as `matching`
   says; then `on_fill`. An order never fills in a bar that began before it was given.
4. **Expiry**: orders for the day whose session is over end.
5. **Indicators** as of now: prices and indicators are scaled anew after an ex-date.
6. **on_bar**.
7. **New orders** are checked against the limits, and wait for the next bar of their symbol.

A symbol without a bar at a moment has no fill at it. Of several symbols with fills at one moment,
those whose position gets smaller come first: their cash pays for the others.

Nothing here reads a clock, draws a random number or asks a server: the same bars give the same
orders and fills, byte for byte. A back-test calls `advance` once for all its moments, a live run
once for each; the loop is the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import pandas as pd

import marketdata as md
from algorithms.account import Account
from algorithms.algorithm import Algorithm
from algorithms.blotter import Blotter, Costs
from algorithms.booking import book
from algorithms.context import Context, SymbolView
from algorithms.errors import AlgorithmError
from algorithms.lines import NEVER, Cursor, Int64s
from algorithms.market import MarketData
from algorithms.orders import Fill, Order, TimeInForce
from algorithms.readiness import warm_from
from algorithms.run_record import AppliedAction
from algorithms.series import CLOSE, COLUMNS, OPEN, ShareAction
from algorithms.studies import studies_of
from algorithms.watched import Watched


class Limits(Protocol):
    """What may refuse an order; `algorithms.live.risk` has the usual ones."""

    def refuse(self, order: Order, engine: Engine) -> str | None:
        """Return why an order must not be sent, or None. Asked before it waits."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """What one `advance` did.

    Attributes
    ----------
    moments : int
        Moments gone through.
    changed : list of Order
        Orders that are new or have changed, in their present state.
    fills : list of Fill
    """

    moments: int
    changed: list[Order]
    fills: list[Fill]


class Engine:
    """One strategy on a market.

    Parameters
    ----------
    algorithm : Algorithm
    market : MarketData
        May be shared with other engines.
    account : Account
    costs : Costs, optional
    limits : Limits, optional
        Asked about each new order.
    prefix : str
        Of the ids of orders.
    matches : bool
        Whether bars fill orders here; False where a broker does.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        market: MarketData,
        account: Account,
        costs: Costs | None = None,
        *,
        limits: Limits | None = None,
        prefix: str = "",
        matches: bool = True,
    ) -> None:
        if not algorithm.symbols:
            raise AlgorithmError(
                f"{type(algorithm).__name__} watches no symbols",
                cure=f'give them: {type(algorithm).__name__}(symbols=["AAPL"])',
            )
        self.algorithm = algorithm
        self.market = market
        self.account = account
        self.limits = limits
        self.timeframe = str(md.Timeframe.parse(algorithm.timeframe))
        self.fractional = algorithm.fractional
        self.now = self.before = 0
        self.actions: list[AppliedAction] = []
        self.cash_flows: list[tuple[int, float]] = []
        self.share_changes: list[tuple[int, str, float]] = []
        self._watched = self._watch()
        self._main = {w.series.symbol: w for w in self._watched if self._is_main(w)}
        self._cursors = [w.cursor for w in self._watched]
        self._of_cursor = {id(w.cursor): w for w in self._watched}
        self.blotter = Blotter(
            account,
            costs or Costs(),
            {symbol: w.cursor for symbol, w in self._main.items()},
            self.mark_in_bar,
            fractional=algorithm.fractional,
            prefix=prefix,
            matches=matches,
        )
        views = {(w.series.symbol, w.series.timeframe): w.view for w in self._watched}
        self.context = Context(self, views)
        self._hears_fills = type(algorithm).on_fill is not Algorithm.on_fill
        self._action_due = NEVER
        self._late: list[tuple[str, ShareAction]] = []
        self._started = False

    def _watch(self) -> list[Watched]:
        algorithm = self.algorithm
        studies = studies_of(algorithm)
        reserved = set(dir(Context)) | set(dir(SymbolView))
        for study in studies:
            for alias in study.aliases:
                if not alias.isidentifier() or alias in reserved | set(COLUMNS):
                    raise AlgorithmError(
                        f"an indicator cannot be called {alias!r}", cure="give it another name"
                    )
        frames = dict.fromkeys(
            [self.timeframe]
            + [str(md.Timeframe.parse(t)) for t in algorithm.timeframes]
            + [study.timeframe for study in studies]
        )
        return [
            Watched(
                self.market.of(symbol, frame), [s for s in studies if s.timeframe == frame], self
            )
            for frame in frames
            for symbol in algorithm.symbols
        ]

    def _is_main(self, watched: Watched) -> bool:
        return watched.series.timeframe == self.timeframe

    # ------------------------------------------------------------------------------ running

    def begin(self, now: int, resumed: dict[str, Any] | None = None) -> None:
        """Stand at an instant, with all bars closed by then in sight, and call `on_start`; with a
        snapshot, go on from that: see `persistence.resume`."""
        self.now = self.before = now
        for watched in self._watched:
            self._bind(watched)
            closes = watched.closes[: watched.series.size]
            watched.cursor.move(int(closes.searchsorted(now, side="right")))
        self._action_due = self._next_action()
        self._started = True
        if resumed is not None:
            from algorithms.persistence import resume

            resume(self, resumed)
            return
        self.algorithm.on_start(self.context)
        if self.blotter.given:
            self._accept()

    def advance(self, until: int, moments: Int64s | None = None) -> Step:
        """Go through the moments up to an instant (inclusive), or through these."""
        if not self._started:
            raise AlgorithmError("the engine has not begun", cure="call begin(now) first")
        for watched in self._watched:
            self._bind(watched)
        self._action_due = self._next_action()
        if moments is None:
            symbols = tuple(self.algorithm.symbols)
            moments = self.market.moments(symbols, self.timeframe, self.now, until)
        before = len(self.blotter.fills)
        self._run(moments.tolist())
        changed = list(self.blotter.changed.values())
        self.blotter.changed.clear()
        return Step(len(moments), changed, self.blotter.fills[before:])

    def _run(self, moments: Iterable[int]) -> None:
        context, blotter, cursors = self.context, self.blotter, self._cursors
        on_bar = self.algorithm.on_bar
        for now in moments:
            self.before, self.now = self.now, now
            if now > self._action_due:
                self._book_actions(now)
            touched = None
            for cursor in cursors:
                if cursor.next <= now:
                    first = cursor.at
                    at = first + 1
                    closes = cursor.closes
                    following = closes[at]
                    while following <= now:
                        at += 1
                        following = closes[at]
                    cursor.at = at
                    cursor.next = following
                    if cursor.waiting:
                        touched = touched or []
                        touched.append((cursor, first))
            if touched is not None:
                self._fill(touched, now)
            if self._late:
                self._book_late()
            if now >= blotter.expiry:
                blotter.expire(now)
            on_bar(context)
            if blotter.given:
                self._accept()

    def _fill(self, touched: list[tuple[Cursor, int]], now: int) -> None:
        if len(touched) > 1:
            # What is sold at an open pays for what is bought at it, whichever symbol comes first.
            touched.sort(key=self._turn)
        for cursor, first in touched:
            bar = self._of_cursor[id(cursor)].bar
            for index in range(first, cursor.at):
                fills = self.blotter.meet(cursor, bar, index, now)
                if fills and self._hears_fills:
                    for fill in fills:
                        self.algorithm.on_fill(self.context, fill)

    def _turn(self, item: tuple[Cursor, int]) -> int:
        """Return when a symbol's turn is: first what surely gets smaller at the open, last what may
        get smaller later in the bar, whose money is not there yet."""
        cursor, _ = item
        held = self.account.positions.get(cursor.symbol, 0.0)
        smaller = [order for order in cursor.waiting if order.remaining * held < 0]
        if not smaller:
            return 1
        return 0 if any(o.limit is None and o.stop is None for o in smaller) else 2

    def _accept(self) -> None:
        self.blotter.accept(self._day_end, None if self.limits is None else self._refuse)

    def _day_end(self) -> int:
        return self.market.day_end(self.now)

    def _refuse(self, order: Order) -> str | None:
        return None if self.limits is None else self.limits.refuse(order, self)

    def end(self) -> None:
        """Call `on_stop`; what it orders is dropped."""
        self.algorithm.on_stop(self.context)
        self.blotter.given.clear()

    # ---------------------------------------------------------------------- corporate actions

    def _bind(self, watched: Watched) -> None:
        watched.bind(self.market, watched.series.epoch(self.now))

    def _next_action(self) -> int:
        """Return the first ex-date after now of a step or an action of any series."""
        times: list[int] = []
        for watched in self._watched:
            times += [step.time for step in watched.series.steps]
            times += [action.time for action in watched.series.actions]
        return min((time for time in times if time >= self.now), default=NEVER)

    def _book_actions(self, now: int) -> None:
        """Book what took effect since the last moment, and see the past on the new basis."""
        since = self._action_due
        for symbol, watched in self._main.items():
            for action in watched.series.actions:
                if not since <= action.time < now:
                    continue
                cursor = watched.cursor
                if cursor.next <= now and watched.series.labels[cursor.at] < action.time:
                    # Inside a bar of several days: what fills at its open is held by then.
                    self._late.append((symbol, action))
                else:
                    book(self, symbol, action)
        for watched in self._watched:
            epoch = watched.series.epoch(now)
            if epoch != watched.epoch:
                at = watched.cursor.at
                watched.bind(self.market, epoch)
                watched.cursor.move(at)
        self._action_due = self._next_action()

    def _book_late(self) -> None:
        late, self._late = self._late, []
        for symbol, action in late:
            book(self, symbol, action)

    # ------------------------------------------------------------- what the context asks for

    def mark(self, symbol: str) -> float:
        """Return the newest raw close, on the basis of now; NaN before the first bar."""
        watched = self._main[symbol]
        at = watched.cursor.at
        if at == 0:
            return math.nan
        series = watched.series
        price = float(series.raw[CLOSE, at - 1])
        if series.actions:
            price /= series.split_between(int(series.closes[at - 1]), self.now - 1)
        return price

    def mark_in_bar(self, symbol: str, label: int) -> float:
        """Return what a symbol is worth as a bar of this label opens: its close is not known yet."""
        watched = self._main[symbol]
        newest = watched.cursor.at - 1
        if newest >= 0 and watched.series.labels[newest] >= label:
            return float(watched.series.raw[OPEN, newest])
        return self.mark(symbol)

    def equity(self) -> float:
        """Return cash and the positions at their newest closes."""
        worth = self.account.cash
        for symbol, shares in self.account.positions.items():
            worth += shares * self.mark(symbol)
        return worth

    def expected(self, symbol: str, *, at_market: bool = False) -> float:
        """Return the position once the entries that wait have filled, all or those at the market."""
        expected = self.account.positions.get(symbol, 0.0)
        if not self.blotter.waiting and not self.blotter.given:
            return expected
        for order in self.waiting_orders():
            if order.symbol != symbol or order.parent is not None:
                continue
            if not at_market or (order.limit is None and order.stop is None):
                expected += order.remaining
        return expected

    def waiting_orders(self) -> tuple[Order, ...]:
        given = [order for order in self.blotter.given if order.is_open]
        return (*self.blotter.waiting.values(), *given)

    def give(
        self,
        symbol: str,
        quantity: float,
        limit: float | None,
        stop: float | None,
        force: TimeInForce,
        tag: str,
        take_profit: float | None,
        stop_loss: float | None,
    ) -> Order:
        """Take an order of the strategy; see `Context.order`."""
        return self.blotter.give(
            self.now, symbol, quantity, limit, stop, force, tag, take_profit, stop_loss
        )

    def cancel(self, order: Order, reason: str) -> bool:
        return self.blotter.cancel(order, reason)

    def label(self, symbol: str, timeframe: str) -> pd.Timestamp:
        labels = self.labels(symbol, timeframe, 1)
        if not len(labels):
            raise AlgorithmError(f"{symbol} {timeframe} has no bar yet")
        return pd.Timestamp(int(labels[0]), unit="us", tz="UTC")

    def labels(self, symbol: str, timeframe: str, count: int | None) -> Int64s:
        """Return the labels of the newest bars of a series."""
        for watched in self._watched:
            if (watched.series.symbol, watched.series.timeframe) == (symbol, timeframe):
                at = watched.cursor.at
                return watched.series.labels[0 if count is None else max(0, at - count) : at]
        raise AlgorithmError(f"the strategy does not watch {symbol} {timeframe}")

    # ------------------------------------------------------------------------- ready to start

    def ready(self, start: int) -> int:
        """Return the moment from `start` on at which what trades by then is warm: `readiness`."""
        symbols = tuple(self.algorithm.symbols)
        moments = self.market.moments(symbols, self.timeframe, start - 1, NEVER - 1)
        if not len(moments):
            return start
        first = int(moments[0])
        begins = first
        for watched in self._watched:
            closes = watched.closes[: watched.series.size]
            if not len(closes) or closes[0] > first:
                continue
            watched.bind(self.market, watched.series.epoch(first))
            extra = self.algorithm.warm_up if self._is_main(watched) else 0
            frame = watched.series.timeframe
            begins = max(begins, warm_from(closes, watched.indicators, frame, extra))
        return begins

    # -------------------------------------------------------------------------- persistence

    def snapshot(self) -> dict[str, Any]:
        """Return what a later process needs to go on from here, JSON-representable."""
        from algorithms.persistence import snapshot_of

        return snapshot_of(self)

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go on from what `snapshot` returned; call `begin` with its ``now`` first."""
        from algorithms.persistence import restore_into

        restore_into(self, snapshot)
