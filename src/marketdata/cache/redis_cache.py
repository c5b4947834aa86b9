"""`BarCache` on Redis: one MGET a read, blocks guarded by revision floors, nothing raised.

A block is served, together with the tail that later commits appended to it, only if the floor of
its base series is there and not above the revision they reach. The writer raises the floor before the store commits, so that no reader can serve, or
put back, what the commit made old: the floor refuses a block read before it. A lost floor
(evicted, flushed) makes every block of its series a miss.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import batched, chain
from typing import Any, Final

from marketdata.cache.breaker import Breaker
from marketdata.cache.link import RedisLink, RefusedError
from marketdata.cache.scripts import GROW_SCRIPT, PUT_SCRIPT, RAISE_SCRIPT, base_name
from marketdata.codec import decode_block, decode_grown, encode_block, encode_growth
from marketdata.errors import CacheError
from marketdata.protocols import BlockGrowth, CachedBlock
from marketdata.types import SeriesKey, Timeframe

_log = logging.getLogger(__name__)

_DAY_SECONDS: Final = 86_400.0
_JITTER: Final = 0.1
# Longer than any block lives, so that a floor cannot expire before what it must refuse.
_FLOOR_TTL_MS: Final = 3 * 86_400_000
# 64 blocks are 2 to 5 MB: one answer stays well inside the time-out and the server's patience.
_BLOCKS_A_CALL: Final = 64
_FLOORS_A_CALL: Final = 1000
_GROWTHS_A_CALL: Final = 500
_BLOCKS_REMEMBERED: Final = 64
"""Decoded blocks a process keeps, about 4 MB."""


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What the cache did since it was made; counts of blocks, and of failed calls."""

    hits: int = 0
    misses: int = 0
    stale: int = 0
    """Misses because of the floor: lower revision, or no floor."""
    damaged: int = 0
    puts: int = 0
    grown: int = 0
    """Blocks that were added to."""
    refused: int = 0
    """Blocks not stored: something newer was there."""
    errors: int = 0
    floors_failed: int = 0
    """Floors that could not be raised when they should have been."""


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """The server as ``marketdata doctor`` shows it."""

    address: str
    version: str
    maxmemory: int
    """Bytes; 0 is unlimited."""
    policy: str
    used_memory: int
    evicted_keys: int
    ping_seconds: float


