"""What an answer's date says about our own clock."""

from __future__ import annotations

from email.utils import formatdate

import pytest

from marketdata.brokers.clock_watch import ClockWatch
from marketdata.clock import FixedClock, from_micros
from marketdata.types import SECOND

NOW = 1_710_442_830 * SECOND


class RealTime:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def real() -> RealTime:
    return RealTime()


@pytest.fixture
def watch(real: RealTime) -> ClockWatch:
    return ClockWatch(FixedClock(from_micros(NOW)), real)


def dated(seconds_behind: float, **more: str) -> dict[str, str]:
    """Headers of an answer whose sender's clock is so much behind ours."""
    return {"Date": formatdate(NOW / SECOND - seconds_behind, usegmt=True), **more}


@pytest.mark.parametrize("behind", [-3600, -1, 0, 1, 2, 2.9])
def test_a_clock_that_is_right_or_behind_is_left_alone(watch: ClockWatch, behind: float):
    watch.note(watch.now_us(), dated(behind))
    assert watch.ahead == 0


@pytest.mark.parametrize(("behind", "ahead"), [(4, 30), (31, 30), (32, 60), (90, 90), (3600, 3600)])
def test_how_far_it_is_ahead_is_rounded_up(watch: ClockWatch, behind: int, ahead: int):
    watch.note(watch.now_us(), dated(behind))
    assert watch.ahead == ahead * SECOND


def test_it_does_not_waver(watch: ClockWatch):
    found = set()
    for behind in (80, 75, 89, 62):
        watch.note(watch.now_us(), dated(behind))
        found.add(watch.ahead)
    assert found == {90 * SECOND}


def test_the_newest_answer_counts(watch: ClockWatch):
    watch.note(watch.now_us(), dated(90))
    watch.note(watch.now_us(), dated(0))
    assert watch.ahead == 0


def test_it_is_forgotten_after_a_minute(watch: ClockWatch, real: RealTime):
    watch.note(watch.now_us(), dated(90))
    real.seconds += 59
    assert watch.ahead
    real.seconds += 2
    assert watch.ahead == 0


def test_an_answer_out_of_a_cache_is_as_old_as_it_says(watch: ClockWatch):
    watch.note(watch.now_us(), dated(90, Age="90"))
    assert watch.ahead == 0


@pytest.mark.parametrize(
    "headers", [{}, {"Date": "yesterday"}, {"Date": ""}, dated(90, Age="a while")]
)
def test_what_cannot_be_read_says_nothing(watch: ClockWatch, headers: dict[str, str]):
    watch.note(watch.now_us(), headers)
    assert watch.ahead == 0
