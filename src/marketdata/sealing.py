"""The jobs that keep the store small: settled intraday sessions into sealed chunks, and back on
request; intraday bars past their time dropped.

Each step is one transaction on one series, so that a job that is stopped or killed has done whole
steps and goes on from there. What fails for one series is reported, and the others go on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from marketdata.clock import from_micros
from marketdata.errors import MarketDataError, RequestError, StoreUnavailableError
from marketdata.spans import Span
from marketdata.tiling import touched_days
from marketdata.types import SeriesKey, Timeframe, canonical_symbol, unique_symbols

if TYPE_CHECKING:
    from marketdata.store.sealing import Moved
    from marketdata.wiring import Runtime

log = logging.getLogger("marketdata.sealing")


@dataclass(frozen=True, slots=True)
class FailedSeries:
    """A series that one step failed for; nothing of that step was stored."""

    key: SeriesKey
    error: MarketDataError

    def __str__(self) -> str:
        return f"{self.key}: {self.error}"


@dataclass(frozen=True, slots=True)
class SealReport:
    """What `seal`, or `unseal`, did."""

    series: int = 0
    """Series looked at."""
    bars: int = 0
    """Bars moved between rows and chunks."""
    chunks: int = 0
    """Chunks written, those written again included."""
    bytes: int = 0
    corrections: int = 0
    """Corrections merged into chunks."""
    partitions: int = 0
    """Empty months of rows dropped."""
    failed: tuple[FailedSeries, ...] = ()
    stopped: bool = False

    def summary(self) -> dict[str, str | int | float]:
        return {
            "series": self.series,
            "bars": self.bars,
            "chunks": self.chunks,
            "bytes": self.bytes,
            "corrections": self.corrections,
            "partitions_dropped": self.partitions,
            "failed": len(self.failed),
        }


@dataclass(frozen=True, slots=True)
class RetentionReport:
    """What `retain` did."""

    series: int = 0
    """Series that reached back too far."""
    bars: int = 0
    """Bars dropped."""
    partitions: int = 0
    """Empty months of rows dropped."""
    before: str | None = None
    """First day that is kept; None where everything is."""
    failed: tuple[FailedSeries, ...] = ()
    stopped: bool = False

    def summary(self) -> dict[str, str | int | float]:
        found: dict[str, str | int | float] = {
            "series": self.series,
            "bars": self.bars,
            "partitions_dropped": self.partitions,
            "failed": len(self.failed),
        }
        return found if self.before is None else {**found, "before": self.before}


@dataclass(slots=True)
class _Tally:
    moved: list[Moved] = field(default_factory=list)
    failed: list[FailedSeries] = field(default_factory=list)

    @contextmanager
    def of(self, key: SeriesKey) -> Iterator[None]:
        """Note what fails for this series; a server that is gone ends the job."""
        try:
            yield
        except StoreUnavailableError:
            raise
        except MarketDataError as error:
            log.error("%s: %s", key, error)
            self.failed.append(FailedSeries(key, error))

    def report(self, series: int, partitions: int, stop: threading.Event) -> SealReport:
        return SealReport(
            series=series,
            bars=sum(m.bars for m in self.moved),
            chunks=sum(m.chunks for m in self.moved),
            bytes=sum(m.bytes for m in self.moved),
            corrections=sum(m.corrections for m in self.moved),
            partitions=partitions,
            failed=tuple(self.failed),
            stopped=stop.is_set(),
        )


def seal(
    runtime: Runtime,
    stop: threading.Event,
    *,
    symbols: Sequence[str] | None = None,
    before: int | None = None,
    repin: bool = False,
) -> SealReport:
    """Turn the rows of final intraday sessions into chunks, merge corrections, join chunks.

    Parameters
    ----------
    stop : threading.Event
        Ends the job after the step at hand.
    symbols : sequence of str, optional
        By default all.
    before : int, optional
        Microseconds UTC: sessions of earlier days are sealed. By default those older than the
        newest `Settings.seal_after` sessions; where that is ``never``, nothing is sealed, but what
        is sealed is kept in order.
    repin : bool
        Whether days unsealed by hand may be sealed again.

    Returns
    -------
    SealReport
        ``failed`` names series whose chunks are damaged, or that could not be written.

    Raises
    ------
    StoreUnavailableError
        The server is gone; a retry goes on where this ended.
    """
    sealer = runtime.sealer
    edge = (
        _newest_sealed(runtime) if before is None else touched_days(Span(before, before + 1)).start
    )
    names = None if symbols is None else unique_symbols(symbols)
    if repin:
        sealer.unpin(names)
    tally = _Tally()
    keys = sealer.candidates(edge, names)
    seen = 0
    for key in keys:
        if stop.is_set():
            break
        seen += 1
        with tally.of(key):
            for moved in sealer.seal(key, edge):
                tally.moved.append(moved)
                if stop.is_set():
                    break
    dropped = 0 if stop.is_set() else _drop_empty_months(runtime, edge)
    return tally.report(seen, dropped, stop)


def unseal(
    runtime: Runtime,
    symbol: str,
    timeframe: Timeframe,
    start: int,
    end: int,
    stop: threading.Event | None = None,
) -> SealReport:
    """Make rows again of the sealed days in a span, for every source stored, and pin them: `seal`
    leaves them alone until it is called with `repin`.

    Parameters
    ----------
    start, end : int
        Microseconds UTC, end exclusive; widened to whole days of the exchange.

    Raises
    ------
    RequestError
        Nothing of this symbol and timeframe is stored, or it is not intraday; a retry does not help.
    StoreUnavailableError
        The server is gone; a retry goes on where this ended.
    """
    stop = stop or threading.Event()
    keys = _stored(runtime, symbol, timeframe)
    tally = _Tally()
    for key in keys:
        with tally.of(key):
            for moved in runtime.sealer.unseal(key, Span(start, end)):
                tally.moved.append(moved)
                if stop.is_set():
                    break
    return tally.report(len(keys), 0, stop)


def discard(
    runtime: Runtime, symbol: str, timeframe: Timeframe, start: int, end: int
) -> dict[SeriesKey, list[Span]]:
    """Give up the chunks of a span that are damaged, with the coverage of their days, so that the
    next request or backfill fetches these again. Sound chunks stay.

    Returns
    -------
    dict
        What was given up of each series: whole chunks, microseconds UTC.
    """
    found = {}
    for key in _stored(runtime, symbol, timeframe):
        spans = runtime.retention.discard(key, Span(start, end), runtime.cache.raise_floor)
        if spans:
            log.warning("%s: %s damaged chunks given up", key, len(spans))
            found[key] = spans
    return found


def retain(runtime: Runtime, stop: threading.Event) -> RetentionReport:
    """Drop intraday bars older than `Settings.retention` days, sealed or not, with their coverage.

    Days count back from the exchange's today; daily and coarser bars stay for ever. ``never`` drops
    nothing.

    Raises
    ------
    StoreUnavailableError
        The server is gone; a retry goes on where this ended.
    """
    days = runtime.settings.retention
    if days == "never":
        return RetentionReport(stopped=stop.is_set())
    calendar = runtime.calendar()
    first = calendar.today(runtime.clock.now_us()) - timedelta(days=days)
    before = calendar.midnight_of(first)
    tally = _Tally()
    seen = bars = 0
    for key in runtime.retention.outlived(before):
        if stop.is_set():
            break
        seen += 1
        with tally.of(key):
            bars += runtime.retention.cut(key, before, runtime.cache.raise_floor)
    dropped = 0 if stop.is_set() else _drop_empty_months(runtime, before)
    return RetentionReport(
        series=seen,
        bars=bars,
        partitions=dropped,
        before=first.isoformat(),
        failed=tuple(tally.failed),
        stopped=stop.is_set(),
    )


def _newest_sealed(runtime: Runtime) -> int:
    """Return the midnight before which sessions are to be sealed, or 0."""
    kept = runtime.settings.seal_after
    if kept == "never":
        return 0
    calendar = runtime.calendar()
    at = calendar.session_at(runtime.clock.now_us()) - kept + 1
    return calendar.session_span(at, "daily").start if at >= 0 else 0


def _drop_empty_months(runtime: Runtime, before: int) -> int:
    """Drop the partitions of months that are over by `before` and hold no row any more."""
    retention = runtime.retention
    month = from_micros(max(0, before)).date().replace(day=1)
    return sum(retention.drop_if_empty(m) for m in retention.months() if m < month)


def _stored(runtime: Runtime, symbol: str, timeframe: Timeframe) -> list[SeriesKey]:
    name = canonical_symbol(symbol)
    if not timeframe.intraday:
        raise RequestError(
            f"{timeframe} bars are never sealed", cure="name an intraday timeframe, such as 1min"
        )
    keys = [key for key in runtime.store.series([name]) if key.timeframe is timeframe]
    if not keys:
        raise RequestError(
            f"no {timeframe} bars of {name} are stored", cure="marketdata status shows what is"
        )
    return keys
