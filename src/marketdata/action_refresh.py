"""The job that keeps corporate actions fresh: they come late and are corrected for weeks.

Each run asks about every subscribed symbol, and every one whose actions somebody has asked for:
the recent months and what is announced, and once a week everything since the first question. Many
symbols go into one request. What fails for one batch is reported, and the others go on; nothing
is lost by running it twice.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import batched
from typing import TYPE_CHECKING, Final

from marketdata import symbol_search
from marketdata.actions import Actions
from marketdata.clock import Deadline, from_micros
from marketdata.errors import BrokerError, DataUnavailableError, MarketDataError
from marketdata.protocols import RECENT, ActionChange, Broker, Priority
from marketdata.types import DAY

if TYPE_CHECKING:
    from marketdata.wiring import Runtime

log = logging.getLogger("marketdata.actions")

WINDOW: Final = RECENT + 20 * DAY
"""How far back every run asks."""
WHOLE_EVERY: Final = 7 * DAY - DAY // 4
"""A quarter of a day less than a week, so that a run at the same hour counts."""
_BATCH: Final = 500
_SLOW_BATCH: Final = 20
"""Of a broker that is asked symbol by symbol: what is asked is kept after so many."""
_TOLD: Final = 50


@dataclass(frozen=True, slots=True)
class FailedSymbols:
    """Symbols whose actions were not to be had; what is stored of them stays."""

    symbols: tuple[str, ...]
    error: MarketDataError


@dataclass(slots=True)
class ActionsReport:
    """What a refresh did."""

    symbols: int = 0
    """Symbols whose actions were asked for."""
    whole: int = 0
    """Those of them asked about from the beginning."""
    calls: int = 0
    """Requests sent."""
    changes: list[ActionChange] = field(default_factory=list)
    failed: list[FailedSymbols] = field(default_factory=list)
    stopped: bool = False

    def summary(self) -> dict[str, str | int | float]:
        counts = Counter(change.change for change in self.changes)
        return {
            "symbols": self.symbols,
            "whole_history": self.whole,
            "calls": self.calls,
            "new": counts["new"],
            "corrected": counts["corrected"],
            "withdrawn": counts["withdrawn"],
            "failed": sum(len(each.symbols) for each in self.failed),
        }


def refresh_actions(runtime: Runtime, stop: threading.Event) -> ActionsReport:
    """Ask the broker again about the actions of all symbols that matter, and keep what it says.

    Raises
    ------
    BrokerError, DataUnavailableError
        No symbol's actions could be had. Whether a retry helps, the error says.
    StoreError
        PostgreSQL does not answer; what was kept before stays.
    """
    report = ActionsReport()
    for link in runtime.links:
        first = link is runtime.links[0]
        broker = runtime.broker_for(Priority.BACKFILL, link.source)
        many = broker.capabilities(link.source.feed).batch_symbols > 1
        actions = Actions(runtime.action_store, broker, runtime.clock, runtime.calendar)
        provider, before = link.source.provider, _sent(broker)
        subscribed = {each.symbol for each in runtime.subscriptions.wanted()} if first else set()
        batches = _batches(runtime, provider, subscribed, _BATCH if many else _SLOW_BATCH, report)
        for symbols, start in batches:
            if stop.is_set():
                report.stopped = True
                break
            _refresh(actions, provider, symbols, start, runtime.settings.timeout, report)
        if first and not report.stopped:
            # Who is listed under a symbol decides what a symbol given up means by now.
            symbol_search.refresh(runtime, Deadline(runtime.settings.timeout), broker)
        _take_effect(runtime, provider)
        report.calls += _sent(broker) - before
    _tell(report.changes)
    if report.failed and not report.symbols:
        raise report.failed[0].error
    return report


def _take_effect(runtime: Runtime, provider: str) -> None:
    """Make the tables of instruments anew that were made before a rename or an end, known ahead,
    took effect."""
    now_us = runtime.clock.now_us()
    lately = {
        name
        for a in runtime.identity_store.identity_changes(provider)
        if now_us - WINDOW <= a.ex_date <= now_us
        for name in (a.symbol, a.other_symbol)
        if name
    }
    if lately:
        runtime.identities.rebuild(provider, lately)


def _refresh(
    actions: Actions,
    provider: str,
    symbols: Sequence[str],
    start: int,
    timeout: float,
    report: ActionsReport,
) -> None:
    try:
        changes, unreadable = actions.refresh(provider, symbols, start, Deadline(timeout))
    except (BrokerError, DataUnavailableError) as error:
        log.warning("corporate actions of %d symbols not refreshed: %s", len(symbols), error)
        report.failed.append(FailedSymbols(tuple(symbols), error))
        return
    report.symbols += len(symbols)
    report.changes += changes
    if unreadable is not None:
        named = unreadable.facts.get("unreadable")
        report.failed.append(
            FailedSymbols(tuple(named if isinstance(named, list) else symbols), unreadable)
        )


def _batches(
    runtime: Runtime, provider: str, subscribed: set[str], size: int, report: ActionsReport
) -> Iterator[tuple[Sequence[str], int]]:
    """Yield symbols to ask about together, and from which ex-date on.

    First the recent months of all, then the symbols whose whole history is due: what matters
    today does not wait for it.
    """
    now_us = runtime.clock.now_us()
    checks = runtime.store.checks(provider)
    due = {
        symbol: span.start
        for symbol, (span, whole_us) in checks.items()
        if now_us - whole_us > WHOLE_EVERY
    }
    recent = sorted((subscribed | checks.keys()) - due.keys())
    for batch in batched(recent, size):
        yield batch, now_us - WINDOW
    # Those that reach back alike go together: one request has one first day.
    for batch in batched(sorted(due, key=lambda s: (due[s], s)), size):
        report.whole += len(batch)
        yield batch, min(now_us - WINDOW, *(due[s] for s in batch))


def _sent(broker: Broker) -> int:
    sent = broker.health().get("requests_sent")
    return sent if isinstance(sent, int) else 0


def _tell(changes: Sequence[ActionChange]) -> None:
    for each in changes[:_TOLD]:
        day = from_micros(each.ex_date + DAY // 2).date()
        log.info("%s: %s of %s %s", each.symbol, each.kind, day, each.change)
    if len(changes) > _TOLD:
        log.info("%d more corporate actions changed", len(changes) - _TOLD)
