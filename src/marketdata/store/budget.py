"""One request budget per credential, shared by every process on the same store.

The rules are SQL (``database/init``, the file named after the budget), so that every process is
held by the same ones, in one statement under one row's lock. Here is what a process remembers of
its own requests: the row may be lost (deleted, restored from a backup, behind after a failover),
and is then made good from the memories of those who are alive.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, text

from marketdata.protocols import Priority
from marketdata.store.connection import Database

WINDOW: Final = 60
"""Seconds for which a request counts."""
_NEWS: Final = 1.0
"""Seconds for which the broker's own count of what is used is held to be true."""
_TAKE: Final = text("""
SELECT wait, generation, taken FROM take_from_budget(
    :credential, :per_minute, :stated, :priority, :generation, :taken, at => :at)
""")
_DECLARE: Final = text("""
SELECT wait, generation, taken FROM take_from_budget(
    :credential, :per_minute, :stated, :priority, :generation, :taken, :sent, :told_used, :at)
""")
_USES: Final = text("""
SELECT credential, per_minute, stated, used, by_priority, waiting, paused, left_by_reads,
       left_by_background
FROM rate_budget_use ORDER BY used DESC, credential
""")
_MAKE: Final = text("""
SELECT make_budget(:credential, :per_minute, :own, :per_minute, coalesce(:at, clock_timestamp()))
WHERE NOT EXISTS (SELECT FROM rate_budgets WHERE credential = :credential)
""")
_PAUSE: Final = text("""
UPDATE rate_budgets SET paused_until = greatest(
    paused_until, coalesce(:at, clock_timestamp()) + :seconds * interval '1 second')
WHERE credential = :credential
""")


@dataclass(frozen=True, slots=True)
class BudgetUse:
    """How one credential's budget stands."""

    credential: str
    """A digest."""
    limit: int | None
    """Requests a minute, by what was last used; None where nobody has asked yet."""
    stated: bool
    """Whether the broker itself has said so."""
    used: int
    """In the last minute, by everybody."""
    by_priority: Mapping[Priority, int]
    """The same by kind of caller. After a lost row they do not add up: some are assumed."""
    waiting: tuple[Priority, ...]
    """Who was refused and waits for its turn."""
    paused: float
    """Seconds for which the broker refuses everything."""
    reserve: Mapping[Priority, int]
    """Requests that each kind of caller leaves to its betters now."""

    def left(self, priority: Priority) -> int:
        """Return how many requests would be granted now, one after the other."""
        if self.paused or self.limit is None or any(w < priority for w in self.waiting):
            return 0
        return max(0, self.limit - self.used - self.reserve[priority])


def uses(connection: Connection) -> tuple[BudgetUse, ...]:
    """Return how every budget stands, the most used first."""
    return tuple(
        BudgetUse(
            row.credential,
            row.per_minute,
            row.stated,
            row.used,
            {kind: row.by_priority[kind] for kind in Priority},
            tuple(kind for kind in Priority if row.waiting[kind]),
            row.paused,
            {
                Priority.LIVE: 0,
                Priority.READ: row.left_by_reads or 0,
                Priority.BACKFILL: row.left_by_background or 0,
                Priority.VERIFY: row.left_by_background or 0,
            },
        )
        for row in connection.execute(_USES)
    )


class _Memory:
    """What this process has sent with one credential, and what the broker said to it."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._sent = [0] * WINDOW
        self._newest = int(monotonic())
        self._told_used: tuple[float, int] | None = None
        self.asking = 0
        """Requests asked for and not granted yet."""
        self.stated: int | None = None
        """The limit by the broker's own word."""
        self.limit = 1
        """The limit that was used last."""
        self.generation: int | None = None
        self.taken: int | None = None

    def _slot(self) -> int:
        now = int(self._monotonic())
        for second in range(max(self._newest + 1, now - WINDOW + 1), now + 1):
            self._sent[second % WINDOW] = 0
        self._newest = max(now, self._newest)
        return now % WINDOW

    def add(self) -> None:
        self._sent[self._slot()] += 1

    def sent(self) -> list[int]:
        """Return the requests of each of the last 60 seconds, the newest first."""
        at = self._slot()
        return [self._sent[(at - age) % WINDOW] for age in range(WINDOW)]

    def learn(self, limit: int, left: int | None) -> None:
        self.stated = limit
        if left is not None:
            self._told_used = self._monotonic(), max(0, limit - left)

    def told_used(self) -> int | None:
        """Return what is held to be used of the limit after the row was lost.

        What the broker counted, if it said so just now: of what others have sent since it knows
        nothing. Else all of it, where this process had seen the row: others may have sent the rest,
        and declare it as soon as they ask. None where it never had.
        """
        if self._told_used is not None and self._monotonic() - self._told_used[0] <= _NEWS:
            return self._told_used[1]
        return None if self.generation is None else self.limit

    def take_note(self, generation: int, taken: int) -> None:
        # Threads come back in any order.
        if generation != self.generation or self.taken is None or taken > self.taken:
            self.generation, self.taken = generation, taken


