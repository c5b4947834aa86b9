"""Which symbols the algorithms need: leases by owner, renewed while their programs live.

::

    md.subscribe -> LeaseKeeper --- every 5 minutes --> SubscriptionManager -> PostgreSQL: leases
                                                             |                     |
    aggregator  <- wanted() <--------------------------------+--- Redis mirror <---+

A symbol is wanted while any owner has a live lease on it. Leases run on PostgreSQL's clock: of a
program that was killed they run out, whatever became of it. A row is a lease of one *holder* (a
running client) for one *owner* (a name); a client ends its own leases when it is closed, an
unsubscribe ends the owner's, and neither touches another owner's.
"""

from __future__ import annotations

import getpass
import logging
import os
import socket
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from marketdata.errors import RequestError
from marketdata.store.subscriptions import Change, Held, Lease, Subscribed
from marketdata.types import Timeframe

if TYPE_CHECKING:
    from marketdata.cache.subscriptions import SubscriptionMirror
    from marketdata.store.subscriptions import PostgresSubscriptions

log = logging.getLogger("marketdata.subscriptions")

LEASE: Final = 900.0
"""Seconds a lease lasts; renewed three times as often while its client lives."""
PRIORITIES: Final = range(-100, 101)
_OWNER_LENGTH: Final = 200
_ORDER: Final = {timeframe: at for at, timeframe in enumerate(Timeframe)}


@dataclass(frozen=True, slots=True)
class Subscription:
    """What `Client.subscribe` made or renewed."""

    owner: str
    timeframe: Timeframe
    symbols: tuple[str, ...]
    """Canonical, without repeats, in the order given."""
    priority: int
    lease: float
    """Seconds for which it outlives a client that is killed."""


@dataclass(frozen=True, slots=True)
class ReconcileReport:
    """What one reconciliation found."""

    wanted: int
    """Symbols and timeframes with a live lease."""
    expired: dict[str, int] = field(default_factory=dict)
    """Leases that ran out, by owner."""

    def summary(self) -> dict[str, str | int | float]:
        """Return the counts: ``wanted``, ``expired`` and ``owners_expired``."""
        return {
            "wanted": self.wanted,
            "expired": sum(self.expired.values()),
            "owners_expired": len(self.expired),
        }


