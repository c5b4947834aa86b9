"""The progress of a backfill: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from marketdata.cli.output import Output

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from marketdata.backfill_report import BackfillProgress, OnProgress

_WIDE: Final = 116
"""Columns of a terminal on which all figures have room beside a long bar."""
_LOG_EVERY: Final = 30.0
"""Seconds between two lines of progress where nobody watches."""


@contextmanager
def shown_progress(out: Output, mode: str) -> Iterator[OnProgress | None]:
    """Yield what shows a run's progress: a bar on a terminal, else a line now and then."""
    if mode == "off":
        yield None
        return
    if not out.notes.is_terminal:
        yield _Lines(out).show
        return
    wide = out.notes.width >= _WIDE
    bar = _bar(out, wide)

    def show(progress: BackfillProgress) -> None:
        bar.update(
            bar.task_ids[0],
            completed=progress.done,
            description=progress.now,
            figures=_figures(progress, wide),
        )

    with bar:
        yield show


def _bar(out: Output, wide: bool) -> Bar:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.table import Column

    width = 24 if wide else 8

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(width, table_column=Column(min_width=width)),
        TaskProgressColumn(),
        TextColumn("{task.fields[figures]}"),
        console=out.notes,
        transient=True,
    )
    bar.add_task("asking", total=1.0, figures="")
    return bar


def _figures(progress: BackfillProgress, wide: bool = True) -> str:
    left = progress.seconds_left
    parts = [
        f"{progress.bars:,} bars",
        f"{progress.bars_a_second:,.0f}/s",
        f"{progress.calls:,} calls" if wide else "",
        "" if left is None else f"{clock(left)} left",
        f"{progress.failed} failed" if progress.failed else "",
    ]
    return "  ".join(part for part in parts if part)


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Lines:
    """A line of progress every half minute."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._last = time.monotonic()

    def show(self, progress: BackfillProgress) -> None:
        now = time.monotonic()
        if now - self._last >= _LOG_EVERY:
            self._last = now
            self._out.note(f"{progress.done:4.0%}  {progress.now}  {_figures(progress)}")
