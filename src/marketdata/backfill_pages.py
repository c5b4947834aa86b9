"""Pages asked for ahead of whoever stores them, on threads."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from marketdata.clock import Deadline
from marketdata.protocols import BarsPage

_POLL: Final = 0.25
"""Seconds between two looks at whether to go on."""


class WhileWanted(Deadline):
    """A deadline that passes when nobody wants the answer any more."""

    __slots__ = ("_over",)

    def __init__(self, over: threading.Event) -> None:
        super().__init__(None)
        self._over = over

    def remaining(self) -> float:
        return 0.0 if self._over.is_set() else super().remaining()

    @property
    def expired(self) -> bool:
        return self._over.is_set()


class PagesAhead:
    """Asks for pages of one or several walks, each on a thread, a page ahead of whoever takes them.

    Parameters
    ----------
    walks : sequence of iterators
        As `Broker.pages` returns them.
    may_ask : callable
        Whether another page may be asked for; where not, the walks end with those under way.
    in_haste : callable
        Whether not even an answer that is under way is waited for.
    over : Event
        Set by whoever takes the pages, once no more are wanted.
    """

    def __init__(
        self,
        walks: Sequence[Iterator[BarsPage]],
        may_ask: Callable[[], bool],
        in_haste: Callable[[], bool],
        over: threading.Event,
    ) -> None:
        self.cut = False
        """Whether a walk was ended before its last page."""
        self.failed = False
        """Whether the broker's error ended one."""
        self._walks = walks
        self._may_ask = may_ask
        self._in_haste = in_haste
        self._over = over
        self._ready: queue.Queue[BarsPage | BaseException | None] = queue.Queue(maxsize=len(walks))

    def __iter__(self) -> Iterator[BarsPage]:
        """Yield pages as they come, of all walks to their ends; raise the first error then."""
        for walk in self._walks:
            threading.Thread(
                target=self._ask, args=[walk], name="marketdata-backfill-pages", daemon=True
            ).start()
        walking = len(self._walks)
        error: BaseException | None = None
        while walking:
            try:
                found = self._ready.get(timeout=_POLL)
            except queue.Empty:
                if not self._in_haste():
                    continue
                self.cut = True
                break
            if isinstance(found, BarsPage):
                yield found
                continue
            walking -= 1
            error = error or found
        if error is not None:
            self.failed = True
            raise error

    def _ask(self, walk: Iterator[BarsPage]) -> None:
        try:
            while True:
                if not self._may_ask():
                    self.cut = True
                    break
                page = next(walk, None)
                if page is None:
                    break
                self._put(page)
                if self._over.is_set():
                    return
        except BaseException as error:
            self._put(error)
            return
        self._put(None)

    def _put(self, item: BarsPage | BaseException | None) -> None:
        while not self._over.is_set():
            try:
                self._ready.put(item, timeout=_POLL)
                return
            except queue.Full:
                continue
