"""One request through the sandbox: record, fault, guard, answer, spoil, compress, send."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Final, overload
from urllib.parse import parse_qsl, unquote_plus

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import Message, Receive, Scope, Send

from marketdata.sandbox.answers import ApiError, json_response
from marketdata.sandbox.faults import Fault, FaultPlan
from marketdata.sandbox.spoil import spoil
from marketdata.types import SECOND

CONTROL: Final = "/_sandbox/"
_TICK: Final = 0.005
_GZIP_FROM: Final = 500
_HTML: Final = "<html><body><h1>503 Service Temporarily Unavailable</h1></body></html>"
_UNLIMITED: Final = 10_000
_WITH_BODY: Final = ("POST", "PATCH", "PUT")


@dataclass(slots=True)
class RecordedRequest:
    """One request the sandbox has received; `status` is 0 until, or unless, it was answered."""

    method: str
    path: str
    params: dict[str, str]
    time: float
    """Seconds since 1970 by the server's clock, which is real time unless it was given another."""
    status: int = 0
    fault: str | None = None

    @property
    def target(self) -> str:
        """Path and decoded query, what `Fault.match` is looked for in."""
        query = "&".join(f"{k}={v}" for k, v in self.params.items())
        return f"{self.path}?{query}" if query else self.path


class RequestLog(Sequence[RecordedRequest]):
    """The requests received, oldest first; those of the control API are not among them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: list[RecordedRequest] = []

    def append(self, request: RecordedRequest) -> None:
        with self._lock:
            self._requests.append(request)

    def count(self, prefix: str = "", **params: str) -> int:
        """Return how many paths begin with `prefix`, with these query parameters."""
        return len(self.matching(prefix, **params))

    def matching(self, prefix: str = "", **params: str) -> list[RecordedRequest]:
        with self._lock:
            return [
                r
                for r in self._requests
                if r.path.startswith(prefix)
                and all(r.params.get(k) == v for k, v in params.items())
            ]

    def clear(self) -> None:
        with self._lock:
            self._requests.clear()

    @overload
    def __getitem__(self, index: int) -> RecordedRequest: ...
    @overload
    def __getitem__(self, index: slice) -> list[RecordedRequest]: ...
    def __getitem__(self, index: int | slice) -> RecordedRequest | list[RecordedRequest]:
        with self._lock:
            return self._requests[index]

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[RecordedRequest]:
        with self._lock:
            return iter(list(self._requests))


@dataclass
class Guard:
    """Keys and request budgets of the Alpaca paths. Budgets run on real time, or on `seconds`.

    `rate_limit` is requests per `window` seconds and key; None never refuses.
    """

    api_keys: frozenset[str] | None = None
    rate_limit: int | None = None
    window: float = 60.0
    seconds: Callable[[], float] = time.time
    _used: dict[str, tuple[float, int]] = field(default_factory=dict)

    def headers(self, key: str) -> tuple[dict[str, str], bool]:
        """Count a request of `key`; return its rate-limit headers and whether it is refused."""
        limit = self.rate_limit if self.rate_limit is not None else _UNLIMITED
        now = self.seconds()
        began, used = self._used.get(key, (now, 0))
        if now - began >= self.window:
            began, used = now, 0
        refused = self.rate_limit is not None and used >= limit
        used += not refused
        self._used[key] = (began, used)
        headers = {
            "X-RateLimit-Limit": str(limit),
            "X-RateLimit-Remaining": str(max(limit - used, 0)),
            "X-RateLimit-Reset": str(int(began + self.window) + 1),
        }
        return headers, refused

    def refuses(self, key: str | None, secret: str | None) -> bool:
        if not key or (not secret and not key.startswith(("Bearer ", "Basic "))):
            return True
        return self.api_keys is not None and key not in self.api_keys


@dataclass(slots=True)
class _Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class SandboxApp:
    """The ASGI application.

    Parameters
    ----------
    routes : list of starlette routes
        Handlers of the vendors' paths and of the control API.
    log, faults, guard
        Shared with the `Sandbox` that runs this application.
    reset : callable
        Resets the connection of a client address.
    """

    def __init__(
        self,
        routes: Sequence[BaseRoute],
        log: RequestLog,
        faults: FaultPlan,
        guard: Guard,
        reset: Callable[[tuple[str, int]], None],
        now_us: Callable[[], int],
    ) -> None:
        self.log = log
        self.faults = faults
        self.guard = guard
        self._reset = reset
        self._now_us = now_us
        self._stopping = threading.Event()
        self._router = Starlette(routes=list(routes), exception_handlers={ApiError: _api_error})

    def stop(self) -> None:
        """Let go of every stalled, held or slow request."""
        self._stopping.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["path"].startswith(CONTROL):
            await self._router(scope, receive, send)
            return
        query = scope["query_string"].decode("latin-1")
        record = RecordedRequest(
            scope["method"], scope["path"], dict(parse_qsl(query, True)), self.guard.seconds()
        )
        self.log.append(record)
        # A request has arrived whole before anything befalls it: its sender may have gone since.
        arrived = await _arrived(scope, receive)
        if arrived is None:
            return
        fault = self.faults.take(f"{scope['method']} {scope['path']}?{unquote_plus(query)}")
        record.fault = None if fault is None else fault.kind
        if fault is not None and not await self._before(fault, scope, receive):
            return
        answer = await self._answer(scope, arrived, fault, record)
        record.status = answer.status
        if fault is not None and fault.kind == "late":
            await self._wait(lambda: fault.released, None)
        if fault is not None and fault.kind == "lost":
            self._reset(tuple(scope["client"]))
            return
        await self._send(answer, fault, scope, send)

    # ----------------------------------------------------------------------------- faults

    async def _before(self, fault: Fault, scope: Scope, receive: Receive) -> bool:
        """Do what a fault does before there is an answer; return whether there will be one."""
        if fault.kind == "reset":
            self._reset(tuple(scope["client"]))
            return False
        if fault.kind == "stall":
            await self._stall(receive)
            return False
        if fault.kind == "hold":
            await self._wait(lambda: fault.released, None)
        if fault.kind == "slow":
            await self._wait(lambda: False, fault.seconds)
        if fault.kind == "short_page":
            scope["sandbox.limit"] = fault.limit
        return True

    async def _stall(self, receive: Receive) -> None:
        """Say nothing until the client has gone, or the server stops."""
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                message = await asyncio.wait_for(receive(), 0.1)
                if message["type"] == "http.disconnect":
                    return

    async def _wait(self, done: Callable[[], bool], seconds: float | None) -> None:
        """Wait for `done`, the server's stop or the seconds; requests by the hundred may wait."""
        end = None if seconds is None else time.monotonic() + seconds
        while not done() and not self._stopping.is_set():
            if end is not None and time.monotonic() >= end:
                return
            await asyncio.sleep(_TICK)

    async def _answer(
        self, scope: Scope, receive: Receive, fault: Fault | None, record: RecordedRequest
    ) -> _Answer:
        headers: dict[str, str] = {}
        refusal: Response | None = None
        if _is_alpaca(scope["path"]):
            given = Request(scope).headers
            key = given.get("apca-api-key-id") or given.get("authorization")
            headers, limited = self.guard.headers(key or "")
            if self.guard.refuses(key, given.get("apca-api-secret-key")):
                refusal = json_response({"message": "unauthorized."}, 401)
            elif limited:
                refusal = json_response({"message": "too many requests."}, 429)
        ordered = _ordered(fault, headers)
        if ordered is not None:
            return ordered
        if refusal is not None:
            answer = _Answer(refusal.status_code, dict(refusal.headers), bytes(refusal.body))
        else:
            answer = await _call(self._router, scope, receive)
        if fault is not None and fault.kind == "failed":
            answer = _stated(fault, {})
        answer.headers |= headers
        if fault is not None and answer.status == 200:
            answer.body = spoil(fault, answer.body, record.params)
        return answer

    def _date(self, headers: dict[str, str]) -> None:
        """Say what time it is in the market, and the end of a rate limit, which is one of real
        time, by the same clock: a broker has one."""
        market = self._now_us() // SECOND
        headers["Date"] = formatdate(market, usegmt=True)
        reset = headers.get("X-RateLimit-Reset")
        if reset is not None:
            headers["X-RateLimit-Reset"] = str(int(reset) - int(self.guard.seconds()) + market)

    async def _send(self, answer: _Answer, fault: Fault | None, scope: Scope, send: Send) -> None:
        body = answer.body
        headers = {k: v for k, v in answer.headers.items() if k.lower() != "content-length"}
        kind = None if fault is None else fault.kind
        accepts = Request(scope).headers.get("accept-encoding", "")
        if kind == "gzip":
            headers["Content-Encoding"] = "gzip"
            body = b"\x1f\x8b\x08\x00" + b"this is no gzip stream" * 4
        elif "gzip" in accepts and len(body) >= _GZIP_FROM:
            headers["Content-Encoding"] = "gzip"
            body = gzip.compress(body, compresslevel=1, mtime=0)
        headers["Content-Length"] = str(len(body))
        self._date(headers)
        raw = [(k.lower().encode(), v.encode("latin-1")) for k, v in headers.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": raw})
        if kind == "cut":
            half = body[: len(body) // 2]
            await send({"type": "http.response.body", "body": half, "more_body": True})
            # Returning before the announced end makes the server close the connection.
            return
        if kind == "drip" and fault is not None:
            for at in range(len(body)):
                await send(_piece(body[at : at + 1], more=True))
                await self._wait(lambda: False, fault.seconds)
                if self._stopping.is_set():
                    return
            await send(_piece(b"", more=False))
            return
        await send(_piece(body, more=False))


async def _arrived(scope: Scope, receive: Receive) -> Receive | None:
    """Read the request's body; return what hands it on, or None if the sender has gone."""
    parts: list[bytes] = []
    more = True
    while more and scope["method"] in _WITH_BODY:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)

    async def hand_on() -> Message:
        return {"type": "http.request", "body": b"".join(parts), "more_body": False}

    return hand_on


def _piece(body: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


def _is_alpaca(path: str) -> bool:
    return path.startswith(("/v2/", "/v1/corporate-actions")) and path != "/v2/collectConsent"


def _ordered(fault: Fault | None, headers: dict[str, str]) -> _Answer | None:
    """Return the answer a fault orders outright, if it does."""
    if fault is None or fault.kind not in ("status", "html", "rate_limit"):
        return None
    if fault.kind == "html":
        return _Answer(503, headers | {"Content-Type": "text/html"}, _HTML.encode())
    if fault.kind == "rate_limit":
        headers = headers | {
            "X-RateLimit-Limit": headers.get("X-RateLimit-Limit", "200"),
            "X-RateLimit-Remaining": "0",
            "X-RateLimit-Reset": str(int(fault.blocked_until) + 1),
            "Content-Type": "application/json",
        }
        # The whole second after the block ends: a client that waits for it is let in.
        return _Answer(429, headers, b'{"message":"too many requests."}')
    return _stated(fault, headers)


def _stated(fault: Fault, headers: dict[str, str]) -> _Answer:
    """Return the status and body that a fault states."""
    body = fault.body
    if body is None:
        body = json.dumps({"message": "internal server error" if fault.status >= 500 else "fault"})
    return _Answer(
        fault.status,
        headers | {"Content-Type": "application/json"} | dict(fault.headers),
        body.encode(),
    )


async def _call(
    app: Callable[[Scope, Receive, Send], Awaitable[None]], scope: Scope, receive: Receive
) -> _Answer:
    answer = _Answer(500, {}, b"")
    parts: list[bytes] = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {k.decode(): v.decode("latin-1") for k, v in message["headers"]}
        elif message["type"] == "http.response.body":
            parts.append(message.get("body", b""))

    await app(scope, receive, send)
    answer.body = b"".join(parts)
    return answer


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()
