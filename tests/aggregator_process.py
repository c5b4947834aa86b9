"""One cycle of the aggregator in a process of its own, killed at a chosen point.

Run: ``python -m tests.aggregator_process SETTINGS POINT SYMBOL...`` with the settings as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from datetime import datetime
from typing import Any, Final, NoReturn

from marketdata.aggregator import Aggregator
from marketdata.cache import RedisCache
from marketdata.clock import FixedClock
from marketdata.config import Settings
from marketdata.store import PostgresStore
from marketdata.wiring import Runtime

POINTS: Final = ("floor", "committed", "grown", "landed", "none")
"""When the floor is raised but nothing committed; when PostgreSQL has
committed and Redis knows nothing; when Redis has it but nobody was told; when the flight ended."""


def die(*_: Any, **__: Any) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def arrange_death(point: str) -> None:
    """Let this process be killed when it comes to `point`."""
    if point == "floor":
        raised = RedisCache.raise_floor

        def raise_and_die(self: RedisCache, revisions: Any) -> None:
            raised(self, revisions)
            die()

        RedisCache.raise_floor = raise_and_die  # type: ignore[method-assign]
    elif point == "committed":
        RedisCache.grow = die  # type: ignore[method-assign]
    elif point == "grown":
        Aggregator._announce = die  # type: ignore[method-assign]
    elif point == "landed":
        land = PostgresStore.land

        def land_and_die(self: PostgresStore, *arguments: Any) -> None:
            land(self, *arguments)
            die()

        PostgresStore.land = land_and_die  # type: ignore[method-assign, assignment]


def main(settings: str, point: str, *symbols: str) -> None:
    chosen = Settings.load(**json.loads(settings))
    clock = FixedClock(datetime.fromisoformat(chosen.clock))
    runtime = Runtime(chosen, clock)
    aggregator = Aggregator(
        runtime, threading.Event(), wanted=lambda: [(symbol, "1min") for symbol in symbols]
    )
    arrange_death(point)
    report = aggregator.cycle()
    print(json.dumps(report.summary()))
    runtime.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
