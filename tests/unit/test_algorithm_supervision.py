"""Calls into authors' code: none holds up or brings down the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

import pytest

from algorithms.errors import ParameterError
from algorithms.live.life import Course, Pace, Policy, pace
from algorithms.live.records import Life
from algorithms.live.supervision import CallInterrupted, Outcome, Supervisor

QUICK = Policy(relief=0.02, soft=0.1, hard=0.4, backoff=1.0, longest_backoff=60.0, attempts=3)


def by_key(outcomes: list[Outcome[str, object]]) -> dict[str, Outcome[str, object]]:
    assert len({outcome.key for outcome in outcomes}) == len(outcomes)
    return {outcome.key: outcome for outcome in outcomes}


def wait_for(supervisor: Supervisor[str, object], key: str) -> Outcome[str, object]:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        for outcome in supervisor.look():
            if outcome.key == key:
                return outcome
        time.sleep(0.01)
    raise AssertionError(f"{key} never ended")


def spin_until(flag: threading.Event) -> None:
    while not flag.is_set():
        pass


# ---------------------------------------------------------------------------------------- a life


def test_failures_double_the_wait_and_too_many_give_up():
    course = Course(QUICK)
    course.started()
    assert str(course.life) == "running"
    assert not course.failed("one", now=100.0)
    assert str(course.life) == "backoff"
    assert course.retry_in(100.0) == 1.0
    assert not course.begin_again(100.9)
    assert course.begin_again(101.0)
    assert (course.life, course.restarts) == (Life.STARTING, 1)
    assert not course.failed("two", now=200.0)
    assert course.retry_in(200.5) == 1.5
    assert course.begin_again(202.0)
    assert course.failed("three", now=300.0)
    assert (course.life, course.error, course.retry_in(1e9)) == (Life.ERROR, "three", None)
    course.stop()
    assert course.life is Life.ERROR


def test_a_step_that_went_well_forgives_the_failures_before():
    course = Course(QUICK)
    for _ in range(10):
        assert not course.failed("again", now=0.0)
        assert course.begin_again(10.0)
        course.started()
        course.went_well()
    assert (course.failures, course.restarts, course.error) == (0, 10, None)


def test_the_wait_has_an_end():
    assert [Policy().wait(n) for n in (1, 2, 3, 9, 10, 500)] == [1, 2, 4, 256, 300, 300]


def test_the_pace_of_a_call():
    found = [pace(seconds, QUICK) for seconds in (0.0, 0.02, 0.1, 0.4)]
    assert found == [Pace.FINE, Pace.RELIEVE, Pace.SLOW, Pace.INTERRUPT]


@pytest.mark.parametrize(
    "wrong", [{"relief": 1.0}, {"hard": 0.1}, {"backoff": 0.0}, {"attempts": 0}, {"soft": 99.0}]
)
def test_a_policy_that_cannot_be_is_refused(wrong: dict[str, float]):
    with pytest.raises(ParameterError):
        Policy(**wrong)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------- threads


def test_every_call_is_made_once_and_its_result_returned():
    supervisor: Supervisor[int, int] = Supervisor(QUICK)
    for _ in range(3):
        found = supervisor.run({n: partial(pow, n, 2) for n in range(500)})
        assert {outcome.key: outcome.result for outcome in found} == {n: n * n for n in range(500)}
    assert supervisor.close() == frozenset()


def test_what_raises_is_an_outcome_with_its_traceback():
    def wrong() -> object:
        raise ValueError("of mine")

    def leave() -> object:
        raise SystemExit(3)

    supervisor: Supervisor[str, object] = Supervisor(QUICK)
    found = by_key(supervisor.run({"wrong": wrong, "leave": leave, "right": lambda: 1}))
    assert found["right"].result == 1
    assert isinstance(found["wrong"].error, ValueError)
    assert "of mine" in (found["wrong"].trace or "")
    assert "in wrong" in (found["wrong"].trace or "")
    assert isinstance(found["leave"].error, SystemExit)
    supervisor.close()


def test_slow_calls_hold_up_nobody_and_count_when_they_come():
    supervisor: Supervisor[str, object] = Supervisor(QUICK, workers=2)
    release = threading.Event()
    calls: dict[str, object] = {f"slow{n}": lambda: release.wait(5) for n in range(6)}
    done: list[float] = []
    began = time.monotonic()
    calls |= {f"a{n}": lambda: done.append(time.monotonic() - began) for n in range(200)}
    found = supervisor.run(calls)  # type: ignore[arg-type]
    took = time.monotonic() - began
    assert {o.key for o in found} == {f"a{n}" for n in range(200)}
    assert supervisor.busy == {f"slow{n}" for n in range(6)}
    assert max(done) < 0.3 + QUICK.relief * 3
    assert took < 2.0
    release.set()
    late = [wait_for(supervisor, f"slow{n}") for n in range(1)]
    assert late[0].result is True
    assert late[0].slow
    supervisor.close(2.0)


def test_who_was_slow_comes_last_the_next_time():
    supervisor: Supervisor[str, object] = Supervisor(QUICK, workers=1)
    seen: list[str] = []

    def slow() -> None:
        seen.append("slow")
        time.sleep(QUICK.relief * 1.5)

    calls: dict[str, Callable[[], object]] = {
        "slow": slow,
        **{f"a{n}": partial(seen.append, f"a{n}") for n in range(5)},
    }
    supervisor.run(calls)
    assert seen[0] == "slow"
    seen.clear()
    supervisor.run(calls)
    assert seen[-1] == "slow"
    supervisor.close(1.0)


def test_an_endless_loop_is_interrupted_and_its_neighbours_go_on():
    never = threading.Event()
    supervisor: Supervisor[str, object] = Supervisor(QUICK, workers=1)
    found = by_key(supervisor.run({"endless": lambda: spin_until(never), "good": lambda: 1}))
    assert found["good"].result == 1
    late = wait_for(supervisor, "endless")
    assert isinstance(late.error, CallInterrupted)
    assert "spin_until" in (late.trace or "")
    assert "interrupted after" in (late.trace or "")
    assert by_key(supervisor.run({"endless": lambda: 2}))["endless"].result == 2
    supervisor.close()


def test_a_call_that_swallows_its_interruption_is_interrupted_again():
    met: list[int] = []

    def stubborn() -> None:
        while True:
            try:
                spin_until(threading.Event())
            except CallInterrupted:
                met.append(1)
                if len(met) == 2:
                    raise

    supervisor: Supervisor[str, object] = Supervisor(QUICK)
    supervisor.run({"stubborn": stubborn})
    late = wait_for(supervisor, "stubborn")
    assert isinstance(late.error, CallInterrupted)
    assert len(met) == 2
    supervisor.close()


def test_what_is_busy_cannot_be_called_again():
    release = threading.Event()
    supervisor: Supervisor[str, object] = Supervisor(QUICK)
    supervisor.run({"slow": lambda: release.wait(5)})
    with pytest.raises(AssertionError, match="still lasts"):
        supervisor.run({"slow": lambda: None})
    release.set()
    assert supervisor.close(5.0) == frozenset()


def test_calls_that_end_as_they_are_interrupted_leave_nothing_behind():
    """The race of a call's end with its interruption, many times over: each call has one outcome,
    and no worker carries an exception into the next call."""
    policy = Policy(relief=0.001, soft=0.002, hard=0.003, attempts=1)
    supervisor: Supervisor[int, int] = Supervisor(policy, workers=4)
    for turn in range(60):
        calls = {n: (lambda: time.sleep(0.003) or 7) for n in range(8)}  # type: ignore[func-returns-value]
        ended = supervisor.run(calls)
        end = time.monotonic() + 5
        while supervisor.busy and time.monotonic() < end:
            ended += supervisor.look()
        ended += supervisor.look()
        assert sorted(outcome.key for outcome in ended) == list(range(8)), turn
        for outcome in ended:
            assert (outcome.result == 7) != isinstance(outcome.error, CallInterrupted)
    supervisor.close()
