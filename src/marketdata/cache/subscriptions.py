"""What is wanted, mirrored in Redis for fast reads: PostgreSQL is the truth and answers without it.

A mirror is stored under a token that every change replaces after its commit: a copy read before
the change is refused, as is one that outlived a flush. It lives until the first lease in it ends,
and for five minutes at most, which bounds what a change that failed to say so can do.
"""

from __future__ import annotations

import json
import logging
import secrets
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Final

from marketdata.cache.breaker import Breaker
from marketdata.cache.link import RedisLink
from marketdata.cache.scripts import KEY_VERSION
from marketdata.errors import CacheError

_log = logging.getLogger(__name__)

MOST_SECONDS: Final = 300.0
_TOKEN_SECONDS: Final = 86_400
_TOKEN_BYTES: Final = 8

_PUT: Final = """
if redis.call('MGET', KEYS[1])[1] ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return 1
"""
"""KEYS: token and mirror. ARGV: the token it was read under, the mirror, its ttl in milliseconds."""

Group = tuple[str, Sequence[str], Sequence[int]]
"""A timeframe, its symbols and their priorities."""


class SubscriptionMirror:
    """The mirror of one store's subscriptions; no method raises for a Redis that is down.

    Parameters
    ----------
    redis_url : str
        ``redis://``, ``rediss://`` or ``unix://``.
    epoch : callable
        Returns the store's epoch, which is part of the keys.
    timeout : float
        Seconds for connecting and for each read.
    """

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
        self._owed = False

    def get(self) -> list[Group] | None:
        """Return what is mirrored, or None where there is nothing that can be trusted."""
        if self._owed and not self.forget():
            return None
        data = self._ask("GET", self._names()[1])
        if not isinstance(data, bytes):
            return None
        return _decode(data)

    def begin(self) -> bytes | None:
        """Return the token to `put` what is read from the store from now on; None without Redis."""
        name = self._names()[0]
        self._ask("SET", name, secrets.token_hex(_TOKEN_BYTES), "NX", "EX", _TOKEN_SECONDS)
        token = self._ask("GET", name)
        return token if isinstance(token, bytes) else None

    def put(self, token: bytes | None, groups: Sequence[Group], seconds: float | None) -> None:
        """Mirror what was read under `token`, for `seconds` at most; not if it was changed since."""
        lives = MOST_SECONDS if seconds is None else min(seconds, MOST_SECONDS)
        if token is not None and lives > 0:
            milliseconds = max(1, int(lives * 1000))
            self._ask("EVAL", _PUT, 2, *self._names(), token, _encode(groups), milliseconds)

    def forget(self) -> bool:
        """Make what is mirrored a miss, and refuse what was read before now; after each change.
        Return whether it came about: else this process reads no mirror until it has."""
        token, mirror = self._names()
        told = self._ask("SET", token, secrets.token_hex(_TOKEN_BYTES), "EX", _TOKEN_SECONDS)
        self._owed = told is None or self._ask("UNLINK", mirror) is None
        return not self._owed

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        self._link.close()

    def _names(self) -> tuple[str, str]:
        start = f"md:{KEY_VERSION}:{{subscriptions}}:{self._epoch()}"
        return f"{start}:token", f"{start}:wanted"

    def _ask(self, *command: str | bytes | int) -> Any:
        self._link.follow_fork()
        breaker = self._link.breaker
        if not breaker.is_closed() and not breaker.claim_probe():
            return None
        try:
            answer = self._link.execute(*command)
        except CacheError as error:
            _log.info("subscriptions are read without Redis: %s", error)
            return None
        breaker.close()
        return answer


def _encode(groups: Sequence[Group]) -> bytes:
    body = json.dumps(groups, separators=(",", ":")).encode()
    return zlib.crc32(body).to_bytes(4, "little") + body


def _decode(data: bytes) -> list[Group] | None:
    """Return what `_encode` was given; None for anything else."""
    if zlib.crc32(data[4:]).to_bytes(4, "little") != data[:4]:
        return None
    return [
        (timeframe, symbols, priorities) for timeframe, symbols, priorities in json.loads(data[4:])
    ]
