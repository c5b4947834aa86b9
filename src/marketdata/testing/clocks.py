"""Market clocks that misbehave: they jump, run ahead or behind, and live through chosen nights."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from marketdata.clock import Clock, from_micros, to_micros

EXCHANGE_ZONE: Final = ZoneInfo("America/New_York")

SPRING_NIGHT: Final = date(2024, 3, 10)
"""02:00 became 03:00 in New York."""
AUTUMN_NIGHT: Final = date(2024, 11, 3)
"""02:00 became 01:00 in New York."""
UNPLANNED_CLOSURES: Final = (date(2012, 10, 29), date(2018, 12, 5))
"""A hurricane and a state funeral: weekdays without trading that no rule foresees."""
HALF_DAYS: Final = (date(2024, 7, 3), date(2024, 11, 29), date(2024, 12, 24))
"""Sessions that closed at 13:00."""


class JumpingClock:
    """A market clock that can be set off and skewed while others read it. Thread-safe.

    Parameters
    ----------
    moment : datetime
        Market time at first (aware).
    speed : float
        Seconds of market time in one of real time; 0 stands still.
    """

    def __init__(self, moment: datetime, speed: float = 0.0) -> None:
        self._lock = threading.Lock()
        self._base = to_micros(moment)
        self._origin = time.monotonic_ns()
        self._speed = speed
        self._skew = 0

    @property
    def speed(self) -> float:
        """See `marketdata.clock.Clock`."""
        return self._speed

    def now_us(self) -> int:
        """See `marketdata.clock.Clock`."""
        with self._lock:
            return self._true() + self._skew

    def _true(self) -> int:
        return self._base + int((time.monotonic_ns() - self._origin) / 1000 * self._speed)

    def set(self, moment: datetime) -> None:
        """Put the clock at `moment` (aware), its skew gone."""
        with self._lock:
            self._base, self._origin, self._skew = to_micros(moment), time.monotonic_ns(), 0

    def jump(self, **delta: float) -> None:
        """Move on (or back) by ``timedelta(**delta)`` at once, as a corrected or a resumed machine."""
        with self._lock:
            self._base += timedelta(**delta) // timedelta(microseconds=1)

    def advance(self, **delta: float) -> None:
        """The same as `jump`, under the name that `FixedClock` gives it."""
        self.jump(**delta)

    def skew(self, seconds: float) -> None:
        """Run `seconds` ahead of true time (negative: behind) from now on."""
        with self._lock:
            self._skew = round(seconds * 1e6)

    def __repr__(self) -> str:
        return from_micros(self.now_us()).isoformat()


class SkewedClock:
    """Another machine's view of a clock: so many seconds ahead of it, or behind."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._skew = round(seconds * 1e6)

    @property
    def speed(self) -> float:
        """See `marketdata.clock.Clock`."""
        return self._clock.speed

    def now_us(self) -> int:
        """See `marketdata.clock.Clock`."""
        return self._clock.now_us() + self._skew

    def __repr__(self) -> str:
        return from_micros(self.now_us()).isoformat()


def moments(start: datetime, end: datetime, **step: float) -> Iterator[datetime]:
    """Yield aware instants from `start` up to before `end`, a `timedelta(**step)` apart, counted in
    elapsed time: a night in which the clocks change has 23 or 25 hours."""
    at, last = to_micros(start), to_micros(end)
    pace = timedelta(**step) // timedelta(microseconds=1)
    while at < last:
        yield from_micros(at)
        at += pace


def night_of(day: date) -> tuple[datetime, datetime]:
    """Return the instants of 20:00 New York time before `day` and 04:00 of it: a whole night."""
    evening = datetime(day.year, day.month, day.day, 20, tzinfo=EXCHANGE_ZONE) - timedelta(days=1)
    return evening, datetime(day.year, day.month, day.day, 4, tzinfo=EXCHANGE_ZONE)
