"""The indicators that are kept: their newest values come from the cache, and reads leave them there
and in the store.

What is kept is the default set on split-adjusted bars of regular hours. A block is current while
no newer bar is due, by calendar and clock; no commit has raised its series' revision; and nobody
has asked about corporate actions since.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np

from marketdata import caching, planning
from marketdata.actions import RECHECK
from marketdata.applied import Applied, action_version, split_version
from marketdata.corporate_actions import SHARE_CHANGES, splits_of
from marketdata.errors import MarketDataError, StoreReadOnlyError
from marketdata.indicator_codec import CAPACITY
from marketdata.indicator_values import NOTHING_BEFORE, Newest, Tail, valid_until
from marketdata.indicators import DEFAULT, Indicator
from marketdata.spans import Span
from marketdata.types import Bars, Floats, SeriesKey, Split, Timeframe

if TYPE_CHECKING:
    from marketdata.answers import SeriesAnswer
    from marketdata.arguments import Request
    from marketdata.cache.indicators import IndicatorCache
    from marketdata.clock import Deadline
    from marketdata.queries import BarsQuery
    from marketdata.store.indicators import PostgresIndicators
    from marketdata.wiring import Runtime

log = logging.getLogger("marketdata.indicators")

KEPT: Final[tuple[Indicator, ...]] = tuple(DEFAULT)
KEPT_COLUMNS: Final[tuple[str, ...]] = tuple(c for each in KEPT for c in each.columns)
"""The columns of a record, in the cache and in the store."""
_REMEMBERED: Final = 64
_STORED_REMEMBERED: Final = 20_000


def version_number(symbol: str, splits: Sequence[Split], lineage: str = "") -> int:
    """Return the action version of one symbol's splits, and of what it was called, as a number: 0
    without any."""
    return int(split_version(f"{lineage}:{symbol}" if lineage else symbol, splits), 16) or (
        int(hashlib.blake2b(lineage.encode(), digest_size=6).hexdigest(), 16) if lineage else 0
    )


def version_of(symbol: str, applied: Applied, lineage: str = "") -> int:
    """Return the action version of one symbol of an answer; of a split-adjusted one it is that of
    the kept values, whichever tier they come from."""
    if applied.adjustment == "split":
        return version_number(symbol, splits_of(applied.in_effect.get(symbol, ())), lineage)
    return int(action_version(applied.of(symbol)), 16)


class KeptIndicators:
    """Serves and leaves the newest values of the kept indicators."""

    def __init__(self, runtime: Runtime, store: PostgresIndicators, cache: IndicatorCache) -> None:
        self._runtime = runtime
        self._store = store
        self._cache = cache
        self._stored: OrderedDict[SeriesKey, tuple[int, int, int, int]] = OrderedDict()
        self._may_store = True
        self._selected: OrderedDict[int, tuple[Tail, tuple[str, ...], int, Bars]] = OrderedDict()

    @cached_property
    def _places(self) -> Mapping[str, int]:
        return {column: n for n, column in enumerate(KEPT_COLUMNS)}

    def serves(self, request: Request, columns: Sequence[str]) -> bool:
        """Whether the answer to `request` may be in the cache."""
        window = request.query.window
        return (
            window.start is None
            and window.limit is not None
            and window.limit <= CAPACITY
            and self.covers(request)
            and all(column in self._places for column in columns)
        )

    def covers(self, request: Request) -> bool:
        """Whether the newest values of such bars are kept."""
        query = request.query
        return (
            request.adjustment == "split"
            and not query.window.explicit_end
            and query.as_of_us is None
            and (query.session == "regular" or not query.timeframe.intraday)
        )

    def get(self, request: Request) -> dict[str, Tail]:
        """Return the newest values of the symbols of `request` whose blocks are current and hold
        as many as it asks for; never raises for Redis."""
        query = request.query
        assert query.window.limit is not None
        keys = [query.key(symbol) for symbol in query.symbols]
        newest = self._newest(query, request.now_us)
        if newest is None:
            return {}
        base, end = newest
        found = self._cache.get(keys, base)
        return {
            key.symbol: tail
            for key, tail in found.items()
            if len(tail.timestamp) >= query.window.limit
            and self._current(tail, query.timeframe, end, request.now_us)
        }

    def _newest(self, query: BarsQuery, now_us: int) -> tuple[Timeframe | None, int] | None:
        """Return the stored timeframe the bars derive from (None: their own), and up to where
        bars are closed now; None where the broker has no such bars."""
        caps = self._runtime.broker.capabilities(query.feed)
        ways = caps.bases.get(query.timeframe)
        if not ways:
            return None
        base = ways[0].base
        end = caching.newest_end(query, base, caps, self._runtime.calendar(), now_us)
        return (None if base is query.timeframe else base), end

    def _current(self, tail: Tail, timeframe: Timeframe, end: int, now_us: int) -> bool:
        if now_us - tail.actions_us > RECHECK or now_us >= tail.valid_until:
            return False
        behind = Span(tail.covered_until, end)
        return behind.empty or not self._runtime.calendar().trading_spans(
            behind, planning.stored_hours(timeframe)
        )

    def selected(self, tail: Tail, columns: tuple[str, ...], limit: int) -> Bars:
        """Return the last values of `columns`, shape (columns, limit), read-only; remembered while
        the tail is the same object, for who asks the same again and again."""
        known = self._selected.get(id(tail))
        if known is not None and known[0] is tail and known[1:3] == (columns, limit):
            return known[3]
        places = [self._places[column] for column in columns]
        table = Bars(tail.timestamp[-limit:], tail.values[-limit:, places].T).frozen()
        self._selected[id(tail)] = (tail, columns, limit, table)
        if len(self._selected) > _REMEMBERED:
            self._selected.popitem(last=False)
        return table

    # ------------------------------------------------------------------------------ leaving

    def known_actions(
        self, query: BarsQuery, symbols: Sequence[str], start: int, deadline: Deadline
    ) -> dict[str, tuple[int, int]]:
        """Return when the provider was last asked about actions of `symbols`, asking now where
        that is due, and when the next announced one takes effect: what is read from the store
        after this call is known as of these moments."""
        runtime = self._runtime
        if not symbols:
            return {}
        now_us = runtime.clock.now_us()
        known = runtime.action_store.checked(query.provider, symbols)
        due = [
            s
            for s in symbols
            if s not in known or known[s][0].start > start or now_us - known[s][1] > RECHECK
        ]
        if due:
            runtime.actions.ensure(query.provider, due, start, deadline)
            known = runtime.action_store.checked(query.provider, symbols)
        told = runtime.action_store.actions(query.provider, symbols, SHARE_CHANGES)
        return {
            s: (asked, valid_until(splits_of(told[s]), now_us)) for s, (_, asked) in known.items()
        }

    def can_leave(self, query: BarsQuery) -> bool:
        """Whether answers to `query` come from one stored series, whose floor can guard them."""
        return len(self._runtime.broker.capabilities(query.feed).bases[query.timeframe]) == 1

    def leave(
        self,
        request: Request,
        read: Mapping[str, tuple[SeriesAnswer, int]],
        values: Mapping[str, Floats],
        splits: Mapping[str, Sequence[Split]],
        actions: Mapping[str, tuple[int, int]],
    ) -> None:
        """Leave the newest of `values` in the cache, and the last of them in the store. Neither of
        them makes the read fail that has computed them.

        Parameters
        ----------
        read : mapping
            By symbol, the closed bars read and the index of the first with a settled value.
        values : mapping
            Of each bar read, shape (kept columns, bars).
        splits, actions : mapping
            What the bars were adjusted with, and what `known_actions` said before.
        """
        query = request.query
        newest = self._newest(query, request.now_us)
        assert newest is not None
        base, end = newest
        tails: dict[SeriesKey, Tail] = {}
        for symbol, (series, first) in read.items():
            if symbol not in actions:
                continue
            tail = _tail(series.bars, first, values[symbol], end)
            if tail is not None:
                tails[query.key(symbol)] = replace(
                    tail,
                    revision=series.revision,
                    actions_us=actions[symbol][0],
                    action_version=version_number(symbol, splits.get(symbol, ()), series.lineage),
                    fetched_us=series.fetched_us,
                    base=base,
                    valid_until=actions[symbol][1],
                )
        if tails:
            self._keep(tails)
            self._cache.put(tails)

    def _keep(self, tails: Mapping[SeriesKey, Tail]) -> None:
        """Store the last value of each, unless that is what this process has stored already."""
        rests_on = {
            key: (int(tail.timestamp[-1]), tail.revision, tail.actions_us, tail.action_version)
            for key, tail in tails.items()
        }
        keys = [key for key in tails if self._stored.get(key) != rests_on[key]]
        if not keys or not self._may_store:
            return
        chosen = [tails[key] for key in keys]
        newest = Newest(
            keys,
            np.array([tail.timestamp[-1] for tail in chosen], np.int64),
            np.stack([tail.values[-1] for tail in chosen]),
            np.array([tail.revision for tail in chosen], np.int64),
            np.array([tail.actions_us for tail in chosen], np.int64),
            np.array([tail.action_version for tail in chosen], np.int64),
        )
        try:
            self._store.save(newest)
        except MarketDataError as error:
            self._may_store = not isinstance(error, StoreReadOnlyError)
            log.info("newest values of %d series not stored: %s", len(keys), error)
            return
        for key in keys:
            self._stored[key] = rests_on[key]
            self._stored.move_to_end(key)
        while len(self._stored) > _STORED_REMEMBERED:
            self._stored.popitem(last=False)


def _tail(bars: Bars, first: int, values: Floats, end: int) -> Tail | None:
    """Return the newest values of the bars before `end`, from the `first` on."""
    stop = int(bars.timestamp.searchsorted(end))
    start = max(first, stop - CAPACITY)
    if start >= stop:
        return None
    previous = int(bars.timestamp[start - 1]) if start else NOTHING_BEFORE
    return Tail(bars.timestamp[start:stop], values[:, start:stop].T, end, 0, 0, 0, previous)
