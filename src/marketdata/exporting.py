"""What is stored, out to files: symbol by symbol, in bounded memory, exactly as a read gives it.

Bars are those that a read would return, in every timeframe that can be made of what is stored. A
bar made of others is left out where one of its stretches was never asked for: it would be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from marketdata import planning, resample
from marketdata.adjust import adjust_bars
from marketdata.calendars import TradingCalendar
from marketdata.clock import Deadline, from_micros
from marketdata.errors import (
    BrokerError,
    DataUnavailableError,
    MarketDataError,
    RequestError,
    UnknownSymbolError,
)
from marketdata.planning import Segment
from marketdata.protocols import ReadRequest, SeriesState
from marketdata.queries import BarsQuery, select
from marketdata.ranges import Window
from marketdata.spans import Span, normalise, subtract
from marketdata.types import Adjustment, Bars, SeriesKey, Session, Split, Timeframe

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


@dataclass(slots=True)
class ExportReport:
    """What was written, and what was not there to write."""

    rows: int = 0
    symbols: int = 0
    """Symbols of which bars were written."""
    gaps: dict[str, list[Span]] = field(default_factory=dict)
    """By symbol, the trading time asked for that is not covered."""
    failed: dict[str, MarketDataError] = field(default_factory=dict)
    """Symbols of which a gap could not be fetched, or splits are not known."""

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
            for bars in _Series(runtime, wanted, symbol, report, deadline).pieces():
                file.write(symbol, bars)
                report.rows += len(bars)
                if progress is not None:
                    progress(report)
        except (BrokerError, DataUnavailableError, UnknownSymbolError) as error:
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


class _Series:
    """The bars of one symbol, a year of minutes at a time: 64 bytes a bar, 16 MB at most."""

    def __init__(
        self,
        runtime: Runtime,
        wanted: Wanted,
        symbol: str,
        report: ExportReport,
        deadline: Deadline,
    ) -> None:
        self._runtime = runtime
        self._wanted = wanted
        self._symbol = symbol
        self._report = report
        self._deadline = deadline
        self._calendar: TradingCalendar = runtime.calendar()
        self._now_us = runtime.clock.now_us()

    def pieces(self) -> Iterator[Bars]:
        states = self._states()
        labels = self._labels(states)
        if labels.empty:
            self._report.gaps[self._symbol] = []
            return
        splits = self._splits(labels.start)
        missing: list[Span] = []
        for part in self._years(labels):
            if self._wanted.fetch:
                self._fetch(part)
                states = self._states()
            for segment in self._segments(part, states, missing):
                bars, holes = self._stored(segment, states, splits)
                missing += holes
                if len(bars):
                    yield bars
        if missing:
            self._report.gaps[self._symbol] = normalise(missing)

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
        return SeriesKey(self._wanted.provider, self._wanted.feed, self._symbol, base)

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
            return Span(max(window.start, self._calendar.first), window.end)
        held = [s for s in states.values() if s.first_bar is not None]
        start = min((s.first_bar for s in held if s.first_bar is not None), default=0)
        last = max((s.last_bar for s in held if s.last_bar is not None), default=-1)
        native = states.get(self._key(target))
        if held and (native is None or native.first_bar is None):
            ends = [s.coverage[-1].end for s in held if s.coverage]
            closed = planning.closed_labels(self._calendar, target, max(ends, default=last))
            start = resample.bar_span(start, target, self._calendar).start
            last = min(last, closed - 1)
        return Span(start, last + 1)

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
            found = self._runtime.reader.segments(
                self._query(labels), self._symbol, labels, states, self._now_us
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

    def _splits(self, start: int) -> Sequence[Split]:
        """Return the splits to divide by.

        Raises
        ------
        DataUnavailableError
            Nobody was asked about them for all of the time.
        """
        wanted = self._wanted
        if wanted.adjustment == "raw":
            return ()
        if wanted.fetch:
            checked = self._runtime.splits.checked
            return checked(wanted.provider, [self._symbol], start, self._deadline)[self._symbol]
        asked = self._runtime.store.checked(wanted.provider, [self._symbol])
        if self._symbol not in asked or asked[self._symbol][0].start > start:
            raise DataUnavailableError(
                f"the splits of {self._symbol} since {from_micros(start).date()} are not stored",
                cure="export with --fetch, or raw prices",
            )
        return self._runtime.store.splits(wanted.provider, [self._symbol])[self._symbol]

    # --------------------------------------------------------------------------- what is there

    def _stored(
        self,
        segment: Segment,
        states: dict[SeriesKey, SeriesState],
        splits: Sequence[Split],
    ) -> tuple[Bars, list[Span]]:
        """Return the bars of a segment, and the trading time of it that is not covered."""
        target, key = self._wanted.timeframe, self._key(segment.base)
        holes = self._holes(segment.asked, states[key], segment.base)
        whole = segment.base is target
        span = segment.labels if whole else segment.asked
        if span.empty:
            return Bars.empty(), holes
        bars = self._runtime.store.read([ReadRequest(key, span)])[key][1]
        bars = adjust_bars(bars, splits)
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
