"""A small Yahoo for tests: charts made by hand or recorded, faults on demand, requests counted."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit
from zoneinfo import ZoneInfo

NEW_YORK = ZoneInfo("America/New_York")


@dataclass(frozen=True)
class Asked:
    symbol: str
    interval: str
    start: int
    end: int


@dataclass(frozen=True)
class Answer:
    """What to send. `cut` bytes are held back from the end; `stall` seconds pass before."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int = 0
    stall: float = 0.0


def seconds(text: str) -> int:
    """Return New York wall time as seconds since 1970: ``2024-03-08 09:30``."""
    return int(datetime.fromisoformat(text).replace(tzinfo=NEW_YORK).timestamp())


def micros(text: str) -> int:
    return seconds(text) * 1_000_000


Row = tuple[str, float | None, float | None, float | None, float | None, float | None]


def chart(
    symbol: str,
    interval: str,
    rows: Sequence[Row],
    splits: Mapping[str, tuple[float, float]] | None = None,
    **meta: Any,
) -> bytes:
    """Return a chart answer; `rows` are (New York time, open, high, low, close, volume)."""
    told = {
        "currency": "USD",
        "symbol": symbol,
        "instrumentType": "EQUITY",
        "exchangeTimezoneName": "America/New_York",
        "longName": f"{symbol} Inc.",
        "dataGranularity": interval,
        "validRanges": ["1d", "5d", "max"],
        **meta,
    }
    result: dict[str, Any] = {"meta": told, "indicators": {"quote": [{}]}}
    if rows:
        result["timestamp"] = [seconds(row[0]) for row in rows]
        names = ("open", "high", "low", "close", "volume")
        quote = {name: [row[i + 1] for row in rows] for i, name in enumerate(names)}
        result["indicators"]["quote"] = [quote]
    if splits:
        events = {}
        for day, (new, old) in splits.items():
            at = seconds(f"{day} 09:30")
            events[str(at)] = {"date": at, "numerator": new, "denominator": old}
        result["events"] = {"splits": events}
    return json.dumps({"chart": {"result": [result], "error": None}}).encode()


def chart_error(status: int, code: str, description: str) -> Answer:
    error = {"code": code, "description": description}
    return Answer(json.dumps({"chart": {"result": None, "error": error}}).encode(), status)


NOT_FOUND = chart_error(404, "Not Found", "No data found, symbol may be delisted")


class YahooServer:
    """Answers by `answer`, after the `faults` queued are used up.

    Attributes
    ----------
    asked : list of Asked
        The charts asked for, in order.
    paths : list of str
        Every path asked for, cookies and crumbs too.
    """

    def __init__(self, answer: Callable[[Asked], Answer | bytes]) -> None:
        self.answer = answer
        self.faults: list[Answer] = []
        self.asked: list[Asked] = []
        self.paths: list[str] = []
        self.released = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.handle(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(request.path)
        self.paths.append(parts.path)
        answer: Answer | bytes = b"crumb"
        if parts.path.startswith("/v8/finance/chart/"):
            query = {k: v[0] for k, v in parse_qs(parts.query).items()}
            asked = Asked(
                parts.path.rsplit("/", 1)[1],
                query["interval"],
                int(query["period1"]),
                int(query["period2"]),
            )
            self.asked.append(asked)
            answer = self.faults.pop(0) if self.faults else self.answer(asked)
        self._send(request, answer if isinstance(answer, Answer) else Answer(answer))

    def _send(self, request: BaseHTTPRequestHandler, answer: Answer) -> None:
        if answer.stall:
            self.released.wait(answer.stall)
        try:
            request.send_response(answer.status)
            for name, value in answer.headers.items():
                request.send_header(name, value)
            request.send_header("Content-Length", str(len(answer.body)))
            request.end_headers()
            request.wfile.write(answer.body[: len(answer.body) - answer.cut])
            request.wfile.flush()
        except OSError:
            pass  # the client has gone
        request.close_connection = bool(answer.cut or answer.stall)

    @contextmanager
    def running(self) -> Iterator[YahooServer]:
        thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.released.set()
            self._http.shutdown()
            self._http.server_close()
            thread.join(5)
