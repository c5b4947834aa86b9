"""A progress bar for what takes more than a second: on stderr, and only where a person looks."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")
_AFTER = 1.0
"""Seconds: what is quicker shows nothing."""


class Progress:
    """A bar that appears once its work has taken a second; ``MARKETDATA_PROGRESS=on|off`` decides
    for terminals and others alike, as for marketdata's own."""

    def __init__(self, wanted: bool | None = None) -> None:
        if wanted is None:
            said = os.environ.get("MARKETDATA_PROGRESS", "auto").lower()
            wanted = said == "on" or (said != "off" and sys.stderr.isatty())
        self.wanted = wanted
        self._began = time.monotonic()
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}

    def counter(self, what: str) -> Callable[[int, int], None]:
        """Return what is to be called with how much is done, and of how much."""

        def report(done: int, of: int) -> None:
            if self.wanted and time.monotonic() - self._began > _AFTER:
                self._show(what, done, of)

        return report

    def over(self, parts: Sequence[T], what: str) -> list[T] | Any:
        """Return the parts as an iterator that reports each."""
        return _Reported(parts, self.counter(what))

    def _show(self, what: str, done: int, of: int) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what, total=of)
        self._bar.update(self._tasks[what], completed=done, total=of)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class _Reported(Iterable[T]):
    def __init__(self, parts: Sequence[T], report: Callable[[int, int], None]) -> None:
        self._parts = parts
        self._report = report

    def __iter__(self) -> Iterator[T]:
        for done, part in enumerate(self._parts, 1):
            yield part
            self._report(done, len(self._parts))
