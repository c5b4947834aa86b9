"""Keeps what a walk brings: each page through the quality gates, then bars and coverage in one commit."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from marketdata import planning
from marketdata.calendars import TradingCalendar
from marketdata.clock import Clock, Deadline
from marketdata.planning import Fetch
from marketdata.protocols import (
    BarCache,
    BarsPage,
    BarStore,
    Broker,
    Commit,
    ReadRequest,
    SeriesState,
)
from marketdata.quality import gate_all, withdrawn_labels
from marketdata.spans import Span, intersect
from marketdata.types import Bars, SeriesKey
from marketdata.verdicts import Verdicts

log = logging.getLogger("marketdata.fetching")

_NO_BARS: Final = Bars.empty()


@dataclass(slots=True)
class FetchTrace:
    """What fetching did for one call."""

    walks: int = 0
    pages: int = 0
    bars: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    flagged: int = 0
    unknown: set[str] = field(default_factory=set)
    unverified: set[str] = field(default_factory=set)
    waited: int = 0
    fetched: set[SeriesKey] = field(default_factory=set)
    withdrawn: int = 0
    """Stored bars that a final answer no longer has."""
    suspicious: int = 0
    """Series of which a final answer lacked so many bars that they were kept."""
    longest: int = 0
    """Length of the longest span fetched, microseconds."""

    def add(self, more: FetchTrace) -> None:
        """Add what another read did. What it says of symbols (`unknown`, `unverified`) is left out:
        those may be other ones."""
        self.walks += more.walks
        self.pages += more.pages
        self.bars += more.bars
        self.rejected.update(more.rejected)
        self.flagged += more.flagged
        self.waited += more.waited
        self.fetched |= more.fetched
        self.withdrawn += more.withdrawn
        self.suspicious += more.suspicious
        self.longest = max(self.longest, more.longest)


@dataclass(frozen=True, slots=True)
class Stored:
    """One commit that was made, and between which revisions of its series."""

    commit: Commit
    previous: int
    """The series' revision that this walk knew before."""
    revision: int
    newest: bool
    """Whether the provider was asked later than for anything stored of the series before, so that
    every bar of the commit counts."""

    @property
    def alone(self) -> bool:
        """Whether nobody else has committed to the series between the two revisions."""
        return self.revision - self.previous <= 1


OnStored = Callable[[Sequence[Stored]], None]


class Tiers(NamedTuple):
    """What fetching works on."""

    store: BarStore
    cache: BarCache
    broker: Broker
    verdicts: Verdicts
    clock: Clock
    calendar: Callable[[], TradingCalendar]


