"""Bugs that the model must find, seeded by patching the library for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Final
from unittest.mock import patch

import numpy as np

from marketdata import codec, keeping, planning
from marketdata.brokers.alpaca import AlpacaBroker
from marketdata.cache import redis_cache, scripts
from marketdata.calendars import TradingCalendar
from marketdata.clock import Deadline
from marketdata.errors import BrokerError
from marketdata.protocols import (
    BarsPage,
    BarsRequest,
    BeforeCommit,
    CachedBlock,
    Capabilities,
    Commit,
)
from marketdata.store import rows, writing
from marketdata.store.observed import Decision, Observed, decide
from marketdata.types import MINUTE, Bars, Bools, SeriesKey, Timeframe


@contextmanager
def coverage_committed_before_bars() -> Iterator[None]:
    """Coverage in a transaction of its own, bars in the next."""
    commit = writing.BarWriter.commit

    def in_two(
        self: writing.BarWriter,
        commits: Sequence[Commit],
        before_commit: BeforeCommit | None = None,
    ) -> dict[SeriesKey, int]:
        commit(self, [replace(c, bars=Bars.empty(), withdrawn=None) for c in commits])
        return commit(self, commits, before_commit)

    with patch.object(writing.BarWriter, "commit", in_two):
        yield


@contextmanager
def revision_guard_removed() -> Iterator[None]:
    """Whatever is committed last counts, whenever it was asked for."""

    def without(new: Observed, stored: Observed, noted: Bools, *_: Any) -> Decision:
        oldest = replace(stored, revision=np.zeros(len(stored), np.int64))
        return decide(new, oldest, noted, lambda n, t: np.zeros(len(t), np.int64))

    unguarded = rows._UPSERT.replace("excluded.revision > t.revision", "true")
    assert unguarded != rows._UPSERT
    with patch.object(writing, "decide", without), patch.object(rows, "_UPSERT", unguarded):
        yield


@contextmanager
def forming_bar_stored() -> Iterator[None]:
    """A bar counts as closed while it forms."""

    def frontier(
        calendar: TradingCalendar, base: Timeframe, caps: Capabilities, now_us: int
    ) -> int:
        if base.intraday:
            return now_us - now_us % MINUTE + MINUTE
        return calendar.session_span(calendar.session_at(now_us), "daily").end

    with patch.object(planning, "frontier", frontier):
        yield


@contextmanager
def failed_page_recorded() -> Iterator[None]:
    """A walk that fails proves all that was asked."""
    pages = AlpacaBroker.pages

    def proving(self: AlpacaBroker, request: BarsRequest, deadline: Deadline) -> Iterator[BarsPage]:
        try:
            yield from pages(self, request, deadline)
        except BrokerError:
            yield BarsPage({}, dict.fromkeys(request.symbols, request.span))
            raise

    with patch.object(AlpacaBroker, "pages", proving):
        yield


@contextmanager
def cache_written_before_the_store() -> Iterator[None]:
    """Redis serves a page before PostgreSQL has it."""
    commit = keeping.PageKeeper._commit

    def cached_first(self: keeping.PageKeeper, commits: Sequence[Commit]) -> None:
        for each in commits:
            revision = self._revisions[each.key] + 1
            block = CachedBlock(each.covered, revision, each.bars, None, each.observed_us)
            self._cache.raise_floor({each.key: revision})
            self._cache.put({each.key: block}, {each.key: 600.0})
        commit(self, commits)

    with patch.object(keeping.PageKeeper, "_commit", cached_first):
        yield


@contextmanager
def feed_left_out_of_the_key() -> Iterator[None]:
    """Blocks of all feeds of a symbol are one in Redis."""
    base_name, checksum = scripts.base_name, codec._owner_checksum

    def name_of_all(key: SeriesKey, base: Timeframe | None, epoch: int) -> str:
        return base_name(key._replace(feed="any"), base, epoch)

    def checksum_of_all(key: SeriesKey, base: Timeframe | None) -> int:
        return checksum(key._replace(feed="any"), base)

    with ExitStack() as patched:
        patched.enter_context(patch.object(redis_cache, "base_name", name_of_all))
        patched.enter_context(patch.object(codec, "_owner_checksum", checksum_of_all))
        yield


MUTATIONS: Final[Mapping[str, Callable[[], AbstractContextManager[None]]]] = {
    each.__name__: each
    for each in (
        coverage_committed_before_bars,
        revision_guard_removed,
        forming_bar_stored,
        failed_page_recorded,
        cache_written_before_the_store,
        feed_left_out_of_the_key,
    )
}
