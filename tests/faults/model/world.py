"""The stack of one run: sandbox over HTTP, PostgreSQL, Redis, several clients, one clock; and what
can be done to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import psycopg
import redis

from marketdata import fetching, pausing
from marketdata.client import Client
from marketdata.clock import FixedClock, from_micros, to_micros
from marketdata.config import Settings
from marketdata.protocols import Priority, ReadRequest, SeriesState
from marketdata.sandbox import Sandbox
from marketdata.sandbox.alpaca import _read_token
from marketdata.sandbox.app import RecordedRequest
from marketdata.spans import Span
from marketdata.store import PostgresStore
from marketdata.testing import FlakyProxy
from marketdata.types import SECOND, Bars, SeriesKey, Timeframe
from marketdata.wiring import Runtime
from tests.faults.model.child import Zygote
from tests.faults.model.jobs import JOBS, LEASE
from tests.faults.model.ledger import Answered
from tests.faults.model.market import ScriptedMarket

BARS: Final = "/v2/stocks/bars"
ACTIONS: Final = "/v1/corporate-actions"
CLIENTS: Final = 3
KEPT_DAYS: Final = 9
"""Retention of every client."""
_HARMLESS: Final = {None, "short_page", "hold", "late", "slow", "drip"}
_TIMEFRAMES: Final = {"1Min": Timeframe.MIN_1, "1Day": Timeframe.DAY_1}


@dataclass
class Traffic:
    """The requests since the last look, each with the market times of asking and answering."""

    requests: list[RecordedRequest] = field(default_factory=list)
    pages: list[Answered] = field(default_factory=list)
    actions: dict[str, int] = field(default_factory=dict)
    """When the corporate actions of a symbol were asked for last, market time."""


class World:
    """Everything that is real in the model.

    Parameters
    ----------
    database_url, redis_url : str
        An empty database, and a Redis database that is flushed at will.
    mutation : str
        The bug that processes of their own are to have.
    """

    def __init__(self, database_url: str, redis_url: str, mutation: str = "") -> None:
        self._closing = ExitStack()
        lease = fetching.LEASE
        fetching.LEASE = LEASE  # type: ignore[misc]
        self._closing.callback(setattr, fetching, "LEASE", lease)
        self.zygote = Zygote(mutation)
        self._closing.callback(self.zygote.close)
        self.database_url, self.redis_url = database_url, redis_url
        self.clock = FixedClock(datetime.fromisoformat("2024-03-14T15:00:30-04:00"))
        self.market = ScriptedMarket(self.clock)
        self.sandbox = self._closing.enter_context(Sandbox(self.market, clock=self.clock))
        with PostgresStore(database_url) as store:
            store.migrate()
        self.redis_proxy = self._closing.enter_context(FlakyProxy(redis_url))
        self.auditor = self._closing.enter_context(PostgresStore(database_url))
        self.plain = self._closing.enter_context(redis.Redis.from_url(redis_url))
        self.clients: list[Client] = []
        self._times: list[tuple[int, int]] = []
        self.clients = [self.connect() for _ in range(CLIENTS)]
        self.provider = self.runtime(0).provider

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self._closing.close()

    # ------------------------------------------------------------------------------- clients

    def settings(self) -> dict[str, Any]:
        return {
            "database_url": self.database_url,
            "redis_url": self.redis_proxy.url,
            "broker": "sandbox",
            "alpaca_url": self.sandbox.url,
            "alpaca_trading_url": self.sandbox.url,
            "timeout": 20,
            "progress": "off",
            "seal_after": 1,
            "retention": KEPT_DAYS,
            "clock": repr(self.clock),
        }

    def connect(self) -> Client:
        client = Client(Settings.load(**self.settings()), clock=self.clock)
        hasten(client._lazy.get())
        return client

    def restart(self, who: int) -> None:
        """End one client as a process ends, and begin another."""
        self.clients[who].close()
        self.clients[who] = self.connect()

    def runtime(self, who: int) -> Runtime:
        return self.clients[who]._lazy.get()

    # ---------------------------------------------------------------------------------- time

    @property
    def now(self) -> int:
        return self.clock.now_us()

    def set_time(self, moment: int) -> None:
        self._times.append((len(self.sandbox.requests), moment))
        self.clock.set(from_micros(moment))

    def forget(self) -> None:
        """Begin to listen to the traffic anew."""
        self.sandbox.requests.clear()
        self._times = [(0, self.now)]

    def heard(self) -> Traffic:
        """Return the traffic since `forget`, and begin anew."""
        requests = self.sandbox.requests.matching(BARS)
        everything = list(self.sandbox.requests)
        places = {id(r): n for n, r in enumerate(everything)}
        traffic = Traffic(requests)
        walks: dict[tuple[str, str, str, str, str], list[RecordedRequest]] = {}
        for request in requests:
            p = request.params
            walk = (p["symbols"], p["timeframe"], p["start"], p["end"], p["feed"])
            walks.setdefault(walk, []).append(request)
        for walk, pages in walks.items():
            traffic.pages += self._proven(walk, pages, places)
        for request in self.sandbox.requests.matching(ACTIONS):
            if request.status == 200:
                when = self._time_at(places[id(request)])
                traffic.actions |= dict.fromkeys(request.params["symbols"].split(","), when)
        self.forget()
        return traffic

    def _time_at(self, place: int) -> int:
        return next(t for n, t in reversed(self._times) if n <= place)

    def _proven(
        self,
        walk: tuple[str, str, str, str, str],
        pages: Sequence[RecordedRequest],
        places: Mapping[int, int],
    ) -> Iterator[Answered]:
        """Yield what each page of one walk proves at most: up to where the next one begins."""
        symbols = tuple(sorted(walk[0].split(",")))
        span = Span(_instant(walk[2]), _instant(walk[3]) + SECOND)
        given = [r.params.get("page_token") for r in pages]
        tokens = [None if text is None else _read_token(text, symbols) for text in given]
        later = sorted({t for t in tokens if t is not None})
        asked = self._time_at(places[id(pages[0])])
        for request, token in zip(pages, tokens, strict=True):
            if token is None:
                asked = self._time_at(places[id(request)])
            if request.status != 200 or request.fault not in _HARMLESS:
                continue
            following = next((t for t in later if token is None or t > token), None)
            proven = {}
            for symbol in symbols:
                start, end = span
                if token is not None:
                    start = end if symbol < token[0] else start
                    start = token[1] + 1 if symbol == token[0] else start
                if following is not None:
                    end = start if symbol > following[0] else end
                    end = following[1] + 1 if symbol == following[0] else end
                proven[symbol] = Span(start, max(start, end))
            served = self._time_at(places[id(request)])
            yield Answered(symbols, walk[4], _TIMEFRAMES[walk[1]], proven, asked, served)

    # ----------------------------------------------------------------------------------- jobs

    def job(self, who: int, what: str, **arguments: Any) -> Any:
        """Let a client do one of `jobs`; return what that returns."""
        return JOBS[what](self.runtime(who), **arguments)

    def elsewhere(self, pause: str, what: str, **arguments: Any) -> int:
        """Let a process of its own read, or do one of `jobs`, with a pause point armed; return how
        it ended."""
        for end in {"start", "end"} & arguments.keys() if what == "read" else ():
            arguments[end] = arguments[end].isoformat()
        return self.zygote.run(self.settings(), pause, what, **arguments)

    # --------------------------------------------------------------------------------- trouble

    def flush_redis(self) -> None:
        self.plain.flushdb()

    def damage_blocks(self) -> None:
        """Flip a bit in the middle of every block and tail."""
        for name in self.plain.scan_iter():
            if not name.endswith(b":floor"):
                block = bytearray(self.plain.get(name) or b"x")
                block[len(block) // 2] ^= 0x10
                self.plain.set(name, bytes(block), keepttl=True)

    def terminate(self) -> None:
        """End every session of the database but the caller's."""
        with psycopg.connect(self.database_url, autocommit=True) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

    @contextmanager
    def armed(self, point: str, nth: int, action: Callable[[], None]) -> Iterator[None]:
        """Let `action` run when `point` is passed the `nth` time."""
        pausing.arm(point, pausing.nth_time(nth, action))
        try:
            yield
        finally:
            pausing.disarm(point)

    # ----------------------------------------------------------------------------------- audit

    def stored(self, keys: Sequence[SeriesKey]) -> dict[SeriesKey, tuple[SeriesState, Bars]]:
        """Return everything stored of these series, from one snapshot."""
        everything = Span(0, 2**52)
        return self.auditor.read([ReadRequest(key, everything) for key in keys])

    def empty(self) -> None:
        """Forget all bars, as if the database had just been made."""
        with psycopg.connect(self.database_url, autocommit=True) as plain:
            plain.execute("SET search_path = marketdata; SET client_min_messages = error")
            plain.execute("TRUNCATE market_data_bars, bar_chunks, bar_corrections, series")
        self.flush_redis()


def hasten(runtime: Runtime) -> None:
    """Let retries and breakers of one client wait for milliseconds."""
    for broker in (runtime.broker, runtime.broker_for(Priority.BACKFILL)):
        for endpoint in {broker._data, broker._trading}:  # type: ignore[attr-defined]
            caller = endpoint.caller
            caller._first_wait, caller._longest_wait = 0.01, 0.02
            caller.breaker._open_seconds = 0.02


def _instant(text: str) -> int:
    return to_micros(datetime.fromisoformat(text.replace("Z", "+00:00")))
