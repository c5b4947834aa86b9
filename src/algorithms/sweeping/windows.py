"""The windows of a walk-forward analysis: where each is trained and tested. Pure."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any, Final, NamedTuple, cast

import numpy as np
import pandas as pd

from algorithms.errors import AlgorithmError
from algorithms.hours import EXCHANGE_ZONE, Hours, micros
from algorithms.lines import Int64s
from algorithms.sweeping.job import Span

Length = int | str | dt.timedelta | pd.DateOffset
"""Sessions, or a time: ``"6mo"``, ``"1y"``, ``"4w"``, ``"90d"``, a timedelta, a DateOffset."""

_UNITS: Final = {"d": "days", "w": "weeks", "mo": "months", "y": "years"}


class Window(NamedTuple):
    """One window: what parameters are chosen on, and the time right after it."""

    train: Span
    test: Span


def windows_of(
    hours: Hours, first: int, last: int, train: Length, test: Length, *, anchored: bool = False
) -> list[Window]:
    """Return the windows between two instants, cut at the exchange's midnights before sessions.

    Tests follow each other without gap or overlap; the last one may be cut short by the end.

    Parameters
    ----------
    first, last : int
        The first moment that may be used, and the last one there is, microseconds UTC.
    train, test : int, str, timedelta or DateOffset
        How long each is.
    anchored : bool
        Whether every training begins at the start, and grows.

    Raises
    ------
    AlgorithmError
        A length that is none, or nothing left to test on.
    """
    midnights = hours.midnight
    begin = max(0, int(np.searchsorted(midnights, first, side="right")) - 1)
    end = int(np.searchsorted(midnights, last, side="right"))
    # Beyond the table of sessions there is one more edge, after all of them.
    edges = np.append(midnights, midnights[-1] + 40 * 86_400_000_000)
    learning, proving = _length(train, "train"), _length(test, "test")
    found: list[Window] = []
    while True:
        tested = _after(midnights, begin, [(learning, 1), (proving, len(found))])
        if tested >= end:
            break
        until = min(end, _after(midnights, begin, [(learning, 1), (proving, len(found) + 1)]))
        if until <= tested:
            raise AlgorithmError(f"a test of {test!r} has no session", cure="give a longer test")
        since = begin
        if not anchored and found:
            if isinstance(learning, int):
                since = tested - learning
            elif isinstance(proving, int):
                since = _place(midnights, _date(midnights, tested) - learning)
            else:
                since = _after(midnights, begin, [(proving, len(found))])
        found.append(
            Window(
                Span(int(edges[since]), int(edges[tested]) - 1),
                Span(int(edges[tested]), int(edges[until]) - 1),
            )
        )
    if not found:
        raise AlgorithmError(
            f"{end - begin} sessions leave nothing to test after a training of {train!r}",
            cure="begin earlier, or train on less",
        )
    return found


def _after(midnights: Int64s, begin: int, steps: list[tuple[int | pd.DateOffset, int]]) -> int:
    """Return the index of the first session at or after some lengths from another one."""
    day = _date(midnights, begin)
    for length, times in steps:
        if not isinstance(length, int):
            day = day + length * times if times else day
        elif times:
            day = _date(midnights, _place(midnights, day) + length * times)
    return _place(midnights, day)


def _date(midnights: Int64s, at: int) -> pd.Timestamp:
    """Return the naive date of a session; of one beyond the table, a date beyond it."""
    known = min(at, len(midnights) - 1)
    stamp = pd.Timestamp(int(midnights[known]), unit="us", tz="UTC").tz_convert(EXCHANGE_ZONE)
    return stamp.tz_localize(None) + pd.Timedelta(days=at - known)


def _place(midnights: Int64s, day: pd.Timestamp) -> int:
    moment = int(micros(pd.DatetimeIndex([day]).tz_localize(EXCHANGE_ZONE))[0])
    return int(np.searchsorted(midnights, moment, side="left"))


def _length(given: Length, name: str) -> int | pd.DateOffset:
    if isinstance(given, bool):
        pass
    elif isinstance(given, int):
        if given >= 1:
            return given
    elif isinstance(given, str):
        found = re.fullmatch(r"\s*(\d+)\s*(d|w|mo|y)\s*", given.lower())
        if found and int(found[1]) >= 1:
            offset: Any = pd.DateOffset
            return cast(pd.DateOffset, offset(**{_UNITS[found[2]]: int(found[1])}))
    elif isinstance(given, dt.timedelta):
        if given > dt.timedelta(0):
            return pd.DateOffset(days=given.days, seconds=given.seconds)
    elif isinstance(given, pd.DateOffset):
        return given
    raise AlgorithmError(
        f"{name}={given!r} is no length",
        cure="give sessions (252) or a time: '6mo', '1y', '4w', '90d'",
    )
