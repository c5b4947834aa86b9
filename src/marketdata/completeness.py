"""How complete stored series are, period by period: shares of trading time. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from marketdata.spans import Span
from marketdata.types import Floats, Int64s

if TYPE_CHECKING:
    from marketdata.calendars import Hours, TradingCalendar
    from marketdata.explaining import KnownParts


@dataclass(frozen=True, slots=True, eq=False)
class Completeness:
    """Trading time by symbol and period, microseconds; each array of shape (symbols, periods).

    Attributes
    ----------
    expected : ndarray of float64
        In which closed bars can be; 0 where none can.
    final, never_asked, unavailable : ndarray of float64
        Parts of it, see `explaining.KnownParts`. What is in none of the three is provisional.
    """

    symbols: tuple[str, ...]
    expected: Floats
    final: Floats
    never_asked: Floats
    unavailable: Floats

    @property
    def missing(self) -> Floats:
        return self.never_asked + self.unavailable

    @property
    def provisional(self) -> Floats:
        rest: Floats = np.maximum(self.expected - self.final - self.missing, 0.0)
        return rest


def completeness(
    known_parts: Mapping[str, KnownParts], calendar: TradingCalendar, hours: Hours, edges: Int64s
) -> Completeness:
    """Return how much trading time of each period is stored, and how settled.

    Parameters
    ----------
    known_parts : mapping
        By symbol.
    hours : {"regular", "extended", "daily"}
        What counts as trading time.
    edges : ndarray of int64, shape (periods + 1,)
        Where each period begins and the last one ends, ascending, microseconds UTC.
    """
    clock = _TradingClock(calendar, hours)
    parts = {
        name: np.array(
            [clock.within(getattr(held, name), edges) for held in known_parts.values()]
        ).reshape(len(known_parts), len(edges) - 1)
        for name in ("expected", "final", "never_asked", "unavailable")
    }
    return Completeness(tuple(known_parts), **parts)


class _TradingClock:
    """Reads instants as the trading time that has passed by then."""

    def __init__(self, calendar: TradingCalendar, hours: Hours) -> None:
        spans = {
            "regular": (calendar.open, calendar.close),
            "extended": (calendar.extended_open, calendar.extended_close),
            "daily": (calendar.midnight, calendar.close),
        }
        starts, ends = spans[hours]
        self._instants = np.stack([starts, ends], axis=1).ravel().astype(np.float64)
        passed = np.concatenate([[0], np.cumsum(ends - starts)])
        self._passed = np.stack([passed[:-1], passed[1:]], axis=1).ravel().astype(np.float64)

    def at(self, instants: Int64s) -> Floats:
        """Return the trading time up to each instant, microseconds."""
        return np.interp(instants.astype(np.float64), self._instants, self._passed)

    def within(self, spans: Sequence[Span], edges: Int64s) -> Floats:
        """Return the trading time of disjoint ascending spans in each period."""
        if not spans:
            return np.zeros(len(edges) - 1)
        bounds = np.array(spans, np.int64)
        starts, ends = self.at(bounds[:, 0]), self.at(bounds[:, 1])
        passed = np.concatenate([[0.0], np.cumsum(ends - starts)])
        begun = np.searchsorted(bounds[:, 0], edges, side="right")
        cut = np.maximum(ends[begun - 1] - self.at(edges), 0.0)
        by_then = passed[begun] - np.where(begun > 0, cut, 0.0)
        return np.diff(by_then)
