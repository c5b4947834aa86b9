"""Reads instruments, whatever their symbols were: the reader in front of the series' reader.

::

    no identity change among the symbols -> the plain read, and nothing else
    renamed, ended, taken up again       -> each piece under its own symbol, newest first as far as
                                            a limit needs; joined, and labelled as asked
    something had to be fetched, of symbols whose corporate actions were never asked for
                                         -> ask once, and read anew what turns out to be renamed

A symbol that traded under another name is read where its bars are: those before the change under
the old symbol, the later ones under the new one. Weeks and months into which a change falls are
made of the days of both.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from marketdata import caching, resample
from marketdata.actions import FEW, RECHECK, Actions
from marketdata.answers import Answer, SeriesAnswer, Tolerance
from marketdata.bar_history import Resting
from marketdata.calendars import TradingCalendar
from marketdata.clock import Clock, Deadline
from marketdata.corporate_actions import IDENTITY_CHANGES
from marketdata.errors import MarketDataError, StoreError
from marketdata.fetching import Progress
from marketdata.identities import Identities
from marketdata.identity import ALWAYS, Lineage
from marketdata.keeping import FetchTrace
from marketdata.planning import Segments
from marketdata.protocols import ActionStore, Asset, Broker, IdentityStore, SeriesState
from marketdata.queries import BarsQuery
from marketdata.ranges import Window
from marketdata.reader import Reader
from marketdata.spans import Span, subtract
from marketdata.stored_reading import States
from marketdata.types import DAY, HOUR, Bars, SeriesKey, Timeframe
from marketdata.verdicts import Verdicts

log = logging.getLogger("marketdata.identities")

_COURTESY_SECONDS: Final = 5.0
_SETTLED_SECONDS: Final = 1800.0
_FAILED_SECONDS: Final = 60.0
_SILENT: Final = 7 * DAY
"""A series without bars for so long at an end of what was asked for may have been renamed."""
_HISTORY: Final = 28 * DAY
_RECENT: Final = 14 * DAY
_MOST: Final = 500
_TIERS: Final = ("redis", "postgres", "broker")


@dataclass(frozen=True, slots=True)
class _Call:
    """How one read may go about it."""

    deadline: Deadline
    progress: Progress | None
    tolerance: Tolerance | None


@dataclass(frozen=True, slots=True)
class _Step:
    """One stretch of one instrument to read: under one symbol, or a bar across a change."""

    symbol: str
    span: Span
    seam: bool = False


@dataclass(slots=True)
class _Under:
    """What was read of one instrument so far."""

    lineage: Lineage
    steps: list[_Step]
    """To be read, the newest first."""
    missing: int | None
    """Bars still wanted; None without a limit."""
    found: list[SeriesAnswer] = field(default_factory=list)
    """The newest first."""
    read: list[tuple[str, int]] = field(default_factory=list)
    error: MarketDataError | None = None
    """Why a piece cannot be had, in a tolerant read."""
    lost: bool = False
    """Whether that piece is missing altogether."""


class InstrumentReader:
    """Answers `BarsQuery` by instrument; see `Reader`, which reads the series."""

    def __init__(
        self,
        plain: Reader,
        identities: Identities,
        store: IdentityStore,
        actions: Actions,
        action_store: ActionStore,
        broker: Broker,
        verdicts: Verdicts,
        clock: Clock,
        calendar: Callable[[], TradingCalendar],
    ) -> None:
        self._plain = plain
        self._identities = identities
        self._store = store
        self._action_store = action_store
        self._actions = actions
        self._broker = broker
        self._verdicts = verdicts
        self._clock = clock
        self._calendar = calendar
        self._settled: dict[tuple[str, str], float] = {}
        self._asked: dict[tuple[str, str], float] = {}
        self._seen: set[tuple[str, str]] = set()

    def read(
        self,
        query: BarsQuery,
        deadline: Deadline,
        progress: Progress | None = None,
        *,
        tolerance: Tolerance | None = None,
    ) -> Answer:
        """Return the closed bars of `query`, each symbol standing for its instrument.

        Parameters
        ----------
        tolerance : Tolerance, optional
            As of `Reader.read`: an instrument of which one piece cannot be had has failed.

        Raises
        ------
        BrokerError, DataUnavailableError, StoreError
            As `Reader.read`.
        """
        call = _Call(deadline, progress, tolerance)
        if not self._seen.issuperset((query.provider, s) for s in query.symbols):
            self._look_at_store(query.provider, query.symbols)
        changed = self._identities.changed(query.provider, query.symbols, query.as_of_us)
        if changed and self.find_successors(query.provider, list(changed), deadline):
            changed = self._identities.changed(query.provider, query.symbols, query.as_of_us)
        if not changed:
            answer = self._read_plain(query, call)
        else:
            answer = self._by_instrument(query, changed, call)
        if answer.trace.fetched or answer.unknown:
            self._learn(query, answer, deadline)
            self._read_anew(query, answer, changed, call)
        return answer

    def _read_plain(self, query: BarsQuery, call: _Call) -> Answer:
        return self._plain.read(query, call.deadline, call.progress, tolerance=call.tolerance)

    def covered(self, query: BarsQuery, symbols: Sequence[str]) -> list[str]:
        """See `Reader.covered`; a renamed symbol is covered where all its pieces are."""
        changed = self._identities.changed(query.provider, symbols)
        found = set(self._plain.covered(query, [s for s in symbols if s not in changed]))
        for symbol, lineage in changed.items():
            parts = [(s.symbol, s.span) for s in self._steps(query, lineage) if not s.seam]
            if query.window.limit is not None:
                parts = parts[:1]
            if all(
                self._plain.covered(
                    replace(query, window=self._window(query, span, query.window.limit)), [name]
                )
                for name, span in parts
            ):
                found.add(symbol)
        return [s for s in symbols if s in found]

    # The parts of a read that plans and explanations are made of are those of the series.

    def planned_spans(
        self, query: BarsQuery, symbols: Sequence[str], now_us: int
    ) -> dict[str, Span]:
        """See `Reader.planned_spans`."""
        return self._plain.planned_spans(query, symbols, now_us)

    def states(self, query: BarsQuery, symbols: Sequence[str]) -> dict[SeriesKey, SeriesState]:
        """See `Reader.states`."""
        return self._plain.states(query, symbols)

    def segments(
        self, query: BarsQuery, symbol: str, span: Span, states: States, now_us: int
    ) -> Segments:
        """See `Reader.segments`."""
        return self._plain.segments(query, symbol, span, states, now_us)

    # ---------------------------------------------------------------------------- by pieces

    def _by_instrument(
        self, query: BarsQuery, changed: Mapping[str, Lineage], call: _Call
    ) -> Answer:
        """Read the symbols that mean the same at all times, then the others piece by piece."""
        answer = Answer()
        plain = tuple(s for s in query.symbols if s not in changed)
        if plain:
            answer = self._read_plain(replace(query, symbols=plain), call)
        self._verdicts.vouch(p.symbol for lin in changed.values() for p in lin.pieces)
        open_ = {
            symbol: _Under(lineage, self._steps(query, lineage), query.window.limit)
            for symbol, lineage in changed.items()
        }
        while any(under.steps for under in open_.values()):
            self._round(query, open_, answer.trace, call)
        for symbol, under in open_.items():
            if under.error is not None:
                answer.failed[symbol] = under.error
            if not under.lost:
                answer.series[symbol] = self._joined(query, under)
        return answer

    def _steps(self, query: BarsQuery, lineage: Lineage) -> list[_Step]:
        """Return what to read of an instrument, the newest first."""
        window = query.window
        labels = Span(ALWAYS.start if window.start is None else window.start, window.end)
        seams = self._seams(query.timeframe, lineage)
        steps = [
            _Step(piece.symbol, part)
            for piece in lineage.within(labels)
            for part in subtract([piece.span], seams)
        ]
        steps += [
            _Step(lineage.symbol_at(seam.start), seam, seam=True)
            for seam in seams
            if labels.start <= seam.start < labels.end
        ]
        return sorted(steps, key=lambda step: step.span.start, reverse=True)

    def _seams(self, timeframe: Timeframe, lineage: Lineage) -> list[Span]:
        """Return the weeks or months into which a change of symbol falls, ascending."""
        if timeframe not in (Timeframe.WEEK_1, Timeframe.MONTH_1):
            return []
        calendar = self._calendar()
        bins = {
            bin_
            for piece in lineage.pieces[1:]
            if (bin_ := resample.bar_span(piece.span.start, timeframe, calendar)).start
            < piece.span.start
            and not bin_.empty
        }
        return sorted(bins)

    def _round(
        self,
        query: BarsQuery,
        open_: Mapping[str, _Under],
        trace: FetchTrace,
        call: _Call,
    ) -> None:
        """Read the next step of every instrument, or all where nothing counts bars; equal windows
        in one read."""
        reads: dict[tuple[Window, int | None], dict[str, list[_Under]]] = {}
        for under in open_.values():
            steps = under.steps if under.missing is None else under.steps[:1]
            under.steps = under.steps[len(steps) :]
            for step in steps:
                if step.seam:
                    self._take_seam(query, step, under, trace, call)
                    continue
                window = self._window(query, step.span, under.missing)
                ends = None if step.span.end == ALWAYS.end else step.span.end
                alike = reads.setdefault((window, ends), {})
                alike.setdefault(step.symbol, []).append(under)
        for (window, ends), symbols in sorted(
            reads.items(), key=lambda read: read[0][0].end, reverse=True
        ):
            asked = replace(query, symbols=tuple(symbols), window=window, ends_us=ends)
            answer = self._read_plain(asked, call)
            _add(trace, answer.trace, symbols)
            for symbol, waiting in symbols.items():
                for under in waiting:
                    _take(under, symbol, answer)

    def _window(self, query: BarsQuery, span: Span, missing: int | None) -> Window:
        window = query.window
        start = window.start if span.start == ALWAYS.start else span.start
        if start is not None and window.start is not None:
            start = max(start, window.start)
        cut = span.end < window.end
        end = span.end if cut else window.end
        return Window(start, end, missing, explicit_end=cut or window.explicit_end)

    def _take_seam(
        self,
        query: BarsQuery,
        step: _Step,
        under: _Under,
        trace: FetchTrace,
        call: _Call,
    ) -> None:
        """Make one week or month of days under several symbols, if it is closed by now."""
        calendar, caps = self._calendar(), self._broker.capabilities(query.feed)
        base = caps.bases[query.timeframe][0].base
        if step.span.start >= caching.newest_end(query, base, caps, calendar, self._clock.now_us()):
            return
        days = resample.base_span(
            Span(step.span.start, step.span.start + 1), query.timeframe, calendar
        )
        window = Window(days.start, days.end, None, explicit_end=True)
        daily = replace(query, symbols=(step.symbol,), timeframe=Timeframe.DAY_1, window=window)
        answer = self._by_instrument(daily, {step.symbol: under.lineage}, call)
        _add(trace, answer.trace, ())
        found = answer.series.get(step.symbol)
        if found is not None:
            found.bars = resample.resample(
                found.bars, Timeframe.DAY_1, query.timeframe, calendar, query.session
            )
        _take(under, step.symbol, answer)

    def _joined(self, query: BarsQuery, under: _Under) -> SeriesAnswer:
        """Return one instrument's bars as one answer."""
        text = self._identities.text(under.lineage, query.as_of_us)
        if not under.found:
            return SeriesAnswer(Bars.empty(), "postgres", 0, lineage=text)
        ascending = sorted(under.found, key=_first_label)
        return SeriesAnswer(
            Bars.concat([each.bars for each in ascending]),
            max((each.tier for each in under.found), key=_TIERS.index),
            under.found[0].revision,
            next((each.fetched_us for each in under.found if each.fetched_us is not None), None),
            any(each.truncated for each in under.found),
            lineage=text,
            pieces=tuple(sorted(set(under.read))),
            resting=Resting.joined(each.resting for each in under.found),
        )

    # ------------------------------------------------------------------------------ learning

    def learn(
        self, provider: str, feed: str, symbols: Sequence[str], deadline: Deadline
    ) -> dict[str, Lineage]:
        """Ask, where that was not done lately, what has become of symbols that the broker has
        nothing of; return those that mean, or meant, something else. A courtesy: what fails is
        logged."""
        query = BarsQuery(
            provider, feed, tuple(symbols), Timeframe.DAY_1, Window(None, self._clock.now_us(), 1)
        )
        self._learn(query, Answer(unknown=list(symbols)), deadline)
        return self._identities.changed(provider, symbols)

    def _learn(self, query: BarsQuery, answer: Answer, deadline: Deadline) -> None:
        """Ask about the identity of symbols of which something was fetched, or which are unknown,
        where that was never done. A courtesy: what fails is logged."""
        now = time.monotonic()
        names = [
            s
            for s in self._doubtful(query, answer)
            if self._settled.get((query.provider, s), 0.0) <= now
        ]
        if not names:
            return
        until = now + _SETTLED_SECONDS
        brief = Deadline(deadline.cap(_COURTESY_SECONDS))
        try:
            due = self._due(query, answer, names)
            if due:
                self._actions.checked(query.provider, due, self._earliest(query), brief)
            self._look_for_successors(query.provider, names, brief)
        except MarketDataError as error:
            log.info("renames not looked up: %s", error)
            until = now + _FAILED_SECONDS
        for symbol in names:
            self._settled[query.provider, symbol] = until

    def _doubtful(self, query: BarsQuery, answer: Answer) -> list[str]:
        """Return the symbols that may have meant something else in the window.

        A few symbols of which history was fetched all may. Of many, or where only the newest bars
        were fetched, it is those without bars at one end of what was asked for.
        """
        fetched = {key.symbol for key in answer.trace.fetched}
        touched = [
            s
            for s in query.symbols
            if s in answer.unknown
            or not fetched.isdisjoint(self._identities.symbols_behind(query.provider, [s]))
        ]
        window, now_us = query.window, self._clock.now_us()
        history = answer.trace.longest >= _HISTORY or window.end < now_us - _RECENT
        if history and len(touched) <= FEW:
            return touched
        return [
            s
            for s in touched
            if s not in answer.series
            or _is_cut(answer.series[s].bars, window, now_us)
            or self._misses_a_session(answer.series[s].bars, window, now_us)
        ][:_MOST]

    def _due(self, query: BarsQuery, answer: Answer, names: Sequence[str]) -> list[str]:
        """Return the symbols never asked about, and those that have fallen silent since."""
        checks = self._action_store.checked(query.provider, names)
        now_us, earliest = self._clock.now_us(), self._earliest(query)
        due = []
        for symbol in names:
            if symbol not in checks or checks[symbol][0].start > earliest:
                due.append(symbol)
            elif now_us - checks[symbol][1] > RECHECK:
                series = answer.series.get(symbol)
                if series is None or self._misses_a_session(series.bars, query.window, now_us):
                    due.append(symbol)
        return due

    def _misses_a_session(self, bars: Bars, window: Window, now_us: int) -> bool:
        """Whether a whole session has passed without a bar, up to the end of what was asked for."""
        if not len(bars):
            return True
        end = min(window.end, now_us - HOUR)
        following = Span(int(bars.timestamp[-1]) + DAY, end)
        sessions = [] if following.empty else self._calendar().trading_spans(following, "daily")
        return any(session.end < end for session in sessions)

    def _look_at_store(self, provider: str, symbols: Sequence[str]) -> None:
        """Look, the first time that symbols are read here, whether another process has recorded
        since what they mean: what it has stored is read without asking anybody."""
        fresh = [s for s in symbols if (provider, s) not in self._seen]
        try:
            told = self._action_store.actions(provider, fresh, IDENTITY_CHANGES)
        except StoreError as error:
            log.info("identity changes are as last seen: %s", error)
            return
        named = {action.symbol for actions in told.values() for action in actions}
        if named - self._identities.history(provider).symbols:
            self._identities.forget(provider)
        self._seen.update((provider, symbol) for symbol in fresh)

    def find_successors(self, provider: str, symbols: Sequence[str], deadline: Deadline) -> bool:
        """Ask whether another company has taken up symbols that their holders gave up, where nobody
        has asked since; return whether that was looked at. A courtesy: what fails is logged.

        All of such a symbol may have been read under its holder's new name: a read of it that
        fetches nothing has to ask as well, once. Later on the nightly list of assets tells.
        """
        history, now_us = self._identities.history(provider), self._clock.now_us()
        now = time.monotonic()
        vacant = [
            s
            for s in symbols
            if history.is_listed_anew(s, now_us) is None
            and self._asked.get((provider, s), 0) <= now
        ][:FEW]
        if not vacant:
            return False
        until = now + _SETTLED_SECONDS
        try:
            seen = {a.symbol: a.observed_us for a in self._store.assets(provider, vacant)}
            given_up = {
                s: max(p.span.end for p in history.lineage(s, now_us).pieces if p.symbol == s)
                for s in vacant
            }
            never = [s for s in vacant if seen.get(s, ALWAYS.start) < given_up[s]]
            brief = Deadline(deadline.cap(_COURTESY_SECONDS))
            self._look_for_successors(provider, never, brief)
        except MarketDataError as error:
            log.info("not asked who is listed under %s: %s", " ".join(vacant), error)
            until = now + _FAILED_SECONDS
        for symbol in vacant:
            self._asked[provider, symbol] = until
        return True

    def _look_for_successors(
        self, provider: str, symbols: Sequence[str], deadline: Deadline
    ) -> None:
        """Ask whether another company has taken up a symbol that its holder gave up."""
        history, now_us = self._identities.history(provider), self._clock.now_us()
        vacant = [s for s in symbols if history.is_listed_anew(s, now_us) is None]
        if not vacant:
            return
        seen = {a.symbol: a.observed_us for a in self._store.assets(provider, vacant)}
        found: list[Asset] = []
        for symbol in vacant:
            if now_us - seen.get(symbol, -RECHECK) < RECHECK or deadline.expired:
                continue
            verdict = self._broker.verdict(symbol, deadline)
            if verdict.asset is not None:
                found.append(verdict.asset)
            elif verdict.known is False:
                found.append(Asset(symbol, status="inactive"))
        if found:
            self._store.record_assets(provider, found, now_us, complete=False)
            self._identities.forget(provider)

    def _earliest(self, query: BarsQuery) -> int:
        return max(self._broker.capabilities(query.feed).earliest, self._calendar().first)

    def _read_anew(
        self,
        query: BarsQuery,
        answer: Answer,
        before: Mapping[str, Lineage],
        call: _Call,
    ) -> None:
        """Read those symbols again that turn out to mean something else than was read."""
        after = self._identities.changed(query.provider, query.symbols, query.as_of_us)
        other = {s: lineage for s, lineage in after.items() if before.get(s) != lineage}
        if not other:
            return
        again = replace(query, symbols=tuple(other))
        found = self._by_instrument(again, other, call)
        for symbol in other:
            answer.failed.pop(symbol, None)
        answer.failed |= found.failed
        answer.series |= found.series
        answer.unknown = [s for s in answer.unknown if s not in other]
        answer.trace.unknown -= set(other)
        _add(answer.trace, found.trace, other)


