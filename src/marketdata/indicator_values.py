"""Indicator values as they travel between the engine, the store and the cache. Pure.

Values of one series are tied to what they were computed from: the stored bars at one revision, and
the corporate actions as known at one moment. Both only grow, so the older of two records is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from marketdata.types import Bools, Floats, Int64s, SeriesKey, Split, Timeframe

NOTHING_BEFORE: Final = -(2**63)
"""Stands for the bar before the first one."""
FOREVER: Final = 2**62
"""No split is announced."""


def valid_until(splits: Sequence[Split], now_us: int) -> int:
    """Return when the next of `splits` takes effect, or `FOREVER`."""
    return min((s.ex_date for s in splits if s.ex_date > now_us), default=FOREVER)


@dataclass(frozen=True, slots=True, eq=False)
class Tail:
    """The newest values of one series, as the cache holds them.

    Attributes
    ----------
    timestamp : ndarray of int64, shape (n,)
        Bar opens, microseconds UTC, ascending, one for each bar there is.
    values : ndarray of float64, shape (n, columns)
        NaN where the series is too young.
    covered_until : int
        No bar that is missing here is labelled before this instant.
    revision : int
        The store's revision of the base series the bars come from.
    actions_us : int
        Market time at which the provider had last been asked about corporate actions.
    action_version : int
        A number for the splits applied, 0 for none; see `applied.action_version`.
    previous : int
        Open of the bar before the first one here, or `NOTHING_BEFORE`.
    fetched_us : int or None
        Market time at which the provider last answered for the stored series.
    base : Timeframe or None
        Timeframe of the stored series the bars were derived from; None is the series' own.
    valid_until : int
        When the next announced split takes effect: from then on prices have another basis.
    """

    timestamp: Int64s
    values: Floats
    covered_until: int
    revision: int
    actions_us: int
    action_version: int
    previous: int = NOTHING_BEFORE
    fetched_us: int | None = None
    base: Timeframe | None = None
    valid_until: int = FOREVER


@dataclass(frozen=True, slots=True, eq=False)
class Newest:
    """One record each of many series: what an update stores.

    Attributes
    ----------
    keys : sequence of SeriesKey, length n
        Different ones, in the timeframe of the values.
    timestamp, revision, actions_us, action_version : ndarray of int64, shape (n,)
        As in `Tail`.
    values : ndarray of float64, shape (n, columns)
    """

    keys: Sequence[SeriesKey]
    timestamp: Int64s
    values: Floats
    revision: Int64s
    actions_us: Int64s
    action_version: Int64s

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, places: Int64s) -> Newest:
        """Return the records at `places`."""
        return Newest(
            [self.keys[n] for n in places.tolist()],
            self.timestamp[places],
            np.ascontiguousarray(self.values[places]),
            self.revision[places],
            self.actions_us[places],
            self.action_version[places],
        )


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """What an update leaves in the cache: for each series one record more, one revised, or none.

    Attributes
    ----------
    records : Newest
        `timestamp` is the newest bar's. Without a record (`fresh` False) the values are ignored:
        the market was quiet, and only revision and coverage move on.
    previous : ndarray of int64, shape (n,)
        Open of the bar before the newest one, or `NOTHING_BEFORE`.
    known_revision : ndarray of int64, shape (n,)
        The revision at which the earlier records still hold: the cache adds to those of this
        revision only.
    fresh : ndarray of bool, shape (n,)
    bases : sequence of (Timeframe or None), length n
    covered_until : ndarray of int64, shape (n,)
    valid_until : ndarray of int64, shape (n,)
        See `Tail`.
    fetched_us : int or None
        For all of them; see `Tail`.
    """

    records: Newest
    previous: Int64s
    known_revision: Int64s
    fresh: Bools
    bases: Sequence[Timeframe | None]
    covered_until: Int64s
    valid_until: Int64s
    fetched_us: int | None = None

    def __len__(self) -> int:
        return len(self.records)


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """Values of one series to be kept for ever: from the first one on exactly these."""

    key: SeriesKey
    timestamp: Int64s
    values: Floats
    """Shape (n, columns)."""
    revision: int
    actions_us: int
    action_version: int
    replaces: bool = False
    """Whether what is stored from the first timestamp on, and not here, is to go."""