class RedisCache:
    """Blocks of the newest bars in Redis; thread-safe and fork-safe.

    Parameters
    ----------
    redis_url : str
        ``redis://``, ``rediss://`` or ``unix://``.
    epoch : int or callable
        The store's epoch. A callable is asked once, on first use; what it raises is passed on.
    timeout : float
        Seconds for connecting and for each read.
    breaker : Breaker, optional
        While it is open every call returns at once; its probes run in a thread of their own.

    Raises
    ------
    ConfigurationError
        The URL cannot be read; a retry does not help.
    """

    def __init__(
        self,
        redis_url: str,
        epoch: int | Callable[[], int],
        *,
        timeout: float = 0.2,
        breaker: Breaker | None = None,
    ) -> None:
        self._link = RedisLink(redis_url, timeout, breaker or Breaker())
        self._epoch = epoch
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(CacheStats.__dataclass_fields__, 0)
        self._owed: dict[str, int] = {}
        self._last: OrderedDict[
            tuple[SeriesKey, Timeframe | None], tuple[bytes, bytes | None, CachedBlock]
        ] = OrderedDict()

    def __repr__(self) -> str:
        return f"RedisCache({self._link.address})"

    @property
    def stats(self) -> CacheStats:
        return CacheStats(**self._counts)

    # ------------------------------------------------------------------------------- blocks

    def _decoded(
        self,
        data: bytes,
        tail: bytes | None,
        key: SeriesKey,
        epoch: int,
        base: Timeframe | None,
    ) -> CachedBlock | None:
        """Decode, or return the block these very bytes gave last time: comparing costs a third
        of checking them, and whoever gets the same object may keep what it made of it."""
        last = self._last.get((key, base))
        if last is not None and last[0] == data and last[1] == tail:
            return last[2]
        block = decode_block(data, key, epoch, base)
        if block is not None and tail is not None:
            block = decode_grown(tail, block, key, epoch)
        if block is not None:
            self._last[key, base] = (data, tail, block)
            if len(self._last) > _BLOCKS_REMEMBERED:
                # One out for one in: freeing them all would hand the memory back and fetch it anew.
                self._last.popitem(last=False)
        return block

    def get(
        self, keys: Sequence[SeriesKey], base: Timeframe | None = None
    ) -> dict[SeriesKey, CachedBlock]:
        """See `BarCache.get`. One round trip for up to 64 keys."""
        found: dict[SeriesKey, CachedBlock] = {}
        damaged: list[str] = []
        stale = 0
        epoch = self._store_epoch()
        for part in batched(keys, _BLOCKS_A_CALL):
            if not self._ready():
                break
            names = _names(part, base, epoch)
            try:
                answer = self._link.execute("MGET", *names)
            except CacheError:
                self._count(errors=1)
                break
            for at, key in enumerate(part):
                floor, data, tail = answer[3 * at : 3 * at + 3]
                if data is None:
                    continue
                block = self._decoded(data, tail, key, epoch, base)
                if block is None:
                    damaged += names[3 * at + 1 : 3 * at + 3]
                elif _reaches(block.revision, floor):
                    found[key] = block
                else:
                    stale += 1
        if damaged:
            self._remove(damaged)
        self._count(
            hits=len(found), misses=len(keys) - len(found), stale=stale, damaged=len(damaged) // 2
        )
        return found

    def put(self, blocks: Mapping[SeriesKey, CachedBlock], ttl: Mapping[SeriesKey, float]) -> int:
        """See `BarCache.put`. A ttl of 0 or less stores nothing."""
        total = 0
        epoch = self._store_epoch()
        wanted = [key for key in blocks if ttl[key] > 0]
        for part in batched(wanted, _BLOCKS_A_CALL):
            if not self._ready():
                break
            names = list(chain(*(_names((key,), blocks[key].base, epoch) for key in part)))
            arguments: list[str | bytes | int] = [_FLOOR_TTL_MS]
            for key in part:
                data = encode_block(blocks[key], key, epoch)
                arguments += (blocks[key].revision, _block_ttl_ms(ttl[key]), data)
            try:
                stored = self._link.execute("EVAL", PUT_SCRIPT, len(names), *names, *arguments)
            except RefusedError as error:
                self._count(errors=1)
                _log.warning("%s", error)
            except CacheError:
                self._count(errors=1)
                break
            else:
                self._count(puts=stored, refused=len(part) - stored)
                total += stored
        return total

    def grow(
        self, growths: Mapping[SeriesKey, BlockGrowth], ttl: Mapping[SeriesKey, float]
    ) -> dict[SeriesKey, int]:
        """See `BarCache.grow`."""
        sizes = dict.fromkeys(growths, 0)
        epoch = self._store_epoch()
        for part in batched([key for key in growths if ttl[key] > 0], _GROWTHS_A_CALL):
            if not self._ready():
                break
            names = _names(part, None, epoch)
            arguments: list[str | bytes | int] = []
            for key in part:
                growth = growths[key]
                record = encode_growth(growth, key, epoch)
                arguments += (growth.previous, growth.revision, _block_ttl_ms(ttl[key]), record)
            try:
                lengths = self._link.execute("EVAL", GROW_SCRIPT, len(names), *names, *arguments)
            except RefusedError as error:
                self._count(errors=1)
                _log.warning("%s", error)
            except CacheError:
                self._count(errors=1)
                break
            else:
                sizes.update(zip(part, lengths, strict=True))
        self._count(grown=sum(1 for size in sizes.values() if size))
        return sizes

    def _remove(self, names: list[str]) -> None:
        _log.warning(
            "removing %d damaged blocks from Redis, the first is %s", len(names) // 2, names[0]
        )
        try:
            self._link.execute("UNLINK", *names)
        except CacheError:
            self._count(errors=1)

    # ------------------------------------------------------------------------------- floors

    def raise_floor(self, revisions: Mapping[SeriesKey, int]) -> None:
        """See `BarCache.raise_floor`. Tries even while the breaker is open, once an interval."""
        epoch = self._store_epoch()
        self.raise_marks({f"{base_name(k, None, epoch)}:floor": r for k, r in revisions.items()})

    def raise_marks(self, floors: Mapping[str, int]) -> None:
        """Raise floors of any kind, by the names of their keys: as `raise_floor` does."""
        self._follow_fork()
        if self._owe_while_open(floors):
            if self._link.breaker.claim_probe():
                self._recover()
        else:
            try:
                self._send_floors(floors)
            except CacheError as error:
                _log.warning("floors of %d series not raised: %s", len(floors), error)
                self._count(errors=1)
                with self._lock:
                    self._link.breaker.open()
                    self._owe(floors)

    def _send_floors(self, floors: Mapping[str, int]) -> None:
        for part in batched(floors, _FLOORS_A_CALL):
            revisions = (floors[name] for name in part)
            try:
                self._link.execute(
                    "EVAL", RAISE_SCRIPT, len(part), *part, _FLOOR_TTL_MS, *revisions
                )
            except RefusedError:
                # A server out of memory still deletes, and without its floor no block is served.
                self._link.execute("UNLINK", *part)

    def _owe_while_open(self, floors: Mapping[str, int]) -> bool:
        if self._link.breaker.is_closed():
            return False
        with self._lock:
            if self._link.breaker.is_closed():
                return False
            self._owe(floors)
        return True

    def _owe(self, floors: Mapping[str, int]) -> None:
        """Remember floors to raise before Redis is read again; the caller holds the lock."""
        for name, revision in floors.items():
            self._owed[name] = max(revision, self._owed.get(name, revision))
        self._counts["floors_failed"] += len(floors)

    # -------------------------------------------------------------------------- other blocks

    def ask(self, *command: str | bytes | int) -> Any:
        """Send one command for what else is kept beside the blocks, under their floors.

        Returns
        -------
        object
            The raw answer; None where Redis is down, known to be down, or refuses.
        """
        if not self._ready():
            return None
        try:
            return self._link.execute(*command)
        except RefusedError as error:
            _log.warning("%s", error)
        except CacheError:
            pass
        self._count(errors=1)
        return None

    @property
    def epoch(self) -> int:
        """The store's epoch, which is part of every key."""
        return self._store_epoch()

    # ------------------------------------------------------------------------------- health

    def _ready(self) -> bool:
        self._follow_fork()
        breaker = self._link.breaker
        if breaker.is_closed():
            return True
        if breaker.claim_probe():
            self._link.start_probe(self._recover)
        return False

    def _recover(self) -> bool:
        """Close the breaker if Redis answers and every floor owed has been raised."""
        try:
            self._link.execute("PING")
            while True:
                with self._lock:
                    owed, self._owed = self._owed, {}
                    if not owed:
                        self._link.breaker.close()
                        _log.info("Redis at %s answers again", self._link.address)
                        return True
                try:
                    self._send_floors(owed)
                except CacheError:
                    with self._lock:
                        for name, revision in owed.items():
                            self._owed[name] = max(revision, self._owed.get(name, revision))
                    raise
        except CacheError:
            self._count(errors=1)
            return False

    def _follow_fork(self) -> None:
        if self._link.follow_fork():
            self._lock = threading.Lock()
            self._owed = {}

    def ping(self) -> bool:
        """Return whether Redis answers now, whatever the breaker says; never raises."""
        self._follow_fork()
        try:
            self._link.execute("PING")
        except CacheError:
            return False
        return True

    def info(self) -> CacheInfo:
        """Return what the doctor checks.

        Raises
        ------
        CacheError
            Redis does not answer, or refuses; a retry can help.
        """
        self._follow_fork()
        started = time.monotonic()
        self._link.execute("PING")
        seconds = time.monotonic() - started
        lines = self._link.execute("INFO").decode().splitlines()
        told = dict(line.split(":", 1) for line in lines if ":" in line)
        return CacheInfo(
            address=self._link.address,
            version=str(told.get("valkey_version") or told.get("redis_version", "")),
            maxmemory=int(told.get("maxmemory", 0)),
            policy=str(told.get("maxmemory_policy", "")),
            used_memory=int(told.get("used_memory", 0)),
            evicted_keys=int(told.get("evicted_keys", 0)),
            ping_seconds=seconds,
        )

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        self._link.close()

    def _store_epoch(self) -> int:
        if not isinstance(self._epoch, int):
            self._epoch = self._epoch()
        return self._epoch

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, count in more.items():
                self._counts[name] += count


def _names(keys: Iterable[SeriesKey], base: Timeframe | None, epoch: int) -> list[str]:
    """Return floor, block and tail by turns."""
    names: list[str] = []
    for key in keys:
        start = base_name(key, base, epoch)
        block = f"{start}:{key.timeframe}"
        names += (f"{start}:floor", block, f"{block}:tail")
    return names


def _reaches(revision: int, floor: bytes | None) -> bool:
    try:
        return floor is not None and revision >= int(floor)
    except ValueError:
        return False


def _block_ttl_ms(seconds: float) -> int:
    """Return the ttl in milliseconds, spread so that blocks put together do not end together."""
    spread = random.uniform(1 - _JITTER, 1 + _JITTER)
    return max(1, int(min(seconds, _DAY_SECONDS) * spread * 1000))
