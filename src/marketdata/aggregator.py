"""Keeps the subscribed series fresh: one cycle reads what is missing by now, and no more.

::

    wanted -> stored series -> states -> freshness.work -> fetches, a few at a time (walks)
           -> each one committed to PostgreSQL page by page, its blocks in Redis grown (live_blocks)
           -> indicators of what is new
           -> one notice when the newest bars of all are there
           -> blocks that Redis has lost, and history that indicators lack, as far as there is time

A cycle remembers nothing that matters: what it failed to do, the next one finds undone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from marketdata import freshness
from marketdata.cycle_report import CycleReport, CycleTally, Failure
from marketdata.errors import MarketDataError
from marketdata.keeping import Stored
from marketdata.live_blocks import LiveBlocks
from marketdata.pausing import (
    CYCLE_BEFORE_BLOCKS,
    CYCLE_BEFORE_INDICATORS,
    CYCLE_BEFORE_NOTICE,
    pause_point,
)
from marketdata.planning import Fetch
from marketdata.protocols import Capabilities
from marketdata.types import Bars, SeriesKey, Timeframe
from marketdata.walks import Walked, Walks

if TYPE_CHECKING:
    from marketdata.wiring import Runtime

log = logging.getLogger("marketdata.aggregator")

Wanted = Callable[[], Sequence[tuple[Any, ...]]]
Notify = Callable[[Iterable[SeriesKey], int], object]

_ROUNDS: Final = 3
"""How often a cycle plans at most."""
SET_ASIDE: Final = 900.0
"""Seconds for which a symbol that the broker refuses or does not know is not asked for again."""
NEWS_AT_ONCE: Final = 2500
"""Series of which the indicators are told together: many at once cost each less, and the first
are done while the last are still being fetched."""


class Indicators(Protocol):
    """What keeps the indicators of live series; `indicator_updates.IndicatorUpdater` is one."""

    def update(
        self, closed: Mapping[SeriesKey, Bars], revisions: Mapping[SeriesKey, tuple[int, int]]
    ) -> int:
        """Bring values up to date with new and changed bars of stored series, empty where coverage
        alone has grown; `revisions` are those before and after their commits. Return the number
        of series updated."""
        ...

    def fill(self, stop: threading.Event, seconds: float) -> int:
        """Get the history that new series wait for; return the number of series begun."""
        ...


class _News:
    """What indicators and listeners have not been told yet."""

    def __init__(self) -> None:
        self.bars: dict[SeriesKey, Bars] = {}
        self.revisions: dict[SeriesKey, tuple[int, int]] = {}
        self.closed: dict[SeriesKey, int] = {}
        """Series with new bars, and up to when they are stored."""

    def add(self, key: SeriesKey, bars: Bars, steps: Sequence[Stored]) -> None:
        self.bars[key] = bars
        if all(step.alone for step in steps):
            self.revisions[key] = steps[0].previous, steps[-1].revision
        if len(bars):
            self.closed[key] = steps[-1].commit.covered.end


class Aggregator:
    """Reads the newest bars of every wanted series and brings them into all tiers.

    Parameters
    ----------
    runtime : Runtime
        The stack to work on; not closed.
    stop : threading.Event
        Ends a cycle early: requests under way finish their page, nothing else begins.
    wanted : callable, optional
        Returns the distinct live subscriptions, each beginning with symbol and timeframe, the most
        urgent first; those of the runtime by default.
    indicators : Indicators, optional
        Told of all that was stored.
    notify : callable, optional
        Takes stored series with new bars, and the instant up to which they are stored; the
        runtime's notices by default.
    history : int
        Newest regular bars that a series gets at once: the default call's, or what indicators rest
        on.
    """

    def __init__(
        self,
        runtime: Runtime,
        stop: threading.Event,
        *,
        wanted: Wanted | None = None,
        indicators: Indicators | None = None,
        notify: Notify | None = None,
        history: int = freshness.BLOCK_BARS,
    ) -> None:
        self._runtime = runtime
        self._stop = stop
        self._history = max(history, freshness.BLOCK_BARS)
        self._wanted = runtime.subscriptions.wanted if wanted is None else wanted
        self._indicators = indicators
        self._notify = runtime.notices.publish_closed if notify is None else notify
        self._walks = Walks(runtime.fetcher, stop, runtime.settings.timeout)
        self._blocks = LiveBlocks(runtime)
        self._aside: dict[SeriesKey, float] = {}
        self._instruments: frozenset[str] = frozenset()

    def cycle(self) -> CycleReport:
        """Bring every wanted series up to date, as far as time and broker allow.

        What fails is in the report, and found undone by the next cycle. A cycle takes two thirds
        of the time until the next one at most, and a request longer.

        Raises
        ------
        StoreError
            PostgreSQL does not answer: nothing can be known or kept; a retry can help.
        """
        runtime, tally = self._runtime, CycleTally()
        now_us = runtime.clock.now_us()
        poll = self._poll()
        ends = tally.began + poll * 2 / 3
        with tally.stage("wanted"):
            keys, unknown = self._keys()
        rest: Sequence[SeriesKey] = keys
        for _ in range(_ROUNDS):
            rest = self._work_off(rest, tally, ends)
            if not rest or self._stop.is_set():
                break
        tally.postponed += bool(rest)  # what somebody else was fetching all the while
        with tally.stage("blocks"):
            self._blocks.refresh(tally, self._stop, poll / 30)
        with tally.stage("history"):
            self._fill(tally, min(poll / 4, ends - time.monotonic()))
        unknown |= {key.symbol for key in self._aside}
        stopped = self._stop.is_set()
        return tally.report(now_us, len(keys), tuple(sorted(unknown)), stopped=stopped)

    # ---------------------------------------------------------------------------- planning

    def _keys(self) -> tuple[list[SeriesKey], set[str]]:
        """Return the stored series behind the subscriptions, and the symbols left out for now."""
        runtime = self._runtime
        caps, feed = self._caps(), runtime.source.feed
        now = time.monotonic()
        self._aside = {key: until for key, until in self._aside.items() if until > now}
        keys: dict[SeriesKey, None] = {}
        wanted = [(symbol, timeframe) for symbol, timeframe, *_ in self._wanted()]
        names = dict.fromkeys(symbol for symbol, _ in wanted)
        changed = runtime.identities.changed(runtime.provider, names)
        for symbol, timeframe in wanted:
            base = caps.bases[Timeframe(timeframe)][0].base
            # Under today's name, and as long as its last bars may be corrected under the old one.
            trades_as = [symbol]
            if symbol in changed:
                trades_as = runtime.identities.live(runtime.provider, [symbol])
            for name in trades_as:
                keys[SeriesKey(runtime.provider, feed, name, base)] = None
        self._instruments = frozenset(names)
        known = [key for key in keys if key not in self._aside]
        unknown = set(runtime.verdicts.remembered_unknown([key.symbol for key in known]))
        return [key for key in known if key.symbol not in unknown], unknown

    def _work_off(
        self, keys: Sequence[SeriesKey], tally: CycleTally, ends: float
    ) -> list[SeriesKey]:
        """Plan and fetch; return the series to plan again: those that somebody else was fetching,
        or all where the broker has just taught us a longer delay."""
        runtime = self._runtime
        caps = self._caps()
        with tally.stage("planning"):
            states = runtime.identities.closed(runtime.store.states(keys), self._instruments)
            work = freshness.work(
                states, runtime.calendar(), caps, runtime.clock.now_us(), self._history
            )
            tally.due.update(key for fetch in (*work.urgent, *work.later) for key in fetch.keys)
        elsewhere: list[SeriesKey] = []
        for part in (work.urgent, work.later):
            news = _News()
            with tally.stage("fetching"):
                for done in self._walks.run(part, ends):
                    self._take(done, tally, news)
                    if done.trace.waited and done.error is None:
                        elsewhere += [k for k in done.fetch.keys if k not in done.trace.fetched]
            self._update_indicators(news, tally)
            with tally.stage("notice"):
                self._announce(news)
            if self._caps().settle_delay > caps.settle_delay:
                tally.failed.clear()
                return list(keys)
        return elsewhere

    def _caps(self) -> Capabilities:
        return self._runtime.broker.capabilities(self._runtime.source.feed)

    def _poll(self) -> float:
        """Return the seconds until the next cycle, about."""
        runtime = self._runtime
        is_open = runtime.calendar().is_open(runtime.clock.now_us())
        return runtime.settings.poll if is_open else runtime.settings.poll_after_hours

    # -------------------------------------------------------------------------- passing on

    def _take(self, done: Walked, tally: CycleTally, news: _News) -> None:
        """Note what became of one fetch, and bring what it stored into the cache."""
        if done.asked and not (done.postponed and not done.trace.walks):
            tally.fetched(done.trace)
        tally.postponed += done.postponed
        aside = time.monotonic() + SET_ASIDE
        for key in done.fetch.keys:
            if key.symbol in done.trace.unknown:
                self._aside[key] = aside
        if done.error is not None:
            self._note_failure(done.fetch, done.error, tally)
            if done.spoilt and len(done.fetch.keys) == 1:
                self._aside[done.fetch.keys[0]] = aside
        if not done.stored:
            return
        committed: dict[SeriesKey, list[Stored]] = {}
        for each in done.stored:
            committed.setdefault(each.commit.key, []).append(each)
        pause_point(CYCLE_BEFORE_BLOCKS)
        with tally.stage("cache"):
            fresh = self._blocks.grow(committed, tally)
        for key, bars in fresh.items():
            news.add(key, bars, committed[key])
        if len(news.bars) >= NEWS_AT_ONCE:
            self._update_indicators(news, tally)

    def _note_failure(self, fetch: Fetch, error: Exception, tally: CycleTally) -> None:
        log.warning("%d series not updated: %s", len(fetch.keys), error)
        tally.failed.append(Failure.of(fetch, error))

    def _update_indicators(self, news: _News, tally: CycleTally) -> None:
        bars, revisions = news.bars, news.revisions
        news.bars, news.revisions = {}, {}
        tally.changed.update(key for key, own in bars.items() if len(own))
        if not bars or self._indicators is None:
            return
        pause_point(CYCLE_BEFORE_INDICATORS)
        with tally.stage("indicators"):
            try:
                tally.indicators += self._indicators.update(bars, revisions)
            except Exception as error:
                # They are computed from stored bars: the next update of the series makes it good.
                log.exception("indicators of %d series not updated", len(bars))
                key = next(iter(bars))
                tally.failed.append(
                    Failure(
                        tuple(k.symbol for k in bars), key.timeframe, type(error).__name__,
                        f"indicators: {error}", transient=True,
                    )
                )  # fmt: skip

    def _announce(self, news: _News) -> None:
        """Tell those who wait that new bars are in PostgreSQL and Redis."""
        for base in sorted({key.timeframe for key in news.closed}):
            keys = [key for key in news.closed if key.timeframe is base]
            pause_point(CYCLE_BEFORE_NOTICE)
            try:
                self._notify(keys, max(news.closed[key] for key in keys))
            except MarketDataError as error:
                log.warning("no notice of %d series: %s", len(keys), error)

    def _fill(self, tally: CycleTally, seconds: float) -> None:
        """Spend spare time on the history that indicators wait for."""
        if self._indicators is None or seconds <= 0 or self._stop.is_set():
            return
        try:
            tally.indicators += self._indicators.fill(self._stop, seconds)
        except MarketDataError as error:
            log.warning("no history for indicators: %s", error)
