"""The raw closes that distributions are measured by, from daily bars wherever they are.

A dividend is a share of the last close before it, so an adjusted read of minutes, or of a window
that ended years ago, needs a few daily closes besides its own bars. Where those days are covered
no broker is asked; where they are not, one request brings the range they lie in.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from marketdata.calendars import TradingCalendar
from marketdata.clock import Deadline
from marketdata.errors import DataUnavailableError
from marketdata.protocols import BarStore, Broker, ReadRequest, SeriesState
from marketdata.queries import BarsQuery
from marketdata.ranges import Window
from marketdata.reader import Reader
from marketdata.spans import Span
from marketdata.types import CLOSE, Bars, SeriesKey, Timeframe

SPUN_SESSIONS: Final = 5
"""Sessions from the ex-date on within which what is spun off must have begun to trade."""
_REMEMBERED: Final = 20_000

Absent = Literal["fetch", "raise", "skip"]
"""What to do about a day that is not covered: ask the broker, raise, or give NaN for it."""
Days = Mapping[str, Iterable[int]]
"""By symbol, the labels of daily bars."""
Found = dict[str, dict[int, float]]
"""By symbol, the raw closes of those of the days that have a bar."""


@dataclass(slots=True)
class _Remembered:
    revision: int
    closes: dict[int, float | None] = field(default_factory=dict)


class ReferenceCloses:
    """Reads raw daily closes, through the tiers.

    What was read is remembered for one revision of a series: a daily bar that is revised, or that
    is new, makes it read again.
    """

    def __init__(
        self,
        store: BarStore,
        reader: Reader,
        broker: Broker,
        calendar: Callable[[], TradingCalendar],
    ) -> None:
        self._store = store
        self._reader = reader
        self._broker = broker
        self._calendar = calendar
        self._memory: OrderedDict[SeriesKey, _Remembered] = OrderedDict()

    # ------------------------------------------------------------------------------- which

    def session_before(self, ex_date: int) -> int | None:
        """Return the label of the last session strictly before an ex-date, if there is one."""
        sessions = self._calendar().midnight
        at = int(np.searchsorted(sessions, ex_date)) - 1
        return int(sessions[at]) if at >= 0 else None

    def first_sessions(self, ex_date: int, until: int) -> list[int]:
        """Return the labels of the sessions from an ex-date on in which what it spins off may
        first trade, as far as they are over at `until`."""
        calendar = self._calendar()
        at = int(np.searchsorted(calendar.midnight, ex_date))
        delay = self._broker.capabilities(self._broker.default_feed).daily_settle_delay
        sessions = slice(at, at + SPUN_SESSIONS)
        over = calendar.close[sessions] + delay <= until
        return [int(label) for label in calendar.midnight[sessions][over]]

    # -------------------------------------------------------------------------------- read

    def find(
        self,
        provider: str,
        feed: str,
        days: Days,
        deadline: Deadline,
        *,
        absent: Absent = "fetch",
        as_of_us: int | None = None,
    ) -> Found:
        """Return the raw closes of some sessions, of what the symbols mean.

        Parameters
        ----------
        days : mapping
            By symbol the labels of sessions that are over.
        absent : {"fetch", "raise", "skip"}
            What to do about days that are not covered. A covered one without a bar has no close.
        as_of_us : int, optional
            Closes as they were observed by this moment; the newest ones by default.

        Raises
        ------
        BrokerError, DataUnavailableError, StoreError
            A day that is not covered could not be had.
        """
        return self.under(provider, feed, days, deadline, absent=absent, as_of_us=as_of_us)

    def under(
        self,
        provider: str,
        feed: str,
        days: Days,
        deadline: Deadline,
        *,
        absent: Absent = "fetch",
        as_of_us: int | None = None,
    ) -> Found:
        """Return what was traded under just these symbols on those days; else as `find`."""
        wanted = {symbol: sorted(set(labels)) for symbol, labels in days.items()}
        wanted = {symbol: labels for symbol, labels in wanted.items() if labels}
        if not wanted:
            return {}
        if as_of_us is not None or (absent == "fetch" and self._base(feed) is not Timeframe.DAY_1):
            # As they were once, or made of other bars: the reader knows how.
            return self._read_through(provider, feed, wanted, deadline, as_of_us)
        keys = {s: SeriesKey(provider, feed, s, Timeframe.DAY_1) for s in wanted}
        states = self._store.states(list(keys.values()))
        found: Found = {}
        missing: dict[str, list[int]] = {}
        for symbol, key in keys.items():
            state = states[key]
            known = self._recall(key, state.revision, wanted[symbol])
            if known is not None:
                found[symbol] = known
            elif holes := [d for d in wanted[symbol] if not _covered(d, state)]:
                missing[symbol] = holes
        if missing and absent == "raise":
            raise self._not_stored(missing)
        if missing and absent == "fetch":
            self._read_through(provider, feed, missing, deadline)
        rest = {symbol: wanted[symbol] for symbol in keys if symbol not in found}
        found |= self._read_stored(keys, rest)
        if absent == "skip":
            for symbol, holes in missing.items():
                found[symbol] = dict.fromkeys(holes, math.nan) | found[symbol]
        return found

    def _base(self, feed: str) -> Timeframe:
        return self._broker.capabilities(feed).bases[Timeframe.DAY_1][0].base

    def _read_through(
        self,
        provider: str,
        feed: str,
        days: Mapping[str, Sequence[int]],
        deadline: Deadline,
        as_of_us: int | None = None,
    ) -> Found:
        """Read one range that holds all of `days` as a call for bars does, and keep what it
        brings."""
        labels = [label for each in days.values() for label in each]
        window = Window(min(labels), max(labels) + 1, None, explicit_end=True)
        query = BarsQuery(
            provider, feed, tuple(sorted(days)), Timeframe.DAY_1, window, as_of_us=as_of_us
        )
        answer = self._reader.read(query, deadline)
        return {s: _picked(a.bars, days[s]) for s, a in answer.series.items()}

    def _read_stored(
        self, keys: Mapping[str, SeriesKey], days: Mapping[str, Sequence[int]]
    ) -> Found:
        if not days:
            return {}
        read = self._store.read(
            [ReadRequest(keys[s], Span(labels[0], labels[-1] + 1)) for s, labels in days.items()]
        )
        found: Found = {}
        for symbol, labels in days.items():
            state, bars = read[keys[symbol]]
            found[symbol] = _picked(bars, labels)
            if all(_covered(label, state) for label in labels):
                self._remember(keys[symbol], state.revision, labels, found[symbol])
        return found

    def _not_stored(self, missing: Mapping[str, Sequence[int]]) -> DataUnavailableError:
        symbol, labels = next(iter(missing.items()))
        day = self._calendar().today(labels[0])
        return DataUnavailableError(
            f"the daily close of {symbol} on {day}, which a later distribution is measured by, is "
            "not stored",
            cure=f"run: marketdata backfill {symbol} --timeframe 1day --start {day}",
            symbols=sorted(missing),
        )

    # ----------------------------------------------------------------------------- memory

    def _recall(
        self, key: SeriesKey, revision: int, labels: Sequence[int]
    ) -> dict[int, float] | None:
        """Return what is remembered of these days, if all of it is of this revision."""
        kept = self._memory.get(key)
        if kept is None or kept.revision != revision:
            return None
        if any(label not in kept.closes for label in labels):
            return None
        told = {label: kept.closes[label] for label in labels}
        return {label: close for label, close in told.items() if close is not None}

    def _remember(
        self, key: SeriesKey, revision: int, labels: Sequence[int], found: Mapping[int, float]
    ) -> None:
        kept = self._memory.get(key)
        earlier = kept.closes if kept is not None and kept.revision == revision else {}
        closes = earlier | {label: found.get(label) for label in labels}
        self._memory[key] = _Remembered(revision, closes)
        if len(self._memory) > _REMEMBERED:
            self._memory.popitem(last=False)


def _covered(label: int, state: SeriesState) -> bool:
    return any(span.start <= label < span.end for span in state.coverage)


def _picked(bars: Bars, labels: Iterable[int]) -> dict[int, float]:
    """Return the closes of those `labels` that have a bar."""
    wanted = np.fromiter(labels, np.int64)
    places = np.searchsorted(bars.timestamp, wanted)
    inside = places < len(bars)
    wanted, places = wanted[inside], places[inside]
    there = bars.timestamp[places] == wanted
    closes = bars.values[CLOSE, places[there]]
    return dict(zip(wanted[there].tolist(), closes.tolist(), strict=True))
