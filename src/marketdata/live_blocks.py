"""The blocks of live series in the cache: grown by each commit, written anew now and then.

A block of 500 bars is 32 KB and more: written anew for ten thousand series each minute that would
be half a gigabyte. What a commit adds is some hundred bytes, and goes behind the block.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from marketdata import caching
from marketdata.cycle_report import CycleTally
from marketdata.errors import StoreError
from marketdata.keeping import Stored
from marketdata.types import Bars, SeriesKey

if TYPE_CHECKING:
    from marketdata.wiring import Runtime

log = logging.getLogger("marketdata.aggregator")

_REBUILT_AT_ONCE: Final = 128


class LiveBlocks:
    """Keeps the newest blocks of series in the cache while their bars come in.

    Parameters
    ----------
    runtime : Runtime
        The stack to work on.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._newest: dict[SeriesKey, tuple[int, int, bytes]] = {}
        self._long: list[SeriesKey] = []

    def grow(
        self, committed: Mapping[SeriesKey, Sequence[Stored]], tally: CycleTally
    ) -> dict[SeriesKey, Bars]:
        """Add to the blocks what was committed; return by series what of it is new, no bars where
        coverage alone has grown."""
        growths = {}
        fresh: dict[SeriesKey, Bars] = {}
        for key, steps in committed.items():
            bars = self._unseen(key, steps)
            if not len(bars) and steps[-1].revision == steps[0].previous:
                continue
            fresh[key] = bars
            growth = caching.growth(steps, bars)
            if growth is None:
                tally.lost[key] = None
            else:
                growths[key] = growth
        for key, size in self._runtime.cache.grow(growths, self._ttls(growths)).items():
            if not size:
                tally.lost[key] = None
                continue
            tally.grown += 1
            tally.lost.pop(key, None)
            if caching.needs_rewriting(key, size):
                self._long.append(key)
        return fresh

    def _unseen(self, key: SeriesKey, steps: Sequence[Stored]) -> Bars:
        """Return the bars of one walk, without a first one that is the very bar this process
        stored last: most bars that are read again for corrections have none.

        That counts only where nobody else has written to the series in between.
        """
        bars = Bars.concat([step.commit.bars for step in steps])
        seen = self._newest.pop(key, None)
        if not len(bars):
            return bars
        stamps, values = bars.timestamp, bars.values
        if all(step.newest for step in steps):
            self._newest[key] = steps[-1].revision, int(stamps[-1]), values[:, -1].tobytes()
        if seen is not None and seen == (steps[0].previous, int(stamps[0]), values[:, 0].tobytes()):
            return Bars(stamps[1:], values[:, 1:])
        return bars

    def _ttls(self, keys: Iterable[SeriesKey]) -> dict[SeriesKey, float]:
        runtime = self._runtime
        caps = runtime.broker.capabilities(runtime.source.feed)
        calendar, now_us = runtime.calendar(), runtime.clock.now_us()
        look = float(runtime.settings.poll_after_hours)
        ttl = {
            base: caching.kept_alive(base, caps, calendar, now_us, look)
            for base in {key.timeframe for key in keys}
        }
        return {key: ttl[key.timeframe] for key in keys}

    def refresh(self, tally: CycleTally, stop: threading.Event, seconds: float) -> None:
        """Write anew the blocks that have grown long, then those that the cache has not, for
        about so many seconds; the rest is left to the next cycle, or to whoever reads it."""
        ends = time.monotonic() + seconds
        self._rewrite()
        lost = list(tally.lost)
        while lost and not stop.is_set() and time.monotonic() < ends:
            part, lost = lost[:_REBUILT_AT_ONCE], lost[_REBUILT_AT_ONCE:]
            for key in self._rebuild(part):
                tally.rebuilt += 1
                del tally.lost[key]

    def _rewrite(self) -> None:
        cache, calendar = self._runtime.cache, self._runtime.calendar()
        keys, self._long = self._long, []
        blocks = {
            key: caching.trimmed(block, calendar, key.timeframe)
            for key, block in cache.get(keys).items()
        }
        cache.put(blocks, self._ttls(blocks))

    def _rebuild(self, keys: Sequence[SeriesKey]) -> list[SeriesKey]:
        """Put the newest blocks of stored series into the cache; return those that were."""
        runtime = self._runtime
        caps = runtime.broker.capabilities(runtime.source.feed)
        blocks = caching.BlocksFromStore(caps, runtime.calendar(), runtime.clock.now_us())
        try:
            asked = blocks.ask(runtime.store.states(keys))
            while asked:
                asked = blocks.take(runtime.store.read(asked))
        except StoreError as error:
            log.warning("blocks of %d series not rebuilt: %s", len(keys), error)
            return []
        stored = runtime.cache.put(blocks.made, self._ttls(blocks.made))
        return list(blocks.made) if stored else []
