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


class Recording:
    """Makes fetches that take a while, and notes which are under way at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy: set[SeriesKey] = set()
        self.order: list[Span] = []
        self.most = 0
        self.together = False

    def fetch(self, fetch: Fetch, *_: object) -> None:
        with self._lock:
            self.order.append(fetch.span)
            self.together |= not self._busy.isdisjoint(fetch.keys)
            self._busy.update(fetch.keys)
            self.most = max(self.most, len(self._busy))
        threading.Event().wait(0.02)
        with self._lock:
            self._busy.difference_update(fetch.keys)


def test_the_fetches_of_one_series_do_not_wait_for_each_other() -> None:
    """Each would claim the series, and all but one come back without an answer."""
    one, two = (SeriesKey("alpaca", "sip", s, Timeframe.MIN_1) for s in ("A", "B"))
    asked = [Fetch(Timeframe.MIN_1, Span(n, n + 1), (one,)) for n in range(4)]
    asked += [Fetch(Timeframe.MIN_1, Span(9, 10), (two,))]
    recording = Recording()
    run = walks.Walks(recording, threading.Event(), 60.0).run(asked, time.monotonic() + 60)  # type: ignore[arg-type]
    assert {each.fetch.span for each in run} == {fetch.span for fetch in asked}
    assert not recording.together
    assert recording.most == 2, "another series goes on beside it"
    assert [span for span in recording.order if span.start < 9] == [f.span for f in asked[:4]]
