"""Who is hosted, what they watch, and where their bars come from.

Feeds follow the union of what all watch; markets hold each series once. Both grow when somebody
comes and shrink when the last one who watched a symbol goes.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import numpy as np

import marketdata as md
from algorithms.hours import Hours
from algorithms.live.feeds import Feed, FeedName, complete_until, joined
from algorithms.live.hosting import Hosted
from algorithms.live.warming import MarketKind, Needs, SharedMarket, read_series
from algorithms.market import SeriesName

log = logging.getLogger("algorithms.live")

_UNKNOWN: Final = "symbols"


class Roster:
    """The feeds and markets of a runner's algorithms.

    Parameters
    ----------
    client : Client
    wake : callable
        Called, on a feed's thread, when bars have come.
    """

    def __init__(self, client: md.Client, wake: Callable[[], None]) -> None:
        self._client = client
        self._wake = wake
        self._feeds: dict[FeedName, Feed] = {}
        self._markets: dict[MarketKind, list[SharedMarket]] = defaultdict(list)
        self._session = -1
        self._actions_due = False
        self.bars = 0
        """Bars taken in so far."""

    # --------------------------------------------------------------------------------- feeds

    def follow(self, needs: Iterable[Needs]) -> None:
        """Follow what these watch and nothing else.

        Raises
        ------
        UnknownSymbolError
            Names the symbols that do not exist; what was followed before still is.
        """
        wanted: dict[FeedName, set[str]] = defaultdict(set)
        for each in needs:
            for name in each.feeds:
                wanted[name].update(each.symbols)
        for name, symbols in wanted.items():
            held = self._feeds.get(name)
            if held is not None and held.symbols == symbols:
                continue
            start = None if held is None else held.edge
            fresh = Feed(self._client, name, symbols, self._wake, start)
            self._feeds[name] = fresh
            if held is not None:
                held.close()
        for name in set(self._feeds) - set(wanted):
            self._feeds.pop(name).close()
        self._forget(wanted)

    def _forget(self, wanted: Mapping[FeedName, set[str]]) -> None:
        """Drop the series that nobody follows: they would have a hole when somebody comes back."""
        for kind, markets in self._markets.items():
            for market in markets:
                for symbol, timeframe in list(market.data.series):
                    if symbol not in wanted.get(FeedName(timeframe, kind.session), ()):
                        market.drop((symbol, timeframe))

    def complete(self, needs: Needs) -> int:
        """Return up to which instant every bar of what is watched is known."""
        return min(
            complete_until(self._feeds[name].edge, name, self._hours(needs.kind))
            for name in needs.feeds
        )

    def edge(self, needs: Needs) -> int:
        """Return the instant before which bars of all that is watched are known by their labels."""
        return min(self._feeds[name].edge for name in needs.feeds)

    def _hours(self, kind: MarketKind) -> Hours:
        return self._markets[kind][0].data.hours

    # ------------------------------------------------------------------------------- markets

    def admit(self, hosted: Hosted, now: int) -> SharedMarket:
        """Give an algorithm the market it belongs to."""
        needs = hosted.needs
        assert needs is not None
        markets = self._markets[needs.kind]
        for market in markets:
            if market.suits(needs, hosted.cursor, now):
                return market
        markets.append(SharedMarket(needs.kind, now))
        return markets[-1]

    def warm(self, market: SharedMarket, newcomers: Sequence[Hosted], now: int) -> None:
        """Read the series that newcomers to a market lack."""
        wanted: dict[SeriesName, int] = {}
        cursors = []
        for hosted in newcomers:
            assert hosted.needs is not None
            for name, bars in market.lacks(hosted.needs):
                wanted[name] = max(wanted.get(name, 0), bars)
            cursors.append(hosted.cursor)
        if wanted:
            since = min((c for c in cursors if c is not None), default=None)
            market.add(read_series(self._client, market, wanted, since, now))

    def take(self) -> int:
        """Take in what the feeds have brought; return how many bars were new."""
        count, newest = 0, -1
        for name, feed in self._feeds.items():
            batch = joined(feed.take())
            if not batch:
                continue
            newest = max(newest, *(int(labels[-1]) for labels, _ in batch.values()))
            for kind, markets in self._markets.items():
                if kind.session == name.session:
                    for market in markets:
                        count += market.extend(name.timeframe, batch)
        if newest >= 0:
            self._note_session(newest)
        self.bars += count
        return count

    def _note_session(self, newest: int) -> None:
        for markets in self._markets.values():
            hours = markets[0].data.hours
            session = int(hours.midnight[np.searchsorted(hours.midnight, newest, side="right") - 1])
            if session > self._session:
                self._session, self._actions_due = session, True
            return

    def renew_actions(self) -> None:
        """Ask about corporate actions where a new session has begun; before anybody is stepped."""
        if not self._actions_due:
            return
        for markets in self._markets.values():
            for market in markets:
                market.renew_actions(self._client)
        self._actions_due = False

    def errors(self) -> dict[str, str]:
        """Return the feeds that cannot be read now, and why."""
        return {feed.name.timeframe: feed.error for feed in self._feeds.values() if feed.error}

    def close(self) -> None:
        """End all feeds."""
        for feed in self._feeds.values():
            feed.close()
        self._feeds.clear()


def unknown_symbols(error: md.MarketDataError) -> frozenset[str]:
    """Return the symbols that an error says do not exist."""
    named = error.facts.get(_UNKNOWN)
    return frozenset(named) if isinstance(named, list) else frozenset()
