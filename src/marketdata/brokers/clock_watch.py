"""Whether our clock runs ahead of the broker's: then bars look closed that are not over yet.

A clock that is behind costs freshness. One that is ahead would store bars before they are closed
and claim that quiet minutes are to come, which nobody would ask for again. Every HTTP answer says
what time it is (``Date``, RFC 9110, section 6.6.1: whole seconds, cut; ``Age`` where a cache has
kept it), so the most that our clock can be right about is known for the price of a comparison.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Final

from marketdata.clock import Clock, to_micros
from marketdata.types import SECOND

TOLERATED: Final = 2 * SECOND
"""Less is inside the settle delay."""
_STEP: Final = 30 * SECOND
"""What is found is rounded up to this, so that it changes seldom."""
_REMEMBERED: Final = 60.0
"""Seconds for which a clock is taken to be as far ahead as it was found."""


class ClockWatch:
    """Compares a clock with the answers of one host.

    Parameters
    ----------
    clock : Clock
        Ours.
    monotonic : callable
        Real time in seconds; replaced in tests.
    """

    def __init__(self, clock: Clock, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._found: tuple[float, int] = 0.0, 0

    def now_us(self) -> int:
        """Return what our clock says; to be asked before a request is sent."""
        return self._clock.now_us()

    @property
    def ahead(self) -> int:
        """Microseconds by which our clock was found to be ahead less than a minute ago, rounded up;
        0 where it is not."""
        until, found = self._found
        return found if found and self._monotonic() < until else 0

    def note(self, asked_us: int, headers: Mapping[str, str]) -> None:
        """Learn from an answer to a request that was sent when our clock said `asked_us`."""
        served = _served_us(headers)
        if served is None:
            return
        # The answer was written after the request was sent, and its date is cut to the second:
        # what is left is not the way's length, but how far ahead we are at least.
        ahead = asked_us - (served + SECOND)
        known = self.ahead
        if ahead <= TOLERATED:
            found = 0
        elif known - _STEP < ahead <= known:
            found = known
        else:
            found = -(-ahead // _STEP) * _STEP
        self._found = self._monotonic() + _REMEMBERED, found


def _served_us(headers: Mapping[str, str]) -> int | None:
    try:
        served = to_micros(parsedate_to_datetime(headers["Date"]))
        return served + int(headers.get("Age", "0")) * SECOND
    except (KeyError, ValueError, TypeError):
        return None
