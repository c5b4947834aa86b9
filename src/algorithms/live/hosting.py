"""One algorithm in a runner: its engine, its limits, the course of its life, and what of it is not
stored yet.

`Hosted.build` and `Hosted.step` run authors' code and are called by a worker of the supervisor;
what they return is plain data, so that nothing an author does later changes what is stored. All
other methods belong to the runner's own thread, which calls them while no worker is in the engine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final

import numpy as np
import pandas as pd

from algorithms.account import Account
from algorithms.algorithm import Algorithm
from algorithms.blotter import Costs
from algorithms.engine import Engine
from algorithms.errors import JournalError
from algorithms.lines import Int64s
from algorithms.live.broker_book import BrokerBook
from algorithms.live.broking import News
from algorithms.live.life import Course, Policy
from algorithms.live.records import Claim, Entry, Life, SessionEquity
from algorithms.live.risk import RiskGuard, RiskLimits, session_of
from algorithms.live.stepped import Stepped, delivery_of, stepped_of, storable
from algorithms.live.warming import Needs, SharedMarket, needs_of
from algorithms.orders import Fill, Order

PAPER: Final = "paper"
MOMENTS_A_STEP: Final = 64
"""Moments that one call goes through at most, where many were missed: the limits of time are on
calls."""
_NEWEST: Final = 8
Factory = Callable[[Claim], tuple[Algorithm, Costs]]
"""Makes an algorithm and what trading costs it from what is stored of it."""


@dataclass(slots=True)
class _Stored:
    """What of an algorithm the journal has."""

    cursor: int | None
    snapshot: str | None
    fills: int
    positions: dict[str, float] = field(default_factory=dict)


class Hosted:
    """One algorithm of a runner.

    Parameters
    ----------
    claim : Claim
    make : Factory
    policy : Policy
    """

    def __init__(self, claim: Claim, make: Factory, policy: Policy) -> None:
        record = claim.record
        self.id, self.name = record.id, record.name
        self.claim = claim
        self.course = Course(policy, restarts=record.restarts, slow_calls=record.slow_calls)
        self.needs: Needs | None = None
        self.market: SharedMarket | None = None
        self.engine: Engine | None = None
        self.guard: RiskGuard | None = None
        self._make = make
        self._made: tuple[Algorithm, Costs] | None = None
        self._stored = _Stored(record.cursor, claim.snapshot, record.fills)
        self._kill: tuple[str, bool] | None = None
        self._day: tuple[int, float, float] | None = None
        self.venue = record.registration.venue
        self.news: News | None = None
        self._broker: BrokerBook | None = None

    def __repr__(self) -> str:
        return f"<{self.name}, {self.course.life}>"

    # -------------------------------------------------------------------------- authors' code

    def prepare(self) -> Needs:
        """Make the algorithm and return what it watches."""
        self._made = self._make(self.claim)
        self.guard = RiskGuard(
            RiskLimits.of(self.claim.record.registration.options.get("limits") or {})
        )
        self.needs = needs_of(self._made[0])
        return self.needs

    def build(self, now: int) -> Stepped:
        """Make the engine, where the journal left it or, new, at `now`."""
        assert self._made is not None
        assert self.market is not None
        assert self.guard is not None
        algorithm, costs = self._made
        registration = self.claim.record.registration
        engine = Engine(
            algorithm,
            self.market.data,
            Account(registration.cash),
            costs,
            limits=self.guard,
            prefix=self.prefix,
            matches=self.venue == PAPER,
        )
        if self.venue != PAPER:
            self._broker = BrokerBook(now)
        if self._stored.snapshot is None:
            engine.begin(now if self._stored.cursor is None else self._stored.cursor)
        else:
            told = json.loads(self._stored.snapshot)
            _resume(engine, self.guard, told, self._stored.cursor)
            if self._broker is not None and "broker" in told:
                self._broker.restore(told["broker"])
        self._day = (session_of(engine), engine.account.cash, engine.equity())
        self.engine = engine
        return self._stepped(engine, 0, (), False)

    def step(self, until: int, news: News | None = None) -> Stepped:
        """Hear what the broker says, and go through the moments up to an instant, the first of
        them where there are many."""
        engine = self.engine
        assert engine is not None
        heard: list[Fill] = []
        if news is not None and self._broker is not None:
            heard = self._broker.hear(engine, news)
        self._apply_switch(engine)
        moments = self._moments(engine, until)
        now = moments[:MOMENTS_A_STEP]
        fills: list[Fill] = list(heard)
        ended: list[SessionEquity] = []
        changed: dict[str, Order] = {}
        for at in range(len(now)):
            done = engine.advance(until, now[at : at + 1])
            fills += done.fills
            changed.update((order.id, order) for order in done.changed)
            self._after(engine, ended)
        engine.blotter.changed = changed | engine.blotter.changed
        return self._stepped(engine, len(now), fills, len(moments) > len(now), ended)

    def stop(self) -> Stepped:
        """Call `on_stop`."""
        assert self.engine is not None
        self.engine.end()
        return self._stepped(self.engine, 0, (), False)

    def _moments(self, engine: Engine, until: int) -> Int64s:
        """Return the moments to go through, ascending. Mostly it is one: looking at the newest
        bars of each series finds it in microseconds."""
        now, timeframe, series = engine.now, engine.timeframe, engine.market.series
        found: set[int] = set()
        for symbol in engine.algorithm.symbols:
            each = series[symbol, timeframe]
            at = each.size - 1
            newest = at - _NEWEST
            while at >= 0 and (closes := int(each.closes[at])) > now:
                if at == newest:
                    symbols = tuple(engine.algorithm.symbols)
                    return engine.market.moments(symbols, timeframe, now, until)
                if closes <= until:
                    found.add(closes)
                at -= 1
        return np.array(sorted(found), np.int64)

    def _after(self, engine: Engine, ended: list[SessionEquity]) -> None:
        """Value the account after a moment, and end trading where the limits say so."""
        assert self.guard is not None
        session, equity = session_of(engine), engine.equity()
        if self._day is not None and self._day[0] != session:
            day = pd.Timestamp(self._day[0], unit="us", tz="UTC")
            ended.append(SessionEquity(_date(day), self._day[1], self._day[2]))
        self._day = (session, engine.account.cash, equity)
        self.guard.observe(session, equity)
        self._halt(engine)

    def _apply_switch(self, engine: Engine) -> None:
        assert self.guard is not None
        if self._kill is None:
            self.guard.release()
        else:
            reason, flatten = self._kill
            self.guard.kill(reason, flatten=flatten)
        self._halt(engine)

    def _halt(self, engine: Engine) -> None:
        """Do what the end of trading asks for: exits of a bracket stay, unless all is closed."""
        assert self.guard is not None
        halt = self.guard.take_halt()
        if halt is None:
            return
        for order in engine.waiting_orders():
            if order.parent is None or halt.flatten:
                engine.cancel(order, halt.reason)
        if halt.flatten:
            for symbol in list(engine.account.positions):
                engine.context.close_position(symbol, tag="flatten")
            engine.blotter.accept(lambda: engine.market.day_end(engine.now), None)

    def _stepped(
        self,
        engine: Engine,
        moments: int,
        fills: Sequence[Fill],
        behind: bool,
        sessions: Sequence[SessionEquity] = (),
    ) -> Stepped:
        assert self.guard is not None
        return stepped_of(
            engine, self.guard, self._broker, fills,
            moments=moments, behind=behind, sessions=sessions,
        )  # fmt: skip

    # ------------------------------------------------------------------------ the runner's own

    def kill(self, reason: str, flatten: bool) -> bool:
        """End its trading with the next step; return whether that is new."""
        before, self._kill = self._kill, (reason, flatten)
        if self.course.life is Life.RUNNING:
            self.course.life = Life.KILLED
        return before != self._kill

    def release(self) -> bool:
        """Let it trade again; return whether it was killed."""
        before, self._kill = self._kill, None
        if self.course.life is Life.KILLED:
            self.course.life = Life.RUNNING
        return before is not None

    @property
    def killed(self) -> bool:
        return self._kill is not None

    @property
    def prefix(self) -> str:
        """What the ids of its orders begin with."""
        return f"{self.name}.{self.claim.record.run}."

    @property
    def cursor(self) -> int | None:
        """Up to where the journal has it."""
        return self._stored.cursor

    @property
    def snapshot(self) -> str | None:
        """What the journal has of it, JSON."""
        return self._stored.snapshot

    def has_news(self, until: int) -> bool:
        """Whether a bar that it is called for has closed since its last moment, up to `until`."""
        engine = self.engine
        assert engine is not None
        now, timeframe, series = engine.now, engine.timeframe, engine.market.series
        for symbol in engine.algorithm.symbols:
            each = series[symbol, timeframe]
            at = each.size
            # The newest may lie beyond: of what came at once, look at what is due.
            while at and each.closes[at - 1] > until:
                at -= 1
            if at and each.closes[at - 1] > now:
                return True
        return False

    def drop_engine(self) -> None:
        """Forget everything but what the journal has."""
        self.engine = self.guard = self.needs = self.market = self._made = None
        self._broker = None

    def entry(self, stepped: Stepped | None) -> Entry:
        """Return what is to be stored: of a step, or of its course alone."""
        record, course = self.claim.record, self.course
        entry = Entry(
            record.id,
            record.epoch,
            record.run,
            life=course.life,
            first_fill=self._stored.fills + 1,
            failures=course.failures,
            restarts=course.restarts,
            slow_calls=course.slow_calls,
            error=course.error,
        )
        if stepped is None:
            return entry
        entry.cursor = stepped.cursor
        entry.snapshot = None if stepped.snapshot == self._stored.snapshot else stepped.snapshot
        entry.orders = storable(stepped.orders)
        if self.venue != PAPER:
            entry.delivery = {order.id: delivery_of(order) for order in entry.orders}
        entry.fills = stepped.fills
        held = {symbol: quantity for symbol, (quantity, _) in stepped.positions.items()}
        entry.positions = None if held == self._stored.positions else stepped.positions
        entry.sessions = stepped.sessions
        entry.cash, entry.equity = stepped.cash, stepped.equity
        return entry

    def stored(self, stepped: Stepped | None) -> None:
        """Note that the journal has the step."""
        if stepped is None:
            return
        self._stored = _Stored(
            stepped.cursor,
            stepped.snapshot,
            self._stored.fills + len(stepped.fills),
            {symbol: quantity for symbol, (quantity, _) in stepped.positions.items()},
        )


def _resume(engine: Engine, guard: RiskGuard, snapshot: dict[str, Any], cursor: int | None) -> None:
    if cursor is None:
        raise JournalError("a snapshot without a cursor", cure="begin a fresh run")
    engine.begin(cursor, resumed={**snapshot["engine"], "now": cursor})
    guard.restore(snapshot["risk"])


def _date(midnight: pd.Timestamp) -> date:
    return midnight.tz_convert("America/New_York").date()
