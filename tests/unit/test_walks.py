"""What becomes of a cycle's fetches when it is asked to end."""

import threading
import time
from collections.abc import Iterator

import pytest

from marketdata import walks
from marketdata.planning import Fetch
from marketdata.spans import Span
from marketdata.types import SeriesKey, Timeframe


class Stuck:
    """Makes fetches that do not end before they are let go."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.let_go = threading.Event()

    def fetch(self, *_: object) -> None:
        self.begun.release()
        self.let_go.wait(30)


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    fetcher = Stuck()
    yield fetcher
    fetcher.let_go.set()


def fetches(count: int) -> list[Fetch]:
    return [
        Fetch(Timeframe.MIN_1, Span(0, 1), (SeriesKey("alpaca", "sip", f"S{n}", Timeframe.MIN_1),))
        for n in range(count)
    ]


def test_every_fetch_is_told_of_where_those_under_way_do_not_end(
    stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walks, "STOP_PATIENCE", 0.05)
    stop, asked = threading.Event(), fetches(walks.AT_ONCE + 4)
    found: list[walks.Walked] = []
    run = walks.Walks(stuck, stop, 60.0).run(asked, time.monotonic() + 60)  # type: ignore[arg-type]
    reader = threading.Thread(target=lambda: found.extend(run))
    reader.start()
    for _ in range(walks.AT_ONCE):
        assert stuck.begun.acquire(timeout=10)
    stop.set()
    reader.join(10)
    assert not reader.is_alive()
    assert [each.fetch for each in found] == asked
    assert all(each.postponed and each.error is None for each in found)
