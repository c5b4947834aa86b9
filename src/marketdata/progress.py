"""A progress line for calls that take long: on stderr or in Jupyter, never on stdout.

`MARKETDATA_PROGRESS` is ``auto`` (a terminal or a notebook), ``on`` or ``off``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from marketdata.fetching import Progress
    from marketdata.keeping import FetchTrace

_PATIENCE: Final = 2.0
"""Seconds before anything is shown: quick calls stay silent."""


def _wanted(mode: str) -> bool:
    if mode != "auto":
        return mode == "on"
    shell = type(sys.modules["IPython"].get_ipython()).__name__ if "IPython" in sys.modules else ""
    return sys.stderr.isatty() or shell == "ZMQInteractiveShell"


@contextmanager
def progress(
    mode: str, label: str, expected_bars: Callable[[], int | None] | None = None
) -> Iterator[Progress | None]:
    """Yield a callback for `FetchTrace` that shows bars, rate and time left once 2 s have passed.

    `expected_bars` is only asked then: counting them takes longer than a quick call may.
    """
    if not _wanted(mode):
        yield None
        return
    began = time.monotonic()
    bar: Bar | None = None
    expected: int | None = None

    def show(trace: FetchTrace) -> None:
        nonlocal bar, expected
        if bar is None and time.monotonic() - began >= _PATIENCE:
            expected = expected_bars() if expected_bars else None
            bar = _make(label, expected)
        if bar is not None:
            total = max(expected or 0, trace.bars) or None
            bar.update(bar.task_ids[0], completed=trace.bars, total=total)

    try:
        yield show
    finally:
        if bar is not None:
            bar.stop()


def _make(label: str, expected_bars: int | None) -> Bar:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("bars"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    bar.add_task(label, total=expected_bars)
    bar.start()
    return bar