class PageKeeper:
    """Gates and commits the pages of one walk: the moment it is made is that of asking."""

    def __init__(
        self,
        tiers: Tiers,
        fetch: Fetch,
        states: Mapping[SeriesKey, SeriesState],
        deadline: Deadline,
        trace: FetchTrace,
        on_stored: OnStored | None,
    ) -> None:
        self._store = tiers.store
        self._cache = tiers.cache
        self._verdicts = tiers.verdicts
        self._calendar = tiers.calendar
        self._fetch = fetch
        self._states = states
        self._keys = {key.symbol: key for key in states}
        self._deadline = deadline
        self._trace = trace
        self._on_stored = on_stored
        caps = tiers.broker.capabilities(next(iter(states)).feed)
        now_us = tiers.clock.now_us()
        # What others see later with a right clock must count as later.
        self._observed = now_us - caps.clock_ahead
        self._edge = planning.frontier(self._calendar(), fetch.base, caps, now_us)
        self._delay = caps.settle_delay if fetch.base.intraday else caps.daily_settle_delay
        self._settled_now = now_us - self._delay
        self._provider = tiers.broker.provider
        self._revisions = {key: state.revision for key, state in states.items()}
        self._covered: dict[Span, Span] = {}
        self._seen: set[str] = set()
        self._garbled: set[str] = set()
        self._open = set(self._keys)

    @property
    def finished(self) -> bool:
        """Whether everything asked is proven or refused."""
        return not self._open

    def keep(self, page: BarsPage) -> int:
        """Commit what the page proves; return the number of bars kept."""
        for symbol, words in page.refused.items():
            log.warning("%s refuses symbol %s: %s", self._provider, symbol, words)
            self._trace.unknown.add(symbol)
            self._open.discard(symbol)
        self._trace.rejected.update(page.rejected)
        self._seen.update(s for s, bars in page.bars.items() if len(bars))
        proven_here = [s for s in sorted(page.proven) if s in self._keys]
        unknown = self._unknown(proven_here)
        commits = self._commits([s for s in proven_here if s not in unknown], page)
        for symbol, proven in page.proven.items():
            if proven.end >= self._fetch.span.end:
                self._open.discard(symbol)
        if commits:
            self._commit(self._without_withdrawn(commits, page))
        kept = sum(len(c.bars) for c in commits)
        self._trace.bars += kept
        return kept

    def _commit(self, commits: Sequence[Commit]) -> None:
        revisions = self._store.commit(commits, before_commit=self._cache.raise_floor)
        if self._on_stored is not None:
            known = self._revisions
            self._on_stored(
                [
                    Stored(c, known[c.key], revisions[c.key], self._asked_later(c.key))
                    for c in commits
                ]
            )
        self._revisions.update(revisions)

    def _without_withdrawn(self, commits: Sequence[Commit], page: BarsPage) -> list[Commit]:
        """Name the stored bars that a final answer no longer has: those of a session read again, and
        those that ride along with a gap beside them, which count as final from then on too.

        An answer in which anything could not be read proves no bar gone, and neither does one
        that lacks more than a provider ever withdraws: then what is stored stays.
        """
        if page.rejected:
            return list(commits)
        calendar = self._calendar()
        final_until = planning.settling(calendar, self._fetch.base, self._observed).final_until
        asked = []
        for commit in commits:
            span = page.proven[commit.key.symbol].clip(Span(0, min(self._edge, final_until)))
            known = intersect(self._states[commit.key].coverage, [span])
            if known and not span.empty and commit.key.symbol not in self._garbled:
                asked.append(ReadRequest(commit.key, Span(known[0].start, known[-1].end)))
        stored = {key: bars for key, (_, bars) in self._store.read(asked).items()}
        given = {c.key: c.bars.timestamp for c in commits}
        gone = withdrawn_labels(stored, given, calendar)
        self._trace.withdrawn += sum(len(labels) for labels in gone.sure.values())
        self._trace.suspicious += len(gone.suspicious)
        if gone.suspicious:
            log.warning(
                "%d bars of %d series are missing in a final answer and stay stored, first %s",
                gone.kept, len(gone.suspicious), gone.suspicious[0],
            )  # fmt: skip
        return [
            replace(c, withdrawn=gone.sure[c.key]) if c.key in gone.sure else c for c in commits
        ]

    def _asked_later(self, key: SeriesKey) -> bool:
        # Revisions count milliseconds: of two observations in the same one the first stays.
        seen = self._states[key].fetched_us
        return seen is None or self._observed // 1000 > seen // 1000

    def _unknown(self, symbols: Sequence[str]) -> set[str]:
        """Ask about those that have no bars now and never had any; return what does not exist."""
        doubtful = [
            s
            for s in symbols
            if s not in self._seen and self._states[self._keys[s]].first_bar is None
        ]
        found = self._verdicts.of(doubtful, self._deadline)
        unknown = {s for s, known in found.items() if known is False}
        self._trace.unknown |= unknown
        self._trace.unverified |= {s for s, known in found.items() if known is None}
        return unknown

    def _commits(self, symbols: Sequence[str], page: BarsPage) -> list[Commit]:
        """Return what the page proves of each symbol, with the bars that may be kept."""
        calendar = self._calendar()
        base = self._fetch.base
        reports = gate_all(
            {symbol: page.bars.get(symbol, _NO_BARS) for symbol in symbols},
            span=self._fetch.span,
            timeframe=base,
            calendar=calendar,
            now_us=self._edge,
        )
        settled = planning.settling(calendar, base, self._observed)
        commits: list[Commit] = []
        for symbol, report in reports.items():
            if report.rejected:
                self._garbled.add(symbol)
                self._trace.rejected.update(report.rejected)
                log.warning("%s: rejected bars %s", self._keys[symbol], dict(report.rejected))
            self._trace.flagged += report.flagged
            proven = page.proven[symbol]
            covered = self._recordable(proven)
            bars = report.bars.within(Span(proven.start, min(proven.end, self._edge)))
            if covered.empty and not len(bars):
                continue
            commits.append(
                Commit(
                    key=self._keys[symbol],
                    bars=bars,
                    covered=covered,
                    observed_us=self._observed,
                    settled_until=settled.settled_until,
                    final_until=settled.final_until,
                    sealed=self._fetch.sealed,
                    delay=self._delay,
                )
            )
        return commits

    def _recordable(self, proven: Span) -> Span:
        known = self._covered.get(proven)
        if known is None:
            known = self._covered[proven] = planning.recordable(
                proven, self._calendar(), self._fetch.base, self._edge, self._settled_now
            )
        return known
