"""HTTP within a deadline, against servers written byte by byte."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import pytest
import requests

from marketdata.brokers.transport import Transport, translate
from marketdata.clock import Deadline
from marketdata.errors import BrokerError, BrokerTimeoutError

Script = Callable[[socket.socket, threading.Event], None]


class RawServer:
    """Accepts connections and lets `script` write the answer to each request."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._ended = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        self.requests: list[bytes] = []
        self.connections = 0
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            while received := connection.recv(65536):
                self.requests.append(received)
                self._script(connection, self._ended)

    def __enter__(self) -> RawServer:
        self._threads[0].start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def transport() -> Iterator[Transport]:
    made = Transport(timeouts=(1.0, 5.0))
    yield made
    made.close()


def dripped(prefix: bytes, drop: bytes, every: float = 0.05) -> Script:
    def script(connection: socket.socket, ended: threading.Event) -> None:
        connection.sendall(prefix)
        while not ended.wait(every):
            connection.sendall(drop)

    return script


def fails_within(transport: Transport, url: str, seconds: float) -> BrokerError:
    deadline = Deadline(seconds)
    begun = time.monotonic()
    with pytest.raises(requests.RequestException) as caught:
        transport.request("GET", url, deadline=deadline)
    assert time.monotonic() - begun < seconds + 0.3
    return translate(caught.value, "alpaca", deadline)


@pytest.mark.parametrize(
    "script",
    [
        dripped(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x"),
        dripped(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFFF\r\n", b"x"),
        dripped(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        dripped(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b"x"),
        dripped(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"),
        dripped(b"", b"H"),
    ],
    ids=["length", "one-chunk", "chunks", "until-close", "headers", "status-line"],
)
def test_invariant_20_a_dripping_server_does_not_outlast_the_deadline(
    transport: Transport, script: Script
) -> None:
    with RawServer(script) as server:
        error = fails_within(transport, server.url, 0.5)
    assert type(error) is BrokerTimeoutError
    assert error.facts["cut_by_deadline"]


def test_invariant_20_a_mute_server_is_left_at_the_read_timeout() -> None:
    transport = Transport(timeouts=(1.0, 0.3))
    with RawServer(lambda connection, ended: None) as server:
        begun = time.monotonic()
        with pytest.raises(requests.ReadTimeout):
            transport.request("GET", server.url, deadline=Deadline(None))
        assert time.monotonic() - begun < 1.0
    transport.close()


def test_an_expired_deadline_sends_nothing(transport: Transport) -> None:
    with RawServer(lambda connection, ended: None) as server:
        assert type(fails_within(transport, server.url, 0)) is BrokerTimeoutError
        assert server.connections == 0


def test_connections_are_kept_and_a_short_deadline_leaves_no_trace_on_them(
    transport: Transport,
) -> None:
    body = b'{"a": "caf\xc3\xa9"}'

    def script(connection: socket.socket, ended: threading.Event) -> None:
        ended.wait(0.2)
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
        connection.sendall(head + body)

    with RawServer(script) as server:
        for seconds in (0.5, 5.0, 0.5):
            found = transport.request("GET", server.url, deadline=Deadline(seconds))
            assert found.json() == {"a": "café"}
            assert found.text == body.decode()
        assert server.connections == 1


def test_a_netrc_file_is_not_sent(
    transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password from-the-file\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))

    def script(connection: socket.socket, ended: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    with RawServer(script) as server:
        transport.request("GET", server.url, deadline=Deadline(5))
        assert b"Authorization" not in server.requests[0]
