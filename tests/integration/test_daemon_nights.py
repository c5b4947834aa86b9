"""The night's work: once, made up for, tried again; in-process, with jobs that only note that they ran."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from marketdata.clock import Clock, parse_clock
from marketdata.config import Settings
from marketdata.daemon import Daemon
from marketdata.errors import BrokerUnavailableError
from marketdata.jobs import JOBS, NIGHTLY, Job
from marketdata.store import PostgresStore
from marketdata.types import Timeframe
from marketdata.wiring import Runtime
from tests.daemons import until
from tests.replayed_market import nowhere

__all__ = ["nowhere"]


@dataclass(frozen=True)
class Nothing:
    def summary(self) -> dict[str, int]:
        return {}


class Night:
    """A daemon on a thread, whose jobs only note that they ran, and fail as often as they are told."""

    def __init__(self, settings: dict[str, Any], clock: Clock, **failures: int) -> None:
        self.ran: list[str] = []
        self._failures = failures
        table = {name: Job(name, "", partial(self._prepare, name)) for name in JOBS}
        self.daemon = Daemon(
            Settings.load(companions="off", **settings),
            clock=clock,
            lease=6.0,
            look_every=0.2,
            jobs=table,
        )
        self._thread = threading.Thread(target=self.daemon.run, daemon=True)
        self._thread.start()

    def _prepare(self, name: str, _: Runtime, __: threading.Event) -> Callable[[], Nothing]:
        def work() -> Nothing:
            self.ran.append(name)
            if self._failures.get(name, 0):
                self._failures[name] -= 1
                raise BrokerUnavailableError("it is down")
            return Nothing()

        return work

    @property
    def night(self) -> list[str]:
        """What ran of the night's work."""
        return [name for name in self.ran if name in NIGHTLY]

    def close(self) -> None:
        self.daemon.stop()
        self._thread.join(30)


@pytest.fixture
def make_night(
    database_url: str, redis_db: str, nowhere: dict[str, str]
) -> Iterator[Callable[..., Night]]:
    with PostgresStore(database_url) as store:
        store.migrate()
    settings = {**nowhere, "database_url": database_url, "redis_url": redis_db}
    with ExitStack() as closing_:

        def make(clock: str | Clock, **failures: int) -> Night:
            chosen = parse_clock(clock) if isinstance(clock, str) else clock
            night = Night(settings, chosen, **failures)
            closing_.callback(night.close)
            return night

        yield make


def test_who_subscribes_at_the_weekend_does_not_wait_for_monday(
    make_night: Callable[..., Night], database_url: str, redis_db: str, nowhere: dict[str, str]
):
    saturday = make_night("replay:2024-03-16T12:00:00-04:00@300")
    until(lambda: saturday.ran.count("reconcile") >= 2)
    assert saturday.ran.count("cycle") == 1, "who comes to lead acts, and nobody after that"
    settings = {**nowhere, "database_url": database_url, "redis_url": redis_db}
    with closing(Runtime(Settings.load(**settings))) as runtime:
        runtime.subscriptions.pin("me", ["AAPL"], Timeframe.MIN_1)
    until(lambda: saturday.ran.count("cycle") == 2)
    seen = saturday.ran.count("reconcile")
    until(lambda: saturday.ran.count("reconcile") >= seen + 3)
    assert saturday.ran.count("cycle") == 2, "what cannot be fetched is not asked for again"


def test_a_night_that_was_missed_is_made_up_for_until_morning(make_night: Callable[..., Night]):
    at_seven = make_night("2024-03-14T07:00:00-04:00")
    until(lambda: {"cycle", "reconcile"} <= set(at_seven.ran))
    at_seven.close()
    assert at_seven.night == []
    at_three = make_night("2024-03-14T03:00:00-04:00")
    until(lambda: len(at_three.night) == 4)
    at_three.close()
    again = make_night("2024-03-14T03:30:00-04:00")
    until(lambda: {"cycle", "reconcile"} <= set(again.ran))
    again.close()
    assert at_three.night == list(NIGHTLY)
    assert again.night == [], "that night is over, whoever did it"


def test_what_fails_at_night_is_tried_again_and_what_is_done_is_not(
    make_night: Callable[..., Night],
):
    failing = make_night("replay:2024-03-14T00:59:00-04:00@900", backfill=2, verify=1)
    until(lambda: failing.night.count("backfill") == 3)
    until(lambda: failing.night.count("verify") == 2)
    assert failing.night.count("seal") == 1
    assert failing.night.count("retention") == 1
    assert failing.night[:5] == ["backfill", "seal", "retention", "verify", "backfill"]


def test_corporate_actions_are_asked_for_once_an_occasion_and_again_where_that_fails(
    make_night: Callable[..., Night],
):
    late = make_night("2024-03-14T11:30:00-04:00")
    until(lambda: {"cycle", "reconcile"} <= set(late.ran))
    late.close()
    assert "actions" not in late.ran, "the morning's time is over"
    failing = make_night("replay:2024-03-14T06:10:00-04:00@900", actions=1)
    until(lambda: failing.ran.count("actions") == 2)
    failing.close()
    again = make_night("2024-03-14T09:00:00-04:00")
    until(lambda: {"cycle", "reconcile"} <= set(again.ran))
    again.close()
    assert "actions" not in again.ran, "whoever did it this morning"
    evening = make_night("2024-03-14T19:00:00-04:00")
    until(lambda: "actions" in evening.ran)
