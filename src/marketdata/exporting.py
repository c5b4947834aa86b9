"""What is stored, out to files: symbol by symbol, in bounded memory, exactly as a read gives it.

Bars are those that a read would return, in every timeframe that can be made of what is stored. A
bar made of others is left out where one of its stretches was never asked for: it would be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from marketdata import caching, planning, resample
from marketdata.applied import Applied
from marketdata.bar_history import as_of
from marketdata.calendars import TradingCalendar
from marketdata.clock import Deadline, from_micros
from marketdata.errors import (
    BrokerError,
    DataQualityError,
    DataUnavailableError,
    MarketDataError,
    RequestError,
    UnknownSymbolError,
)
from marketdata.identity import ALWAYS, Piece
from marketdata.planning import Segment
from marketdata.protocols import ReadRequest, SeriesState
from marketdata.queries import BarsQuery, select
from marketdata.ranges import Window
from marketdata.spans import Span, normalise, subtract
from marketdata.types import Adjustment, Bars, SeriesKey, Session, Timeframe

if TYPE_CHECKING:
    from marketdata.files import BarsFile
    from marketdata.wiring import Runtime


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which bars to export."""

    provider: str
    feed: str
    symbols: tuple[str, ...]
    timeframe: Timeframe
    window: Window | None = None
    """Bars labelled in it, without a limit; None is all that is stored, from first to last."""
    session: Session = "extended"
    adjustment: Adjustment = "raw"
    fetch: bool = False
    """Whether gaps are fetched first."""
    as_of_us: int | None = None
    """Bars as they were known at this moment, and had closed by then; None: as they are now."""


@dataclass(slots=True)
class ExportReport:
    """What was written, and what was not there to write."""

    rows: int = 0
    symbols: int = 0
    """Symbols of which bars were written."""
    gaps: dict[str, list[Span]] = field(default_factory=dict)
    """By symbol, the trading time asked for that is not covered."""
    failed: dict[str, MarketDataError] = field(default_factory=dict)
    """Symbols of which a gap could not be fetched, or corporate actions are not known."""

    @property
    def complete(self) -> bool:
        return not self.gaps and not self.failed

    def summary(self) -> dict[str, str | int | float]:
        return {
            "rows": self.rows,
            "symbols": self.symbols,
            "symbols_with_gaps": len(self.gaps),
            "symbols_failed": len(self.failed),
        }


def export(
    runtime: Runtime,
    wanted: Wanted,
    file: BarsFile,
    deadline: Deadline,
    progress: Callable[[ExportReport], None] | None = None,
) -> ExportReport:
    """Write the stored bars of `wanted` to `file`, in the order of its symbols.

    Parameters
    ----------
    deadline : Deadline
        For what is fetched; reading what is stored takes as long as it takes.
    progress : callable, optional
        Called with the report so far after each piece that was written.

    Returns
    -------
    ExportReport
        Gaps and failed symbols are in it, and raise nothing; of a failed symbol there may be
        earlier pieces in the file.

    Raises
    ------
    RequestError
        Fetching was asked for without a window, or from another provider than this one's.
    StoreError
        PostgreSQL failed; a retry helps where it is transient.
    """
    if wanted.fetch:
        _check_fetch(runtime, wanted)
    report = ExportReport()
    for symbol in wanted.symbols:
        before = report.rows
        try:
            for bars in _of_instrument(runtime, wanted, symbol, report, deadline):
                file.write(symbol, bars)
                report.rows += len(bars)
                if progress is not None:
                    progress(report)
        except (
            BrokerError,
            DataQualityError,
            DataUnavailableError,
            UnknownSymbolError,
        ) as error:
            report.failed[symbol] = error
        report.symbols += report.rows > before
    return report


def _check_fetch(runtime: Runtime, wanted: Wanted) -> None:
    if wanted.window is None:
        raise RequestError("what is to be fetched has no beginning", cure="give start or period")
    if wanted.provider != runtime.provider:
        raise RequestError(
            f"{wanted.provider} cannot be asked, this process asks {runtime.provider}",
            cure="export what is stored of it, without fetching",
        )


