"""Notices that bars have closed and are stored, over Redis pub/sub: wake-up hints and no more.

Pub/sub stores nothing: a notice that nobody hears, or that Redis loses, is gone. Whoever listens
also looks for himself when bars are due. The channel is named for the store's epoch: a notice of
another store on the same Redis wakes nobody.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakSet

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from marketdata.cache.breaker import Breaker
from marketdata.cache.link import FOREIGN, RedisLink
from marketdata.cache.scripts import KEY_VERSION
from marketdata.errors import CacheError
from marketdata.types import SeriesKey

log = logging.getLogger(__name__)

_LOOK: Final = 1.0
"""Seconds the listener waits for a message before it looks whether it is still needed."""
_SILENCE: Final = 15.0
"""Seconds without a word after which the listener asks the server whether it is there, and again
before it takes the connection for dead."""
_RETRY_FIRST: Final = 0.2
_RETRY_MOST: Final = 5.0


@dataclass(frozen=True, slots=True)
class ClosedNotice:
    """Bars of one stored timeframe are closed and stored."""

    provider: str
    feed: str
    timeframe: str
    """Of the stored series: coarser ones may have closed with it."""
    until_us: int
    """Bars that end by this instant (microseconds UTC) are stored."""
    symbols: int
    """How many symbols it is about."""


def _channel(epoch: int) -> str:
    return f"md:{KEY_VERSION}:notices:{epoch}"


class Notices:
    """The sending side; no method raises for a Redis that is down."""

    def __init__(
        self,
        redis_url: str,
        epoch: Callable[[], int],
        *,
        timeout: float = 0.2,
        breaker: Breaker | None = None,
    ) -> None:
        self._link = RedisLink(redis_url, timeout, breaker or Breaker())
        self._epoch = epoch

    def publish_closed(self, keys: Iterable[SeriesKey], until_us: int) -> int:
        """Say that the bars of these stored series that end by `until_us` are stored; call it when
        PostgreSQL and Redis have them. Return how many listeners heard it.

        Parameters
        ----------
        keys : iterable of SeriesKey
            One notice is sent for each provider, feed and timeframe among them.
        until_us : int
            Market time, microseconds UTC.
        """
        groups: dict[tuple[str, str, str], int] = defaultdict(int)
        for key in keys:
            groups[key.provider, key.feed, key.timeframe.value] += 1
        return sum(
            self._publish(ClosedNotice(*group, until_us, count)) for group, count in groups.items()
        )

    def _publish(self, notice: ClosedNotice) -> int:
        self._link.follow_fork()
        breaker = self._link.breaker
        if not breaker.is_closed() and not breaker.claim_probe():
            return 0
        try:
            heard = self._link.execute("PUBLISH", _channel(self._epoch()), _encode(notice))
        except CacheError as error:
            log.info("nobody was told of closed bars: %s", error)
            return 0
        breaker.close()
        return int(heard)

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        self._link.close()


def _encode(notice: ClosedNotice) -> bytes:
    return json.dumps(
        {"kind": "bars.closed", **{n: getattr(notice, n) for n in ClosedNotice.__slots__}}
    ).encode()


def _decode(data: object) -> ClosedNotice | None:
    """Return the notice, or None for what is none of ours."""
    try:
        told = json.loads(data)  # type: ignore[arg-type]
        if told.pop("kind") != "bars.closed":
            return None
        notice = ClosedNotice(**told)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return notice if isinstance(notice.until_us, int) else None


class Ear:
    """Somebody who listens: `hear` is called with each notice, and with None after a time in which
    notices may have been lost. It must be quick."""

    def __init__(self, hear: Callable[[ClosedNotice | None], None]) -> None:
        self.hear = hear


class NoticeListener:
    """The receiving side: one thread and one connection for all who listen in this process.

    The thread runs while somebody listens, and connects again by itself, for as long as it takes.

    Parameters
    ----------
    redis_url : str
        ``redis://``, ``rediss://`` or ``unix://``.
    epoch : callable
        Returns the store's epoch.
    timeout : float
        Seconds for connecting.
    """

    def __init__(self, redis_url: str, epoch: Callable[[], int], *, timeout: float = 1.0) -> None:
        self._url = redis_url
        self._epoch = epoch
        self._timeout = timeout
        self._lock = threading.Lock()
        self._ears: WeakSet[Ear] = WeakSet()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._connected = threading.Event()
        self._failures = 0

    def listen(self, hear: Callable[[ClosedNotice | None], None]) -> Ear:
        """Call `hear` with every notice from now on, for as long as the answer is kept."""
        ear = Ear(hear)
        with self._lock:
            self._ears.add(ear)
            if self._thread is None:
                self._stop = threading.Event()
                self._thread = threading.Thread(
                    target=self._run, args=(self._stop,), name="marketdata-notices", daemon=True
                )
                self._thread.start()
        return ear

    def wait_connected(self, seconds: float) -> bool:
        """Return whether the server has confirmed that it will send notices, within `seconds`."""
        return self._connected.wait(seconds)

    def close(self) -> None:
        """Listen no more; the thread ends within a second. Idempotent."""
        with self._lock:
            self._stop.set()
            self._thread = None
            self._ears.clear()

    # ------------------------------------------------------------------------------ the thread

    def _run(self, stop: threading.Event) -> None:
        while not self._unneeded(stop):
            try:
                with self._client() as client, client.pubsub() as line:
                    line.subscribe(_channel(self._epoch()))
                    self._hear(line, stop)
            except Exception as error:
                # Whatever it is, nobody depends on it: listeners look for themselves.
                foreseen = isinstance(error, FOREIGN)
                log.log(logging.DEBUG if foreseen else logging.WARNING, "notices lost: %s", error)
                self._failures += 1
                pause = min(_RETRY_MOST, _RETRY_FIRST * 2 ** min(self._failures, 10))
                stop.wait(random.uniform(0.5, 1) * pause)
            self._connected.clear()

    def _client(self) -> redis.Redis:
        return redis.Redis.from_url(
            self._url,
            socket_timeout=self._timeout,
            socket_connect_timeout=self._timeout,
            retry=Retry(NoBackoff(), 0),
            health_check_interval=0,
            protocol=2,
        )

    def _hear(self, line: Any, stop: threading.Event) -> None:
        """Pass on what comes until the connection fails or nobody listens any more."""
        last_word, asked = time.monotonic(), False
        while not self._unneeded(stop):
            message = line.get_message(timeout=_LOOK)
            now = time.monotonic()
            if message is None:
                if now - last_word > _SILENCE:
                    if asked:
                        raise redis.ConnectionError("Redis has fallen silent")
                    line.ping()
                    last_word, asked = now, True
                continue
            last_word, asked = now, False
            if message["type"] == "subscribe":
                self._failures = 0
                self._connected.set()
                self._tell(None)
            elif message["type"] == "message" and (notice := _decode(message["data"])):
                self._tell(notice)

    def _tell(self, notice: ClosedNotice | None) -> None:
        with self._lock:
            ears = list(self._ears)
        for ear in ears:
            try:
                ear.hear(notice)
            except Exception:
                log.exception("a notice was not taken")

    def _unneeded(self, stop: threading.Event) -> bool:
        """Whether the thread is to end: it was told to, or nobody listens any more."""
        with self._lock:
            if self._stop is not stop or stop.is_set():
                return True
            if self._ears:
                return False
            self._thread = None
            return True
