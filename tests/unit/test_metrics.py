"""What is made of the store's figures: lag by the calendar, findings, metrics, HTTP answers."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from marketdata.calendars import EXCHANGE, calendar_for
from marketdata.cli.status import facts_of
from marketdata.clock import to_micros
from marketdata.config import Settings
from marketdata.errors import ConfigurationError
from marketdata.findings import Level, described, findings
from marketdata.health import HealthServer, State
from marketdata.jobs import Ended
from marketdata.metrics import CONTENT_TYPE, Metrics
from marketdata.protocols import Priority
from marketdata.schedule import Tick, Timetable
from marketdata.store.leases import Holding
from marketdata.types import DAY, HOUR, MINUTE, SECOND, Timeframe
from marketdata.wellbeing import Vitals, assess, timetable
from tests.vitals_examples import CACHE, REAL, figures, run


def at(text: str) -> int:
    return to_micros(datetime.fromisoformat(text))


OPEN = at("2024-03-14T15:00:30-04:00")
"""A Thursday in session."""
SUNDAY = at("2024-03-17T12:00:00-04:00")
FRIDAY_END = at("2024-03-15T20:00:00-04:00")


def vitals(now: int = OPEN, table: Timetable | None = None, **changes: Any) -> Vitals:
    calendar = calendar_for(EXCHANGE, now)
    return assess(figures(now, **changes), calendar, now, table or Timetable(), request_limit=200)


def minutes_behind(now: int, covered: int) -> Vitals:
    return vitals(now, wanted={Timeframe.MIN_1: {covered: 1}})


# ------------------------------------------------------------------------------------------ lag


@pytest.mark.parametrize(
    ("now", "covered", "seconds"),
    [
        # a minute's grace: at 15:00:30 the bars up to 14:59 are due
        ("2024-03-14T15:00:30-04:00", "2024-03-14T15:00:00-04:00", 0),
        ("2024-03-14T15:00:30-04:00", "2024-03-14T14:59:00-04:00", 0),
        ("2024-03-14T15:00:30-04:00", "2024-03-14T14:49:00-04:00", 600),
        # nothing but trading time counts: from Friday evening to Monday 04:15
        ("2024-03-17T12:00:00-04:00", "2024-03-15T20:00:00-04:00", 0),
        ("2024-03-18T04:10:00-04:00", "2024-03-15T20:00:00-04:00", 0),
        ("2024-03-18T04:20:00-04:00", "2024-03-15T20:00:00-04:00", 900),
        ("2024-03-17T12:00:00-04:00", "2024-03-15T19:59:00-04:00", 60),
        # outside market hours a quarter of an hour is none
        ("2024-03-14T18:14:00-04:00", "2024-03-14T18:00:00-04:00", 0),
        ("2024-03-14T18:17:00-04:00", "2024-03-14T18:00:00-04:00", 900),
        # Thanksgiving, and the half-day after it
        ("2024-11-28T15:00:00-05:00", "2024-11-27T20:00:00-05:00", 0),
        ("2024-11-29T19:00:00-05:00", "2024-11-29T17:00:00-05:00", 0),
    ],
)
def test_lag_counts_bars_that_are_due(now: str, covered: str, seconds: float):
    found = minutes_behind(at(now), at(covered))
    assert found.lag[Timeframe.MIN_1].worst == seconds
    assert found.lag[Timeframe.MIN_1].stale == (seconds > 300)


@pytest.mark.parametrize(
    ("now", "covered", "stale"),
    [
        ("2024-03-14T15:00:00-04:00", "2024-03-13T16:00:00-04:00", 0),  # yesterday's is the newest
        ("2024-03-14T16:15:00-04:00", "2024-03-13T16:00:00-04:00", 0),  # today's is not closed yet
        ("2024-03-14T16:45:00-04:00", "2024-03-13T16:00:00-04:00", 1),
        ("2024-03-14T16:45:00-04:00", "2024-03-14T16:00:00-04:00", 0),
        ("2024-03-17T12:00:00-04:00", "2024-03-15T16:00:00-04:00", 0),
    ],
)
def test_days_are_due_in_the_evening(now: str, covered: str, stale: int):
    found = vitals(at(now), wanted={Timeframe.DAY_1: {at(covered): 1}})
    assert found.lag[Timeframe.DAY_1].stale == stale


def test_a_delayed_feed_is_not_late():
    now, covered = at("2024-03-14T15:00:30-04:00"), at("2024-03-14T14:43:00-04:00")
    delayed = vitals(
        now, Timetable(settle_delay=16 * MINUTE), wanted={Timeframe.MIN_1: {covered: 1}}
    )
    assert delayed.lag[Timeframe.MIN_1].worst == 0


def test_what_was_never_fetched_is_stale():
    found = vitals(wanted={Timeframe.MIN_1: {None: 3, OPEN: 97}})
    lag = found.lag[Timeframe.MIN_1]
    assert (lag.symbols, lag.stale, lag.unfetched, lag.worst) == (100, 3, 3, 0)


# ------------------------------------------------------------------------------------- findings


def levels(found: Vitals) -> dict[str, Level]:
    return {f.subject: f.level for f in findings(found)}


@pytest.mark.parametrize("now", [OPEN, SUNDAY, at("2024-11-28T12:00:00-05:00")])
def test_nothing_is_found_where_all_is_well(now: int):
    assert findings(vitals(now)) == []


def test_nothing_is_expected_where_nothing_is_subscribed():
    old = {"cycle": run("cycle", OPEN - 30 * DAY)}
    assert findings(vitals(leases={}, wanted={}, runs=old, successes=old)) == []


def test_a_store_without_a_daemon():
    old = {"cycle": run("cycle", OPEN - HOUR)}
    alone = vitals(leases={}, runs=old, successes=old)
    assert levels(alone) == {"leader": Level.CRITICAL}
    assert "6 subscribed series" in findings(alone)[0].text
    by_cron = {"cycle": run("cycle", OPEN - MINUTE)}
    assert findings(vitals(leases={}, runs=by_cron, successes=by_cron)) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"read_only": True}, {"read_only": Level.CRITICAL}),
        ({"torn": 3, "gaps": 4}, {"gaps": Level.WARNING}),
        ({"passed_over": {("cycle", "skipped"): 7}}, {"skipped": Level.WARNING}),
        ({"passed_over": {("cycle", "missed"): 1}}, {"skipped": Level.OK}),
        ({"requests_used": 190}, {}),  # a backfill leaves as many by itself
        ({"requests_used": 195}, {"budget": Level.WARNING}),
        ({"requests_paused": True}, {"budget": Level.WARNING}),
        ({"wanted": {Timeframe.MIN_1: {None: 1, OPEN: 99}}}, {"stale": Level.WARNING}),
        ({"wanted": {Timeframe.MIN_1: {None: 20, OPEN: 80}}}, {"stale": Level.CRITICAL}),
    ],
)
def test_what_is_not_well_is_found(changes: dict[str, Any], expected: dict[str, Level]):
    assert levels(vitals(**changes)) == expected


@pytest.mark.parametrize(("failures", "level"), [(1, Level.WARNING), (3, Level.CRITICAL)])
def test_jobs_that_fail(failures: int, level: Level):
    error = {"type": "StoreReadOnlyError", "message": "the disk is full", "cure": "make room"}
    runs = {"seal": run("seal", OPEN - HOUR, "failed", error=error)}
    found = findings(vitals(runs=runs, successes={}, failures={"seal": failures}))
    assert (found[0].level, found[0].subject) == (level, "job")
    assert "the disk is full" in str(found[0])
    assert "make room" in str(found[0])


@pytest.mark.parametrize(
    ("job", "ago", "overdue", "level"),
    [
        ("cycle", 2 * MINUTE, 60, None),
        ("cycle", 10 * MINUTE, 9 * 60, Level.CRITICAL),
        ("reconcile", 10 * MINUTE, 6 * 60, None),
        ("reconcile", HOUR, 56 * 60, Level.WARNING),
        ("backfill", 20 * HOUR, 14 * 3600, Level.WARNING),
        ("backfill", 12 * HOUR, 0, None),  # at three in the morning
    ],
)
def test_jobs_that_are_overdue(job: str, ago: int, overdue: float, level: Level | None):
    runs = {job: run(job, OPEN - ago)}
    found = vitals(runs=runs, successes=runs)
    assert found.overdue[job] == pytest.approx(overdue, abs=60)
    assert levels(found) == ({"overdue": level} if level else {})


def test_a_weekend_makes_nothing_overdue():
    friday = at("2024-03-15T21:00:10-04:00")
    saturday = at("2024-03-16T10:00:10-04:00")
    early, late = {"cycle": run("cycle", friday)}, {"cycle": run("cycle", saturday)}
    assert vitals(saturday - HOUR, runs=early, successes=early).overdue["cycle"] == 0
    assert vitals(SUNDAY, runs=late, successes=late).overdue["cycle"] == 0
    assert vitals(SUNDAY, runs=early, successes=early).overdue["cycle"] > 0, "Friday's final days"


def test_the_worst_comes_first():
    found = findings(vitals(torn=1, gaps=1, read_only=True))
    assert [f.level for f in found] == [Level.CRITICAL, Level.WARNING]


def test_the_forecast_grows_with_symbols_and_years():
    now, calendar = OPEN, calendar_for(EXCHANGE, OPEN)

    def forecast(symbols: int, **settings: Any) -> int:
        found = figures(now, wanted={Timeframe.MIN_1: {now: symbols}})
        size = assess(found, calendar, now, Timetable(), **settings).forecast_bytes
        assert size is not None
        return size

    assert forecast(1000) == pytest.approx(10 * forecast(100), rel=1e-6)
    assert forecast(100, seal_after="never") > 5 * forecast(100)
    assert forecast(100, retention=365) < 0.6 * forecast(100)
    assert 4e9 < forecast(1000) < 6e9, "250 million bars, nearly all of them sealed"
    assert vitals(wanted={}).forecast_bytes is None


def test_a_companion_that_keeps_ending_is_told():
    told = {"state": "waiting", "failures": 3, "exit_code": 78}
    details = {"companions": {"algorithms": told, "other": {**told, "failures": 2}}}
    leader = Holding("daemon", "me@host/1", 3, REAL, REAL, details, True)
    (found,) = [f for f in findings(vitals(leases={"daemon": leader})) if f.subject == "companion"]
    assert found.level is Level.WARNING
    assert "algorithms" in found.text
    assert "exit code 78" in found.text


def test_vitals_are_json():
    told = json.loads(json.dumps(described(vitals(torn=1, gaps=2))))
    assert told["findings"][0]["subject"] == "gaps"
    assert told["requests_left"] == 180
    assert told["budgets"][0]["used_by"]["live"] == 8
    assert told["budgets"][0]["left_for"]["verify"] == 0
    assert told["budgets"][0]["waiting"] == ["backfill"]
    assert told["jobs"]["cycle"]["last_success"] == (REAL + timedelta(seconds=2)).isoformat()


def test_status_tells_how_the_budget_stands():
    found = vitals()
    assert facts_of(found)["budget"] == (
        "20 of 200 requests used in the last minute (live 8, backfill 12); 180 left, 18 of them "
        "kept from background work; waiting: backfill"
    )
    (budget,) = found.figures.budgets
    spent = replace(budget, credential="4567ef", used=200, paused=7.2, waiting=(Priority.READ,))
    told = facts_of(vitals(budgets=(budget, spent)))
    assert told["budget 4567ef"] == (
        "200 of 200 requests used in the last minute (live 8, backfill 12, assumed 180); 0 left, "
        "18 of them kept from background work; waiting: reads; the broker refuses everything for 7 s"
    )
    assert "budget" not in facts_of(vitals(budgets=()))
    idle = replace(budget, used=0, waiting=(), by_priority=dict.fromkeys(Priority, 0))
    assert facts_of(vitals(budgets=(idle,)))["budget"].startswith("0 of 200 requests used")


def test_settings_make_the_timetable():
    settings = Settings.load(poll=120, poll_after_hours=600, backfill_at="02:15")
    assert timetable(settings, 3 * SECOND, 20 * MINUTE, 5) == Timetable(
        2 * MINUTE, 10 * MINUTE, "02:15", 3 * SECOND, 20 * MINUTE, 5
    )


# -------------------------------------------------------------------------------------- metrics


class Exposed:
    """Metrics of a process, and what they say."""

    def __init__(self) -> None:
        self.leading = False
        self.metrics = Metrics(
            "1.2", leading=lambda: self.leading, heartbeat=lambda: 1.5, answers=lambda: {"200": 7}
        )

    def __getitem__(self, series: str) -> float:
        for line in self.metrics.exposition().decode().splitlines():
            name, _, value = line.rpartition(" ")
            if name == f"marketdata_{series}":
                return float(value)
        raise KeyError(series)


@pytest.fixture
def exposed() -> Exposed:
    return Exposed()


def test_what_happens_is_counted(exposed: Exposed):
    exposed.metrics.ended(Ended("cycle", "done", 4.2))
    exposed.metrics.ended(Ended("cycle", "failed", 0.3))
    exposed.metrics.ended(Ended("seal", "busy"))
    exposed.metrics.passed_over(Tick.CYCLE, "skipped")
    exposed.metrics.elected()
    assert exposed['job_runs_total{job="cycle",outcome="done"}'] == 1
    assert exposed['job_runs_total{job="seal",outcome="busy"}'] == 1
    assert exposed['cycle_seconds_bucket{le="5.0"}'] == 2
    assert exposed["cycle_seconds_sum"] == 4.5
    assert exposed['job_last_seconds{job="cycle"}'] == 0.3
    assert exposed['ticks_passed_over_total{reason="skipped",tick="cycle"}'] == 1
    assert exposed["leader"] == 0
    exposed.leading = True
    assert exposed["leader"] == 1
    assert exposed["heartbeat_age_seconds"] == 1.5
    assert exposed['broker_requests_total{status="200"}'] == 7


def test_what_was_seen_is_told_and_kept_while_a_server_is_down(exposed: Exposed):
    with pytest.raises(KeyError):
        exposed["series"]
    assert exposed['server_up{server="postgres"}'] == 0
    exposed.metrics.observe(vitals(torn=2, gaps=5), CACHE)
    assert exposed['server_up{server="postgres"}'] == 1
    assert exposed["gaps"] == 5
    assert exposed['subscriptions{timeframe="1min"}'] == 4
    assert exposed['bar_lag_seconds{timeframe="1min"}'] == 0
    assert exposed['reads_total{tier="redis"}'] == 90
    assert exposed['bars_rejected_total{reason="off_grid"}'] == 1
    assert exposed["rate_budget_left"] == 180
    assert exposed['rate_budget_used{priority="backfill"}'] == 12
    assert exposed['rate_budget_available{priority="read"}'] == 180
    assert exposed['rate_budget_available{priority="backfill"}'] == 162
    assert exposed['rate_budget_available{priority="verify"}'] == 0
    assert exposed['rate_budget_waiting{priority="backfill"}'] == 1
    assert exposed["rate_budget_paused_seconds"] == 0
    assert exposed['bars_stored{form="sealed"}'] == 20_000
    assert exposed["market_open"] == 1
    assert exposed["calendar_horizon_days"] > 300
    assert exposed['findings{level="warning"}'] == 1
    exposed.metrics.observe(None, None)
    assert exposed['server_up{server="postgres"}'] == 0
    assert exposed['server_up{server="redis"}'] == 0
    assert exposed["gaps"] == 5


def test_a_sunday_shows_no_lag(exposed: Exposed):
    exposed.metrics.observe(vitals(SUNDAY, wanted={Timeframe.MIN_1: {FRIDAY_END: 10_000}}), CACHE)
    assert exposed['bar_lag_seconds{timeframe="1min"}'] == 0
    assert exposed['series_stale{timeframe="1min"}'] == 0
    assert exposed["market_open"] == 0


# ----------------------------------------------------------------------------------------- HTTP


class Answers:
    """A health server whose state the test sets."""

    def __init__(self) -> None:
        self.live = self.ready = True
        self.slow = threading.Event()
        self.server = HealthServer(
            "127.0.0.1:0",
            live=lambda: State(self.live, {"live": self.live}),
            ready=lambda: State(self.ready, {"ready": self.ready}),
            detail=self._detail,
            metrics=lambda: b"a 1\n",
        )

    def _detail(self) -> dict[str, Any]:
        self.slow.wait(10)
        return {"x": 1}

    def get(self, path: str) -> tuple[int, str, str]:
        try:
            with urllib.request.urlopen(f"{self.server.url}/{path}", timeout=10) as answer:
                return answer.status, answer.headers["content-type"], answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers["content-type"], error.read().decode()


@pytest.fixture
def answers() -> Iterator[Answers]:
    found = Answers()
    yield found
    found.slow.set()
    found.server.close()


def test_the_four_answers(answers: Answers):
    answers.slow.set()
    assert answers.get("livez") == (200, "application/json", '{"live":true}')
    assert answers.get("readyz")[0] == 200
    assert answers.get("health")[2] == '{"x":1}'
    assert answers.get("metrics") == (200, CONTENT_TYPE, "a 1\n")
    assert answers.get("nothing")[0] == 404
    answers.live = answers.ready = False
    assert answers.get("livez")[0] == 503
    assert answers.get("readyz") == (503, "application/json", '{"ready":false}')


def test_one_slow_answer_holds_up_no_other(answers: Answers):
    waiting = threading.Thread(target=answers.get, args=("health",))
    waiting.start()
    began = time.monotonic()
    assert answers.get("livez")[0] == 200
    assert answers.get("metrics")[0] == 200
    assert time.monotonic() - began < 5
    answers.slow.set()
    waiting.join(10)


def test_an_address_that_is_none_is_refused():
    nothing: Callable[[], Any] = lambda: State(True, {})  # noqa: E731
    with pytest.raises(ConfigurationError, match="host:port"):
        HealthServer("nowhere", live=nothing, ready=nothing, detail=dict, metrics=bytes)


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "256.1.1.1:80", "nosuchhost.invalid:1"])
def test_an_address_that_cannot_be_listened_on_names_the_setting(address: str):
    nothing: Callable[[], Any] = lambda: State(True, {})  # noqa: E731
    with pytest.raises(ConfigurationError, match="MARKETDATA_LISTEN"):
        HealthServer(address, live=nothing, ready=nothing, detail=dict, metrics=lambda: b"")
