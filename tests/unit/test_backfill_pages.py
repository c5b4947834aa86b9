"""Pages asked for ahead, and the share of the budget that background work leaves alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from marketdata.backfill_pages import PagesAhead, WhileWanted
from marketdata.brokers.resilience import RequestGate
from marketdata.clock import Deadline
from marketdata.errors import BrokerUnavailableError
from marketdata.protocols import BarsPage, Priority


def page(name: str) -> BarsPage:
    return BarsPage({}, {}, refused={name: ""})


def names(pages: Iterator[BarsPage]) -> list[str]:
    return [name for found in pages for name in found.refused]


def always() -> bool:
    return True


def never() -> bool:
    return False


def ahead(*walks: Iterator[BarsPage]) -> PagesAhead:
    return PagesAhead(walks, always, never, threading.Event())


def test_the_next_page_is_asked_for_while_one_is_being_stored():
    asked = threading.Event()

    def walk() -> Iterator[BarsPage]:
        yield page("first")
        asked.set()
        yield page("second")

    pages = iter(ahead(walk()))
    assert next(pages).refused == {"first": ""}
    assert asked.wait(5)
    assert names(pages) == ["second"]


def test_no_more_than_one_is_held_ready():
    asked: list[int] = []

    def walk() -> Iterator[BarsPage]:
        for number in range(10):
            asked.append(number)
            yield page(str(number))

    over = threading.Event()
    pages = iter(PagesAhead([walk()], always, never, over))
    next(pages)
    threading.Event().wait(0.3)
    assert len(asked) <= 3, "the one taken, the one ready, the one that waits for room"
    over.set()


def test_an_error_comes_after_what_the_other_walks_bring():
    def broken() -> Iterator[BarsPage]:
        yield page("a1")
        raise BrokerUnavailableError("down")

    def whole() -> Iterator[BarsPage]:
        yield page("b1")
        yield page("b2")

    found: list[str] = []
    pages = ahead(broken(), whole())

    def take() -> None:
        for each in pages:
            found.extend(each.refused)

    with pytest.raises(BrokerUnavailableError):
        take()
    assert sorted(found) == ["a1", "b1", "b2"]
    assert pages.failed
    assert not pages.cut


def test_a_limit_waits_for_the_page_that_is_under_way():
    asked = 0
    answered = threading.Event()

    def walk() -> Iterator[BarsPage]:
        nonlocal asked
        while True:
            asked += 1
            answered.wait(0.6)  # longer than the look at whether to go on
            yield page(str(asked))

    pages = PagesAhead([walk()], lambda: asked < 2, never, threading.Event())
    assert names(iter(pages)) == ["1", "2"]
    assert pages.cut


def test_a_stop_waits_for_nothing():
    stop, answered = threading.Event(), threading.Event()

    def walk() -> Iterator[BarsPage]:
        yield page("first")
        answered.wait(20)
        yield page("late")

    pages = PagesAhead([walk()], lambda: not stop.is_set(), stop.is_set, threading.Event())
    found: list[str] = []
    for each in pages:
        found.extend(each.refused)
        stop.set()
    answered.set()
    assert (found, pages.cut) == (["first"], True)


def test_a_deadline_that_lasts_while_somebody_waits():
    over = threading.Event()
    deadline = WhileWanted(over)
    assert (deadline.expired, deadline.remaining()) == (False, float("inf"))
    over.set()
    assert (deadline.expired, deadline.cap(10)) == (True, 0)


# -------------------------------------------------------------------------------- the allowance


@pytest.mark.parametrize(
    ("limit", "allowance"), [(200, 190), (10_000, 9_500), (60, 57), (30, 28), (3, 2), (1, 1)]
)
def test_background_work_leaves_a_twentieth_two_at_least_and_half_at_most(limit, allowance):
    assert RequestGate("digest", limit, None, priority=Priority.BACKFILL).allowance == allowance
    assert RequestGate("digest", limit, None, priority=Priority.VERIFY).allowance == allowance
    assert RequestGate("digest", limit, None).allowance == limit


class Budget:
    """Grants after so many refusals; remembers what it was asked."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.asked: list[tuple[str, int, Priority]] = []

    def take(
        self, credential: str, limit_per_minute: int, priority: Priority = Priority.READ
    ) -> float:
        self.asked.append((credential, limit_per_minute, priority))
        self.refusals -= 1
        return 45.0 if self.refusals >= 0 else 0.0

    def told(self, credential: str, limit_per_minute: int, left: int | None) -> None:
        """It grants what it grants."""

    def pause(self, credential: str, seconds: float) -> None:
        raise AssertionError("nobody pauses")


def test_background_work_looks_often_whether_to_go_on():
    budget, naps = Budget(refusals=3), []  # type: ignore[var-annotated]
    gate = RequestGate("digest", 200, budget, priority=Priority.BACKFILL, sleep=naps.append)
    gate.acquire(Deadline(None))
    assert budget.asked == [("digest", 200, Priority.BACKFILL)] * 4
    assert naps == [2.0] * 3


def test_others_sleep_until_it_is_their_turn():
    budget, naps = Budget(refusals=1), []  # type: ignore[var-annotated]
    RequestGate("digest", 200, budget, sleep=naps.append).acquire(Deadline(None))
    assert 45 <= naps[0] <= 45.1
