"""Notices over real pub/sub: heard by who listens, and nobody's trouble when Redis is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from marketdata.cache.notices import ClosedNotice, NoticeListener, Notices
from marketdata.types import SeriesKey, Timeframe
from tests.redis_process import RedisProcess
from tests.stack_callers import until

KEYS = [
    SeriesKey("alpaca", "sip", symbol, timeframe)
    for symbol in ("AAPL", "MSFT", "KO")
    for timeframe in (Timeframe.MIN_1, Timeframe.DAY_1)
]


@pytest.fixture
def server() -> Iterator[RedisProcess]:
    with RedisProcess() as found:
        yield found


class Heard(list[ClosedNotice | None]):
    @property
    def notices(self) -> list[ClosedNotice]:
        return [each for each in self if each is not None]


def test_everybody_hears_each_group_once(redis_db: str) -> None:
    notices = Notices(redis_db, lambda: 7)
    assert notices.publish_closed(KEYS, 1) == 0, "nobody listens"
    listeners = [NoticeListener(redis_db, lambda: 7) for _ in range(2)]
    heard = [Heard() for _ in range(3)]
    ears = [
        listener.listen(each.append)
        for listener, each in zip([*listeners, listeners[0]], heard, strict=True)
    ]
    assert all(listener.wait_connected(5) for listener in listeners)
    assert Notices(redis_db, lambda: 8).publish_closed(KEYS, 2) == 0, "of another store"
    assert notices.publish_closed(KEYS, 3) == 4
    expected = [
        ClosedNotice("alpaca", "sip", "1min", 3, 3),
        ClosedNotice("alpaca", "sip", "1day", 3, 3),
    ]
    until(lambda: all(each.notices == expected for each in heard), 5)
    del ears
    for listener in listeners:
        listener.close()
    notices.close()


def test_the_thread_ends_with_the_last_who_listens(redis_db: str) -> None:
    listener = NoticeListener(redis_db, lambda: 7)
    ear = listener.listen(lambda _: None)
    assert listener.wait_connected(5)
    thread = listener._thread
    assert thread is not None
    del ear
    thread.join(5)
    assert not thread.is_alive()
    heard = Heard()
    ear = listener.listen(heard.append)  # and begins again
    until(lambda: heard, 5)
    listener.close()
    assert ear is not None


def test_redis_away_is_nobodys_trouble(server: RedisProcess) -> None:
    notices = Notices(server.url, lambda: 7)
    listener = NoticeListener(server.url, lambda: 7)
    heard = Heard()
    ear = listener.listen(heard.append)
    assert listener.wait_connected(5)
    server.stop()
    began = time.monotonic()
    assert [notices.publish_closed(KEYS, n) for n in range(50)] == [0] * 50
    assert time.monotonic() - began < 1
    server.start()
    until(lambda: notices.publish_closed(KEYS, 99) > 0, 15)
    until(lambda: heard.notices and heard.notices[-1].until_us == 99, 5)
    assert None in heard[1:], "whoever listens is told that he may have missed something"
    server.freeze()
    began = time.monotonic()
    assert notices.publish_closed(KEYS, 100) == 0
    assert time.monotonic() - began < 1
    server.thaw()
    listener.close()
    assert ear is not None


def test_a_listener_that_raises_does_not_silence_the_others(redis_db: str) -> None:
    listener = NoticeListener(redis_db, lambda: 7)
    notices = Notices(redis_db, lambda: 7)
    heard = Heard()
    raised = threading.Event()

    def refuse(_: ClosedNotice | None) -> None:
        raised.set()
        raise ValueError("not today")

    ears = [listener.listen(refuse), listener.listen(heard.append)]
    assert raised.wait(5)
    until(lambda: notices.publish_closed(KEYS, 5) and heard.notices, 5)
    listener.close()
    del ears