class PostgresBudget:
    """A sliding window of 60 seconds: no such window ever grants more than the limit.

    Parameters
    ----------
    database : Database
        Where the budgets are kept.
    moment : callable, optional
        Returns what time it is, for tests; PostgreSQL's clock by default.
    """

    def __init__(self, database: Database, moment: Callable[[], datetime] | None = None) -> None:
        self._database = database
        self._moment = moment
        self.after_fork()
        _budgets.add(self)

    def after_fork(self) -> None:
        """Forget what was sent: it is the parent's to tell."""
        self._lock = threading.Lock()
        self._memories: dict[str, _Memory] = {}

    def take(
        self, credential: str, limit_per_minute: int, priority: Priority = Priority.READ
    ) -> float:
        """Take one request from the budget; return 0.0, or the seconds to wait (nothing taken).

        `credential` is stored as a digest only.
        """
        memory = self._memory(credential)
        with self._lock:
            memory.asking += 1
            memory.limit = limit_per_minute
            parameters = {
                "credential": _digest(credential),
                "per_minute": limit_per_minute,
                "stated": memory.stated == limit_per_minute,
                "priority": int(priority),
                "generation": memory.generation,
                "taken": memory.taken,
                "at": self._at(),
            }
        try:
            wait, generation, taken = self._database.run(lambda c: self._ask(c, parameters, memory))
            with self._lock:
                memory.take_note(generation, taken)
                if wait <= 0:
                    memory.add()
        finally:
            with self._lock:
                memory.asking -= 1
        return max(0.0, wait)

    def _ask(
        self, connection: Connection, parameters: dict[str, Any], memory: _Memory
    ) -> tuple[float, int, int]:
        wait, generation, taken = connection.execute(_TAKE, parameters).one()
        if wait is None:
            with self._lock:
                sent = memory.sent()
                # What other threads may have been granted just now: not known here yet.
                sent[0] += memory.asking - 1
                told = memory.told_used()
            declared = {**parameters, "sent": sent, "told_used": told}
            wait, generation, taken = connection.execute(_DECLARE, declared).one()
        return float(wait), generation, taken

    def told(self, credential: str, limit_per_minute: int, left: int | None) -> None:
        """Note what the broker said of its limit and of what is left of it; asks nobody."""
        memory = self._memory(credential)
        with self._lock:
            memory.learn(limit_per_minute, left)

    def pause(self, credential: str, seconds: float) -> None:
        """Grant nothing for `seconds` from now, on PostgreSQL's clock; a longer pause stays."""
        memory = self._memory(credential)
        with self._lock:
            own = sum(memory.sent())
        make = {
            "credential": _digest(credential),
            "per_minute": memory.limit,
            "own": own,
            "at": self._at(),
        }
        pause = {"credential": _digest(credential), "seconds": seconds, "at": self._at()}

        def work(connection: Connection) -> None:
            connection.execute(_MAKE, make)
            connection.execute(_PAUSE, pause)

        self._database.run(work)

    def _at(self) -> datetime | None:
        return None if self._moment is None else self._moment()

    def _monotonic(self) -> float:
        return time.monotonic() if self._moment is None else self._moment().timestamp()

    def _memory(self, credential: str) -> _Memory:
        with self._lock:
            if credential not in self._memories:
                self._memories[credential] = _Memory(self._monotonic)
            return self._memories[credential]


_budgets: weakref.WeakSet[PostgresBudget] = weakref.WeakSet()


def _after_fork() -> None:
    for each in list(_budgets):
        each.after_fork()


os.register_at_fork(after_in_child=_after_fork)


def _digest(credential: str) -> str:
    return hashlib.sha256(f"marketdata:{credential}".encode()).hexdigest()[:32]
