"""Several fetches at once, ended in time: what a cycle does with the broker.

One request is parsed while others wait for the broker or the database. A batch that one symbol
spoils is halved until that symbol stands alone. Where no request can succeed, the rest is not made.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Final

from marketdata.clock import Deadline
from marketdata.errors import (
    AuthenticationError,
    BrokerResponseError,
    BrokerTimeoutError,
    DataQualityError,
    MarketDataError,
    StoreError,
)
from marketdata.fetching import Fetcher
from marketdata.keeping import FetchTrace, Stored
from marketdata.planning import Fetch

log = logging.getLogger("marketdata.aggregator")

AT_ONCE: Final = 3
STOP_PATIENCE: Final = 15.0
"""Seconds to wait, after the end was asked for, for pages under way: a service manager waits 25."""
LEAST_PATIENCE: Final = 10.0
"""Seconds a fetch may take although the time of its cycle is nearly over."""
_HALVES: Final = 40
"""Extra requests a run of walks may spend on finding the symbols that spoil batches."""


@dataclass(slots=True)
class Walked:
    """What became of one fetch."""

    fetch: Fetch
    trace: FetchTrace = field(default_factory=FetchTrace)
    stored: list[Stored] = field(default_factory=list)
    error: Exception | None = None
    """Why it failed; finished pages are stored all the same."""
    asked: bool = True
    """False: not made, because another one failed in a way that this one would."""
    postponed: bool = False
    """Not made or not finished because the time was over or the end was asked for."""

    @property
    def spoilt(self) -> bool:
        """Whether one of its symbols may be the reason that it failed."""
        blamed = isinstance(self.error, BrokerResponseError | DataQualityError)
        return blamed and not getattr(self.error, "transient", False)


class _CutShortError(Exception):
    """Ends a walk after a page that was kept."""


class Walks:
    """Makes fetches, a few at a time.

    Parameters
    ----------
    fetcher : Fetcher
        Makes one fetch.
    stop : threading.Event
        Ends all after the pages under way.
    timeout : float
        Seconds one fetch may take.
    """

    def __init__(self, fetcher: Fetcher, stop: threading.Event, timeout: float) -> None:
        self._fetcher = fetcher
        self._stop = stop
        self._timeout = timeout

    def run(self, fetches: Sequence[Fetch], ends: float) -> Iterator[Walked]:
        """Make `fetches` and yield what became of each, in the order in which they end.

        Those of one series are made one after the other: at once they would only wait for each
        other. Once the end is asked for, none begins, and those under way have `STOP_PATIENCE` to
        end.

        Parameters
        ----------
        ends : float
            On `time.monotonic`: none begins later, and a longer one is cut short after a page. The
            first is made in any case.
        """
        todo = list(reversed(fetches))
        walked: SimpleQueue[Walked] = SimpleQueue()
        under_way: list[Fetch] = []
        begun = halved = 0
        hopeless: Exception | None = None
        while todo or under_way:
            while todo and len(under_way) < AT_ONCE and hopeless is None:
                if self._stop.is_set() or (begun and time.monotonic() > ends):
                    yield from (Walked(fetch, postponed=True) for fetch in reversed(todo))
                    todo.clear()
                    break
                place = _first_free(todo, under_way)
                if place is None:
                    break
                under_way.append(todo.pop(place))
                self._begin(under_way[-1], ends, walked)
                begun += 1
            if not under_way:
                break
            done = self._next(walked)
            if done is None:
                log.warning("%d requests under way are left to themselves", len(under_way))
                left = [*under_way, *reversed(todo)]
                yield from (Walked(fetch, postponed=True) for fetch in left)
                return
            under_way = [fetch for fetch in under_way if fetch is not done.fetch]
            if isinstance(done.error, AuthenticationError | StoreError):
                hopeless = done.error
            if done.spoilt and len(done.fetch.keys) > 1 and halved < _HALVES:
                halved += 2
                todo += _halves(done.fetch)
                done.error = None
            yield done
        yield from (Walked(fetch, error=hopeless, asked=False) for fetch in reversed(todo))

    def _next(self, walked: SimpleQueue[Walked]) -> Walked | None:
        """Wait for a fetch to end; None where the end was asked for and none comes to it."""
        patience = float("inf")
        while True:
            if self._stop.is_set() and patience == float("inf"):
                patience = time.monotonic() + STOP_PATIENCE
            try:
                return walked.get(timeout=max(0.0, min(0.2, patience - time.monotonic())))
            except Empty:
                if time.monotonic() >= patience:
                    return None

    def _begin(self, fetch: Fetch, ends: float, walked: SimpleQueue[Walked]) -> None:
        threading.Thread(
            target=lambda: walked.put(self._made(fetch, ends)), name="marketdata-walk", daemon=True
        ).start()

    def _made(self, fetch: Fetch, ends: float) -> Walked:
        """Make one fetch; never raises."""
        result = Walked(fetch)

        def go_on(_: FetchTrace) -> None:
            if self._stop.is_set() or time.monotonic() > ends:
                raise _CutShortError

        try:
            patience = max(LEAST_PATIENCE, ends - time.monotonic())
            deadline = Deadline(min(self._timeout, patience))
            self._fetcher.fetch(fetch, deadline, result.trace, go_on, result.stored.extend)
        except _CutShortError:
            result.postponed = True
        except BrokerTimeoutError as error:
            if result.trace.pages and time.monotonic() >= ends:
                result.postponed = True
            else:
                result.error = error
        except MarketDataError as error:
            result.error = error
        except Exception as error:
            log.exception("a fetch of %d symbols failed", len(fetch.keys))
            result.error = error
        return result


def _first_free(todo: Sequence[Fetch], under_way: Sequence[Fetch]) -> int | None:
    """Return the place of the last fetch of `todo`, which is the first in line, that shares no
    series with those under way."""
    busy = {key for fetch in under_way for key in fetch.keys}
    for place in range(len(todo) - 1, -1, -1):
        if busy.isdisjoint(todo[place].keys):
            return place
    return None


def _halves(fetch: Fetch) -> list[Fetch]:
    middle = len(fetch.keys) // 2
    return [
        Fetch(fetch.base, fetch.span, half, fetch.again)
        for half in (fetch.keys[:middle], fetch.keys[middle:])
    ]
