"""The one place that asks what time it is.

Market time (``now``) can be replaced: fixed for tests, replayed for demos. Durations, deadlines,
leases and time-outs always run on real time (``monotonic``), whatever the market clock says.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

from marketdata.errors import ConfigurationError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_micros(moment: datetime) -> int:
    """Return an aware datetime as microseconds since 1970-01-01T00:00Z, exactly."""
    return (moment - EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime:
    """Return microseconds since 1970-01-01T00:00Z as an aware datetime in UTC."""
    return EPOCH + timedelta(microseconds=micros)


class Clock(Protocol):
    """Market time."""

    @property
    def speed(self) -> float:
        """Seconds of market time in one of real time; 0 where it stands still."""
        ...

    def now_us(self) -> int:
        """Return market time in microseconds since 1970-01-01T00:00Z."""
        ...


def now(clock: Clock) -> datetime:
    """Return the market time of `clock` as an aware datetime in UTC."""
    return from_micros(clock.now_us())


class SystemClock:
    """Market time is the machine's time."""

    speed = 1.0

    def now_us(self) -> int:
        return time.time_ns() // 1000

    def __repr__(self) -> str:
        return "system"


class FixedClock:
    """Market time stands still until it is moved; for tests and ``MARKETDATA_CLOCK=<instant>``."""

    speed = 0.0

    def __init__(self, moment: datetime) -> None:
        self._micros = to_micros(moment)

    def now_us(self) -> int:
        return self._micros

    def set(self, moment: datetime) -> None:
        """Move market time to `moment` (aware)."""
        self._micros = to_micros(moment)

    def advance(self, **delta: float) -> None:
        """Move market time on by ``timedelta(**delta)``."""
        self._micros += timedelta(**delta) // _MICROSECOND

    def __repr__(self) -> str:
        return from_micros(self._micros).isoformat()


class ReplayClock:
    """Market time starts at `start` when the object is made and runs `speed` times as fast as real time."""

    def __init__(self, start: datetime, speed: float = 1.0) -> None:
        self._start = to_micros(start)
        self._speed = speed
        self._origin = time.monotonic_ns()

    @property
    def speed(self) -> float:
        return self._speed

    def now_us(self) -> int:
        elapsed = (time.monotonic_ns() - self._origin) / 1000
        return self._start + int(elapsed * self._speed)

    def __repr__(self) -> str:
        return f"replay:{from_micros(self._start).isoformat()}@{self._speed:g}"


def parse_clock(text: str) -> Clock:
    """Return the clock that ``MARKETDATA_CLOCK`` names.

    Parameters
    ----------
    text : str
        ``system``, an ISO 8601 instant with offset, or ``replay:START@SPEED``
        (``replay:2024-03-08T14:30:00Z@60`` plays an hour a minute).

    Raises
    ------
    ConfigurationError
        Unreadable or naive; a retry does not help.
    """
    text = text.strip()
    if text in ("", "system"):
        return SystemClock()
    body, speed = text, None
    if text.startswith("replay:"):
        body, _, factor = text.removeprefix("replay:").partition("@")
        try:
            speed = float(factor or "1")
        except ValueError:
            raise _bad_clock(text) from None
        if not 0 < speed < 1e6:
            raise _bad_clock(text)
    try:
        moment = datetime.fromisoformat(body)
    except ValueError:
        raise _bad_clock(text) from None
    if moment.tzinfo is None:
        raise _bad_clock(text)
    return FixedClock(moment) if speed is None else ReplayClock(moment, speed)


def _bad_clock(text: str) -> ConfigurationError:
    return ConfigurationError(
        f"MARKETDATA_CLOCK={text!r} is not a clock",
        cure="use system, an instant such as 2024-03-08T14:30:00Z, or replay:2024-03-08T14:30:00Z@60",
    )


class Deadline:
    """A total time allowance on real time, handed down through every layer of a call.

    Parameters
    ----------
    seconds : float or None
        Allowance from now; None never expires.
    """

    __slots__ = ("_end", "seconds")

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    def remaining(self) -> float:
        """Return the seconds left, never below 0; infinity without a limit."""
        if self._end is None:
            return float("inf")
        return max(0.0, self._end - time.monotonic())

    @property
    def expired(self) -> bool:
        return self._end is not None and time.monotonic() >= self._end

    def cap(self, seconds: float) -> float:
        """Return `seconds`, or what is left if that is less."""
        return min(seconds, self.remaining())
