"""Followers for tests: time passes when they wait, and what a test wants happens meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

import pandas as pd

from marketdata.client import Client
from marketdata.clock import FixedClock, from_micros, to_micros
from marketdata.following import Follower


class Stepping:
    """A waiter that moves the market's clock instead of sleeping.

    What `at` schedules happens when the follower has waited until then. Real threads may wake it,
    as the listener does; `pauses` counts the tries after errors.
    """

    def __init__(self, clock: FixedClock) -> None:
        self._clock = clock
        self._plans: list[tuple[int, Callable[[], object]]] = []
        self.waits: list[datetime] = []
        self.pauses = 0
        self.on_pause: Callable[[], object] = lambda: None
        self.woken = threading.Event()
        self.patient = False
        """Whether to give threads a moment to wake it before time passes."""

    def at(self, text: str, action: Callable[[], object]) -> None:
        self._plans.append((to_micros(datetime.fromisoformat(text)), action))
        self._plans.sort(key=lambda plan: plan[0])

    def until(self, moment_us: int) -> None:
        assert len(self.waits) < 5_000, "it waits and waits, and nothing comes"
        self.waits.append(from_micros(moment_us))
        if self.patient and self.woken.wait(0.5):
            self.woken.clear()
            return
        self.woken.clear()
        if self._plans and self._plans[0][0] <= moment_us:
            moment, action = self._plans.pop(0)
            self._clock.set(from_micros(max(moment, self._clock.now_us())))
            action()
            return
        self._clock.set(from_micros(moment_us))

    def pause(self, seconds: float) -> None:
        self.pauses += 1
        assert self.pauses < 200, "it tries and tries"
        self.on_pause()

    def wake(self) -> None:
        self.woken.set()


def follow(
    client: Client,
    clock: FixedClock,
    symbols: str | list[str],
    timeframe: str = "1min",
    **more: Any,
) -> tuple[Follower, Stepping]:
    """Return a follower that steps the clock, and its waiter."""
    waiter = Stepping(clock)
    client._make_waiter = lambda: waiter  # type: ignore[method-assign]
    return client.follow(symbols, timeframe, **more), waiter


def take(follower: Follower, count: int) -> list[pd.DataFrame]:
    return [next(follower) for _ in range(count)]


def labels(taken: Iterable[pd.DataFrame]) -> list[str]:
    """Return symbol and New York time of every row, in the order given."""
    found = []
    for frame in taken:
        for at in frame.index:
            symbol, moment = at if isinstance(at, tuple) else ("", at)
            local = moment.tz_convert("America/New_York")
            found.append(f"{symbol} {local:%m-%d %H:%M}".strip())
    return found
