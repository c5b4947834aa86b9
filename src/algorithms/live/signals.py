"""A runner in the main thread of a process: Ctrl-C and SIGTERM end it after its cycle."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import marketdata as md
from algorithms.live.runner import LiveRunner


@contextmanager
def stopped_by_signals(runner: LiveRunner) -> Iterator[list[int]]:
    """Have Ctrl-C and SIGTERM end `runner` after its cycle, and a second one at once.

    Yields
    ------
    list of int
        The signals that came.
    """
    came: list[int] = []

    def heard(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            raise KeyboardInterrupt
        runner.stop()

    before = {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_until_signalled(runner: LiveRunner) -> int:
    """Run in the main thread until a signal; return the exit code: 130 after Ctrl-C, else 0."""
    # Raw prices across a split are what algorithms need: positions are split too.
    warnings.simplefilter("ignore", md.SplitInRangeWarning)
    with stopped_by_signals(runner) as came:
        try:
            runner.run()
        except KeyboardInterrupt:
            return 130
    return 130 if signal.SIGINT in came else 0
