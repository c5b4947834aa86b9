"""Applies splits to what a read found, or warns that a raw read crosses one.

Bars are adjusted in the timeframe in which they are stored as far as that matters: sessions are
never cut by a split, weeks and months can be, so those are made anew from adjusted days.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from marketdata import resample
from marketdata.adjust import adjust_bars, effective, splits_within
from marketdata.calendars import TradingCalendar
from marketdata.clock import Deadline, from_micros
from marketdata.errors import StoreError
from marketdata.queries import BarsQuery
from marketdata.ranges import Window
from marketdata.reader import Answer, Reader, SeriesAnswer
from marketdata.spans import Span
from marketdata.splits import Splits
from marketdata.types import DAY, Bars, Split, Timeframe
from marketdata.warning_types import LIBRARY, SplitInRangeWarning

log = logging.getLogger("marketdata.adjusting")

_WORTH_ASKING: Final = 28 * DAY


class Adjuster:
    """Knows the splits and what they do to an answer."""

    def __init__(
        self, splits: Splits, reader: Reader, calendar: Callable[[], TradingCalendar]
    ) -> None:
        self._splits = splits
        self._reader = reader
        self._calendar = calendar
        self._warned: set[str] = set()

    def adjust(
        self, query: BarsQuery, answer: Answer, now_us: int, deadline: Deadline
    ) -> dict[str, list[Split]]:
        """Divide the answer's closed bars for later splits; return the splits of each symbol."""
        filled = _filled(answer)
        start = min((int(a.bars.timestamp[0]) for a in filled.values()), default=now_us)
        told = self._splits.checked(query.provider, list(answer.series), start, deadline)
        known = {symbol: effective(splits, now_us) for symbol, splits in told.items()}
        cut = [s for s, a in filled.items() if self._cut_by(known[s], a.bars, query.timeframe)]
        self._from_days(query, cut, answer, known, deadline)
        for symbol in filled.keys() - set(cut):
            found = answer.series[symbol]
            found.bars = adjust_bars(found.bars, known[symbol])
        return known

    def _cut_by(self, splits: Sequence[Split], bars: Bars, timeframe: Timeframe) -> bool:
        """Whether a split takes effect inside one of these bars, not at its beginning."""
        if timeframe not in (Timeframe.WEEK_1, Timeframe.MONTH_1):
            return False
        first, last = int(bars.timestamp[0]), int(bars.timestamp[-1])
        end = resample.bar_span(last, timeframe, self._calendar()).end
        return any(
            first < s.ex_date < end and not np.isin(s.ex_date, bars.timestamp) for s in splits
        )

    def _from_days(
        self,
        query: BarsQuery,
        symbols: Sequence[str],
        answer: Answer,
        known: Mapping[str, list[Split]],
        deadline: Deadline,
    ) -> None:
        """Make weeks or months that a split falls into from adjusted days."""
        calendar = self._calendar()
        for symbol in symbols:
            found = answer.series[symbol]
            labels = Span(int(found.bars.timestamp[0]), int(found.bars.timestamp[-1]) + 1)
            days = resample.base_span(labels, query.timeframe, calendar)
            daily = replace(
                query,
                symbols=(symbol,),
                timeframe=Timeframe.DAY_1,
                window=Window(days.start, days.end, None, explicit_end=True),
            )
            stored = self._reader.read(daily, deadline).series[symbol].bars
            adjusted = adjust_bars(stored, known[symbol])
            found.bars = resample.resample(
                adjusted, Timeframe.DAY_1, query.timeframe, calendar, query.session
            )

    def warn_of_splits(self, query: BarsQuery, answer: Answer, deadline: Deadline) -> None:
        """Warn once a symbol that raw prices jump at a known split inside the answer.

        A long stretch that was just fetched is worth one more request: who reads years of raw
        prices for the first time is the one who needs the warning.
        """
        filled = _filled(answer)
        if not filled:
            return
        start = min(int(a.bars.timestamp[0]) for a in filled.values())
        if answer.trace.fetched and answer.trace.longest >= _WORTH_ASKING:
            self._splits.look_up(query.provider, list(filled), start, deadline)
        try:
            known = self._splits.known(query.provider, list(filled))
        except StoreError as error:
            # What Redis covers is served without PostgreSQL; a warning is no reason to fail.
            log.info("not warning of splits: %s", error)
            return
        for symbol, splits in known.items():
            if not splits or symbol in self._warned:
                continue
            stamps = filled[symbol].bars.timestamp
            inside = splits_within(splits, Span(int(stamps[0]) + 1, int(stamps[-1]) + 1))
            if inside:
                self._warned.add(symbol)
                self._warn(symbol, inside)

    def _warn(self, symbol: str, splits: Sequence[Split]) -> None:
        zone = self._calendar().zone
        days = ", ".join(
            f"{s.new:g}:{s.old:g} on {from_micros(s.ex_date).astimezone(zone).date()}"
            for s in splits[-3:]
        )
        warnings.warn(
            f"raw prices of {symbol} jump at its split {days}; for comparable prices pass "
            'adjustment="split"',
            SplitInRangeWarning,
            skip_file_prefixes=LIBRARY,
        )


def _filled(answer: Answer) -> dict[str, SeriesAnswer]:
    return {s: a for s, a in answer.series.items() if len(a.bars)}


def action_version(known: Mapping[str, Sequence[Split]]) -> str:
    """Return a word for a set of splits: it changes with every one of them."""
    parts = [f"{s}:{x.ex_date}:{x.new}:{x.old}" for s in sorted(known) for x in known[s]]
    return hashlib.blake2b("|".join(parts).encode(), digest_size=6).hexdigest() if parts else "0"