def _of_instrument(
    runtime: Runtime, wanted: Wanted, symbol: str, report: ExportReport, deadline: Deadline
) -> Iterator[Bars]:
    """Yield the bars of what a symbol means, under whichever symbols they are stored."""
    changed = runtime.identities.changed(wanted.provider, [symbol], wanted.as_of_us)
    pieces = changed[symbol].pieces if symbol in changed else (Piece(symbol, ALWAYS),)
    window, calendar = wanted.window, runtime.calendar()
    labels = ALWAYS
    if window is not None:
        labels = Span(ALWAYS.start if window.start is None else window.start, window.end)
    shown, coarse = wanted, wanted.timeframe in (Timeframe.WEEK_1, Timeframe.MONTH_1)
    if coarse and len(pieces) > 1:
        # A change may fall into a week or month: it is made of the days of both symbols.
        if window is not None and window.start is not None:
            days = resample.base_span(labels, wanted.timeframe, calendar)
            window = replace(window, start=days.start, end=days.end)
        wanted = replace(wanted, timeframe=Timeframe.DAY_1, window=window)
    series = [_Series(runtime, wanted, symbol, report, deadline, piece) for piece in pieces]
    found = (bars for each in series for bars in each.pieces())
    if wanted is shown:
        yield from found
    elif len(days_of_all := Bars.concat(list(found))):
        coarse_bars = resample.resample(
            days_of_all, Timeframe.DAY_1, shown.timeframe, calendar, shown.session
        )
        closed = planning.closed_labels(calendar, shown.timeframe, int(days_of_all.timestamp[-1]))
        yield coarse_bars.within(Span(labels.start, min(labels.end, closed)))
    if not any(each.asked for each in series):
        report.gaps[symbol] = []


