"""Newly closed bars of many symbols: one read of each series, for all who watch it.

A feed follows one timeframe in one session, on a thread of its own, and leaves what it read for the
cycle. How far it is *complete* is kept beside the bars: a moment is stepped when every series that
an algorithm sees is known up to it, or an hourly bar could be missing at the very moment it closes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable
from typing import Final, NamedTuple

import numpy as np
import pandas as pd

import marketdata as md
from algorithms.frames import bars_of
from algorithms.hours import Hours, close_times
from algorithms.lines import Floats, Int64s

log = logging.getLogger("algorithms.live")

Batch = dict[str, tuple[Int64s, Floats]]
"""Symbol to bar labels and the columns open, high, low, close, volume."""
_PAUSE: Final = 30.0
_JOIN: Final = 5.0


class FeedName(NamedTuple):
    """What a feed gives."""

    timeframe: str
    session: str


class Feed:
    """One timeframe's bars, followed on a thread. Close it.

    Parameters
    ----------
    client : Client
    name : FeedName
    symbols : collection of str
    start : int, optional
        Microseconds UTC: bars labelled from there on are given first; by default those that close
        after now.
    wake : callable
        Called, on the feed's thread, when bars have come.

    Raises
    ------
    UnknownSymbolError
        Names every symbol that does not exist; nothing is followed.
    """

    def __init__(
        self,
        client: md.Client,
        name: FeedName,
        symbols: Collection[str],
        wake: Callable[[], None],
        start: int | None = None,
    ) -> None:
        self.name = name
        self.symbols = frozenset(symbols)
        self.error: str | None = None
        self.frames = 0
        self._wake = wake
        self._lock = threading.Lock()
        self._came: list[Batch] = []
        self._handed = 0
        self._follower = client.follow(
            sorted(symbols),
            name.timeframe,
            start=None if start is None else pd.Timestamp(start, unit="us", tz="UTC"),
            adjustment="raw",
            session="extended" if name.session == "extended" else "regular",
        )
        self._edge = self._follower.progress.until_us
        self._ended = threading.Event()
        self._thread = threading.Thread(
            target=self._read, name=f"algorithm-feed-{name.timeframe}", daemon=True
        )
        self._thread.start()

    def _read(self) -> None:
        while not self._ended.is_set():
            try:
                for frame in self._follower:
                    batch = bars_of(frame)
                    with self._lock:
                        self._came.append(batch)
                        self.frames += 1
                    self.error = None
                    self._wake()
                return
            except md.MarketDataError as error:
                # It retries by itself what is worth it. What a hand must cure is asked again: it
                # may concern one symbol of hundreds.
                log.error("the %s bars cannot be read: %s", self.name.timeframe, error)
                self.error = str(error)
                self._ended.wait(_PAUSE)
            except Exception as error:
                log.exception("the %s bars cannot be read", self.name.timeframe)
                self.error = repr(error)
                self._ended.wait(_PAUSE)

    def take(self) -> list[Batch]:
        """Return what has come since the last call, by bar time."""
        with self._lock:
            came, self._came = self._came, []
            self._handed = self.frames
            progress = self._follower.progress
            if progress.frames == self._handed:
                self._edge = progress.until_us
            elif came:
                # More is read already and not here yet: complete up to what is.
                newest = max(int(labels[-1]) for batch in came for labels, _ in batch.values())
                self._edge = max(self._edge, newest)
        return came

    @property
    def edge(self) -> int:
        """Bars labelled before this instant were handed out by `take`."""
        return self._edge

    def close(self) -> None:
        """End the reading and its subscription. Idempotent."""
        self._ended.set()
        self._follower.close()
        if self._thread is not threading.current_thread():
            self._thread.join(_JOIN)


def complete_until(edge: int, name: FeedName, hours: Hours) -> int:
    """Return up to which instant (inclusive) every bar that closes by then is known.

    Parameters
    ----------
    edge : int
        Bars labelled before it are known.
    name : FeedName
    hours : Hours
    """
    label = edge
    if not md.Timeframe.parse(name.timeframe).intraday:
        # The first bar that may be missing is the one of the first session from the edge on.
        at = int(np.searchsorted(hours.midnight, edge))
        if at == len(hours.midnight):
            return edge
        label = int(hours.midnight[at])
    closes = close_times(np.array([label], np.int64), name.timeframe, hours, name.session)
    return int(closes[0]) - 1


def joined(batches: Iterable[Batch]) -> Batch:
    """Return several batches, ascending by time, as one."""
    parts: dict[str, list[tuple[Int64s, Floats]]] = {}
    for batch in batches:
        for symbol, bars in batch.items():
            parts.setdefault(symbol, []).append(bars)
    return {
        symbol: found[0]
        if len(found) == 1
        else (
            np.concatenate([labels for labels, _ in found]),
            np.concatenate([columns for _, columns in found], axis=1),
        )
        for symbol, found in parts.items()
    }
