"""The one seam to redis-py: short time-outs, no retries, a breaker, foreign errors translated."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    ChildDeadlockedError,
    RedisError,
    ResponseError,
)
from redis.retry import Retry

from marketdata.cache.breaker import Breaker
from marketdata.errors import CacheError, ConfigurationError

_log = logging.getLogger(__name__)

FOREIGN: Final = (RedisError, OSError, ChildDeadlockedError)
"""Everything redis-py raises for trouble with the server or the way to it."""


class RefusedError(CacheError):
    """Redis answered, and its answer was an error: out of memory, read-only, no permission."""


class RedisLink:
    """A pool of connections to one Redis; survives its death and a fork.

    redis-py by default waits 5 s and tries again ten times: a server that does not answer costs
    a minute. Here one attempt of `timeout` seconds fails, and the breaker keeps the next callers
    from trying.

    Parameters
    ----------
    url : str
        ``redis://``, ``rediss://`` or ``unix://``.
    timeout : float
        Seconds for connecting and for each read.
    breaker : Breaker
        Asked and told of every call.

    Raises
    ------
    ConfigurationError
        The URL cannot be read.
    """

    def __init__(self, url: str, timeout: float, breaker: Breaker) -> None:
        self._url = url
        self._timeout = timeout
        self.breaker = breaker
        self._pid = os.getpid()
        self._client: Any = self._make_client()
        self._held = threading.local()

    def _make_client(self) -> redis.Redis:
        try:
            return redis.Redis.from_url(
                self._url,
                socket_timeout=self._timeout,
                socket_connect_timeout=self._timeout,
                retry=Retry(NoBackoff(), 0),
                health_check_interval=0,
                protocol=2,
            )
        except ValueError:
            # The URL may hold a password: it is in no message.
            raise ConfigurationError(
                "MARKETDATA_REDIS_URL is not a Redis URL",
                cure="write redis://HOST:PORT/DB, rediss://... or unix:///PATH?db=0; "
                "run: marketdata doctor",
            ) from None

    @property
    def address(self) -> str:
        """Where the server is, without secrets."""
        known = self._client.connection_pool.connection_kwargs
        place = known.get("path") or f"{known.get('host', 'localhost')}:{known.get('port', 6379)}"
        return f"{place}/{known.get('db') or 0}"

    def execute(self, *command: str | bytes | int) -> Any:
        """Send one command and return its raw answer, whatever the breaker says.

        Raises
        ------
        RefusedError
            Redis answered with an error.
        CacheError
            No answer; the breaker is open now.
        """
        try:
            return self._ask(command)
        except FOREIGN as error:
            raise self._translate(error) from error

    def _ask(self, command: tuple[str | bytes | int, ...]) -> Any:
        """Ask on this thread's own connection: taking one from the pool and giving it back costs
        as much as the whole answer."""
        held = self._held
        if getattr(held, "client", None) is not self._client:
            pool = self._client.connection_pool
            # Not the pool's to count: it would never hear of a thread's end.
            held.connection = pool.connection_class(**pool.connection_kwargs)
            held.client = self._client
        try:
            held.connection.send_command(*command, check_health=False)
            return held.connection.read_response()
        except ResponseError:
            raise
        except redis.ConnectionError:
            # An idle connection that the server has closed, as a restart does: the pool looks
            # before it hands one out, this is our look.
            held.connection.disconnect()
            return self._client.execute_command(*command)
        except BaseException:
            held.connection.disconnect()  # whatever comes now would be read as another's answer
            raise

    def _translate(self, error: Exception) -> CacheError:
        if isinstance(error, ResponseError):
            return RefusedError(f"Redis at {self.address} refused: {error}")
        if self.breaker.open():
            _log.warning(
                "Redis at %s does not answer (%s: %s); reads go on without it",
                self.address,
                type(error).__name__,
                error,
            )
        return CacheError(f"Redis at {self.address} does not answer: {error}")

    def start_probe(self, probe: Callable[[], object]) -> None:
        """Run `probe` in a thread of its own, so that no read waits for it."""
        threading.Thread(target=probe, name="marketdata-cache-probe", daemon=True).start()

    def follow_fork(self) -> bool:
        """Start afresh in a forked child: sockets and locks there belong to the parent."""
        if self._pid == os.getpid():
            return False
        self.breaker = self.breaker.renew()
        self._client = self._make_client()
        self._pid = os.getpid()
        return True

    def close(self) -> None:
        """Close every connection; a later call opens new ones."""
        self._held = threading.local()
        self._client.close()
        self._client.connection_pool.disconnect()