def _take(under: _Under, symbol: str, answer: Answer) -> None:
    """Add what a read of one step brought."""
    error, series = answer.failed.get(symbol), answer.series.get(symbol)
    if error is not None:
        under.error, under.lost = error, under.lost or series is None
        under.steps = []
    if series is None:
        return
    under.found.append(series)
    under.read += series.pieces or [(symbol, series.revision)]
    if under.missing is not None:
        under.missing -= len(series.bars)
        if under.missing <= 0 or series.truncated:
            under.steps = []


def _first_label(series: SeriesAnswer) -> int:
    return int(series.bars.timestamp[0]) if len(series.bars) else ALWAYS.start


def _is_cut(bars: Bars, window: Window, now_us: int) -> bool:
    """Whether the bars begin long after what was asked for, or end long before."""
    if not len(bars) or (window.limit is not None and len(bars) < window.limit):
        return True
    start = window.start if window.limit is None else None
    late = start is not None and int(bars.timestamp[0]) > start + _SILENT
    return late or int(bars.timestamp[-1]) < min(window.end, now_us) - _SILENT


def _add(trace: FetchTrace, more: FetchTrace, pieces: Iterable[str]) -> None:
    """Add to a trace what a read of pieces did: that their symbols are unknown to the broker by now
    says nothing of the instrument."""
    trace.add(more)
    trace.unknown |= more.unknown.difference(pieces)
    trace.unverified |= more.unverified.difference(pieces)