class _Series:
    """The bars of one symbol, a year of minutes at a time: 64 bytes a bar, 16 MB at most.

    Parameters
    ----------
    piece : Piece
        Under which symbol they are stored, and when that was.
    """

    def __init__(
        self,
        runtime: Runtime,
        wanted: Wanted,
        symbol: str,
        report: ExportReport,
        deadline: Deadline,
        piece: Piece,
    ) -> None:
        self._runtime = runtime
        self._wanted = wanted
        self._piece = piece
        self.asked = False
        """Whether anything of it was asked for, or is stored."""
        self._symbol = symbol
        self._report = report
        self._deadline = deadline
        self._calendar: TradingCalendar = runtime.calendar()
        self._now_us = runtime.clock.now_us()

    def pieces(self) -> Iterator[Bars]:
        states = self._states()
        labels = self._closed_by_then(self._labels(states))
        if labels.empty:
            return
        self.asked = True
        applied = self._applied(labels.start)
        missing: list[Span] = []
        for part in self._years(labels):
            if self._wanted.fetch:
                self._fetch(part)
                states = self._states()
            for segment in self._segments(part, states, missing):
                bars, holes = self._stored(segment, states, applied)
                missing += holes
                if len(bars):
                    yield bars
        if missing:
            earlier = self._report.gaps.get(self._symbol, ())
            self._report.gaps[self._symbol] = normalise([*earlier, *missing])

    # ------------------------------------------------------------------------- what to read

    def _query(self, span: Span) -> BarsQuery:
        wanted = self._wanted
        window = Window(span.start, span.end, None, explicit_end=True)
        return BarsQuery(
            wanted.provider,
            wanted.feed,
            (self._symbol,),
            wanted.timeframe,
            window,
            wanted.session,
        )

    def _key(self, base: Timeframe) -> SeriesKey:
        return SeriesKey(self._wanted.provider, self._wanted.feed, self._piece.symbol, base)

    def _states(self) -> dict[SeriesKey, SeriesState]:
        return self._runtime.store.states([self._key(base) for base in self._bases()])

    def _bases(self) -> list[Timeframe]:
        """Return the stored timeframes that may answer, the asked one first where it may."""
        target = self._wanted.timeframe
        if self._wanted.provider == self._runtime.provider:
            caps = self._runtime.broker.capabilities(self._wanted.feed)
            return list(dict.fromkeys(option.base for option in caps.bases[target]))
        source = Timeframe.MIN_1 if target.intraday else Timeframe.DAY_1
        return list(dict.fromkeys((target, source)))

    def _labels(self, states: dict[SeriesKey, SeriesState]) -> Span:
        """Return the bars asked for; without a window from the first stored to the last."""
        window, target = self._wanted.window, self._wanted.timeframe
        if window is not None and window.start is not None:
            asked = Span(max(window.start, self._calendar.first), window.end)
            return asked.clip(self._piece.span)
        held = [s for s in states.values() if s.first_bar is not None]
        start = min((s.first_bar for s in held if s.first_bar is not None), default=0)
        last = max((s.last_bar for s in held if s.last_bar is not None), default=-1)
        native = states.get(self._key(target))
        if held and (native is None or native.first_bar is None):
            ends = [s.coverage[-1].end for s in held if s.coverage]
            closed = planning.closed_labels(self._calendar, target, max(ends, default=last))
            start = resample.bar_span(start, target, self._calendar).start
            last = min(last, closed - 1)
        return Span(start, last + 1).clip(self._piece.span)

    def _closed_by_then(self, labels: Span) -> Span:
        """Cut labels to the bars that had closed at the moment asked for."""
        moment = self._wanted.as_of_us
        if moment is None or labels.empty:
            return labels
        theirs = self._wanted.provider == self._runtime.provider
        feed = self._wanted.feed if theirs else self._runtime.source.feed
        caps = self._runtime.broker.capabilities(feed)
        base = self._bases()[0]
        end = caching.newest_end(self._query(labels), base, caps, self._calendar, moment)
        return Span(labels.start, max(labels.start, end))

    def _years(self, labels: Span) -> list[Span]:
        if not self._wanted.timeframe.intraday:
            return [labels]
        first, last = from_micros(labels.start).year, from_micros(labels.end - 1).year
        edges = [self._calendar.midnight_of(date(y, 1, 1)) for y in range(first, last + 1)]
        cuts = [labels.start, *(e for e in edges if labels.start < e < labels.end), labels.end]
        return [Span(*ends) for ends in pairwise(cuts)]

    def _segments(
        self, labels: Span, states: dict[SeriesKey, SeriesState], missing: list[Span]
    ) -> Sequence[Segment]:
        target = self._wanted.timeframe
        if self._wanted.provider == self._runtime.provider:
            found = self._runtime.series_reader.segments(
                self._query(labels), self._piece.symbol, labels, states, self._now_us
            )
            missing += found.too_old
            return found.parts
        base = next((b for b in self._bases() if states[self._key(b)].revision), target)
        asked = labels if base is target else resample.base_span(labels, target, self._calendar)
        return [Segment(base, labels, Span(asked.start, min(asked.end, self._now_us)))]

    def _fetch(self, labels: Span) -> None:
        answer = self._runtime.reader.read(self._query(labels), self._deadline)
        if answer.unknown:
            raise self._runtime.unknown(answer.unknown, self._deadline)

    def _applied(self, start: int) -> Applied:
        """Return the actions that bars from `start` on are adjusted for.

        Raises
        ------
        DataUnavailableError
            Nobody was asked about them for all of the time, or a close is not stored that one of
            them is measured by.
        DataQualityError
            One of them has no unambiguous factor.
        """
        wanted, symbol = self._wanted, self._symbol
        if wanted.adjustment == "raw":
            return Applied()
        if not wanted.fetch:
            asked = self._runtime.action_store.checked(wanted.provider, [symbol])
            if symbol not in asked or asked[symbol][0].start > start:
                raise DataUnavailableError(
                    f"the corporate actions of {symbol} since {from_micros(start).date()} are not "
                    "stored",
                    cure="export with --fetch, or raw prices",
                )
        return self._runtime.adjuster.found(
            wanted.provider,
            wanted.feed,
            {symbol: start},
            self._now_us,
            self._deadline,
            wanted.adjustment,
            wanted.as_of_us,
            fetch=wanted.fetch,
        )

    # --------------------------------------------------------------------------- what is there

    def _stored(
        self,
        segment: Segment,
        states: dict[SeriesKey, SeriesState],
        applied: Applied,
    ) -> tuple[Bars, list[Span]]:
        """Return the bars of a segment, and the trading time of it that is not covered."""
        target, key = self._wanted.timeframe, self._key(segment.base)
        holes = self._holes(segment.asked, states[key], segment.base)
        whole = segment.base is target
        span = segment.labels if whole else segment.asked
        if span.empty:
            return Bars.empty(), holes
        bars = self._runtime.store.read([ReadRequest(key, span)])[key][1]
        if (moment := self._wanted.as_of_us) is not None:
            trail = self._runtime.store.trail([ReadRequest(key, span)], moment)[key]
            bars = as_of(bars, trail.entries, moment)
        bars = applied.adjusted(self._symbol, bars)
        if not whole:
            derived = resample.resample(bars, segment.base, target, self._calendar, "extended")
            bars = self._untouched(derived.within(segment.labels), holes)
        return select(bars, self._query(segment.labels), self._calendar), holes

    def _holes(self, asked: Span, state: SeriesState, base: Timeframe) -> list[Span]:
        hours = planning.stored_hours(base)
        found = []
        for hole in subtract([asked], state.coverage) if not asked.empty else []:
            trading = self._calendar.trading_spans(hole, hours)
            if trading:
                found.append(Span(trading[0].start, trading[-1].end))
        return found

    def _untouched(self, bars: Bars, holes: Sequence[Span]) -> Bars:
        """Leave out the bars that a hole reaches into."""
        keep = np.ones(len(bars), np.bool_)
        for hole in holes:
            low = int(np.searchsorted(bars.timestamp, hole.start, side="right")) - 1
            high = int(np.searchsorted(bars.timestamp, hole.end))
            if low >= 0:
                ends = resample.bar_span(
                    int(bars.timestamp[low]), self._wanted.timeframe, self._calendar
                ).end
                low += ends <= hole.start
            keep[max(low, 0) : high] = False
        return bars if keep.all() else bars.take(keep)