class SubscriptionManager:
    """Who wants which symbols. Thread-safe; every method may raise `StoreError`, none `CacheError`.

    Symbols and timeframes are canonical here: `Client.subscribe` and the command line see to it.
    """

    def __init__(self, store: PostgresSubscriptions, mirror: SubscriptionMirror) -> None:
        self._store = store
        self._mirror = mirror

    # ------------------------------------------------------------------------------ reading

    def wanted(self) -> list[Subscribed]:
        """Return every symbol and timeframe that somebody wants, each once: the highest priority
        first, then by timeframe and symbol. From Redis where that is sure to be right."""
        groups = self._mirror.get()
        if groups is None:
            return self._from_store()
        return _ordered(
            Subscribed(symbol, Timeframe(name), priority)
            for name, symbols, priorities in groups
            for symbol, priority in zip(symbols, priorities, strict=True)
        )

    def _from_store(self) -> list[Subscribed]:
        token = self._mirror.begin()
        found, seconds = self._store.wanted()
        grouped: dict[str, tuple[list[str], list[int]]] = {}
        for symbol, timeframe, priority in found:
            symbols, priorities = grouped.setdefault(timeframe.value, ([], []))
            symbols.append(symbol)
            priorities.append(priority)
        self._mirror.put(token, [(name, *columns) for name, columns in grouped.items()], seconds)
        return _ordered(found)

    def held(self, owner: str | None = None) -> list[Held]:
        """Return the live subscriptions of one owner or of all, by owner, timeframe and symbol."""
        return self._store.held(owner)

    # ----------------------------------------------------------------------------- changing

    def subscribe(
        self,
        owner: str,
        symbols: Sequence[str],
        timeframe: Timeframe,
        *,
        holder: str,
        priority: int = 0,
        lease: float = LEASE,
    ) -> Subscription:
        """Make or renew the leases of one holder, for `lease` seconds. Idempotent."""
        self._store.put(owner, holder, timeframe.value, symbols, priority, lease)
        self._mirror.forget()
        return Subscription(owner, timeframe, tuple(symbols), priority, lease)

    def renew(self, leases: dict[Lease, int], lease: float = LEASE) -> set[Lease]:
        """Extend leases, given with their priority; return those that live. The others were ended
        by another client of their owner."""
        return self._store.renew(leases, lease)

    def release(self, leases: Sequence[Lease]) -> None:
        """End the leases of these owners' holders, and no others."""
        if leases:
            self._store.release({each.owner for each in leases}, {each.holder for each in leases})
            self._mirror.forget()

    def unsubscribe(
        self, owner: str, symbols: Sequence[str] | None = None, timeframe: Timeframe | None = None
    ) -> list[tuple[str, str]]:
        """End all leases of `owner` on `symbols` and `timeframe` (None: all), pinned ones and those
        of other clients too; return the (symbol, timeframe) pairs that this ended. Idempotent."""
        ended = self._store.remove(owner, symbols, timeframe and timeframe.value)
        self._mirror.forget()
        return sorted(ended)

    def pin(
        self,
        owner: str,
        symbols: Sequence[str],
        timeframe: Timeframe,
        *,
        priority: int = 0,
        dry_run: bool = False,
    ) -> Change:
        """Add to the owner's symbols of this timeframe, pinned; return what changes. With `dry_run`
        nothing does."""
        return self._pin(owner, symbols, timeframe, priority, replace=False, dry_run=dry_run)

    def replace(
        self,
        owner: str,
        symbols: Sequence[str],
        timeframe: Timeframe,
        *,
        priority: int = 0,
        dry_run: bool = False,
    ) -> Change:
        """Make the owner's set of this timeframe equal to `symbols`, all pinned, in one transaction;
        return what changes. With `dry_run` nothing does."""
        return self._pin(owner, symbols, timeframe, priority, replace=True, dry_run=dry_run)

    def _pin(
        self,
        owner: str,
        symbols: Sequence[str],
        timeframe: Timeframe,
        priority: int,
        *,
        replace: bool,
        dry_run: bool,
    ) -> Change:
        change = self._store.pin(
            owner, timeframe.value, symbols, priority, replace=replace, dry_run=dry_run
        )
        if not dry_run:
            self._mirror.forget()
        return change

    def reconcile(self) -> ReconcileReport:
        """Delete leases that ran out and mirror what is left; due every five minutes."""
        expired = self._store.expire()
        self._mirror.forget()
        wanted = self._from_store()
        for owner, count in expired.items():
            log.info("%d leases of %s ran out", count, owner)
        return ReconcileReport(len(wanted), expired)


def _ordered(found: Iterable[Subscribed]) -> list[Subscribed]:
    return sorted(found, key=lambda s: (-s.priority, _ORDER[s.timeframe], s.symbol))


# ---------------------------------------------------------------------------------------- owners


def default_owner() -> str:
    """Return ``user@host/program``, by which this program's subscriptions go unless named."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}/{_program()}"[:_OWNER_LENGTH]


def _program() -> str:
    script = Path(sys.argv[0]) if sys.argv and sys.argv[0] not in ("", "-", "-c", "-m") else None
    if script is None:
        return "python"
    return script.parent.name if script.name == "__main__.py" else script.name


def owner_of(owner: object) -> str:
    """Return the owner a call names; None is this program.

    Raises
    ------
    RequestError
        Not a name; a retry does not help.
    """
    if owner is None:
        return default_owner()
    if (
        not isinstance(owner, str)
        or not owner.strip()
        or not owner.isprintable()
        or len(owner) > _OWNER_LENGTH
    ):
        raise RequestError(
            f"owner={owner!r:.80} is not a name",
            cure=f'give a name of 1 to {_OWNER_LENGTH} characters, such as "my-strategy"',
        )
    return owner.strip()


def priority_of(priority: object) -> int:
    """Return the priority a call names.

    Raises
    ------
    RequestError
        Not a whole number from -100 to 100; a retry does not help.
    """
    if isinstance(priority, bool) or not isinstance(priority, int) or priority not in PRIORITIES:
        raise RequestError(
            f"priority={priority!r:.80} is not a priority",
            cure="give a whole number from -100 to 100; what is higher is fetched first",
        )
    return priority
