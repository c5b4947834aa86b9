"""HTTP within a deadline: one pool of connections for all clients of a broker.

``requests`` has time-outs per read, so that a server which sends a byte now and then holds its
caller for ever. Here each read from the socket, headers included, waits for what is left of the
request's own allowance at most. Redirects are refused: they would carry the keys elsewhere.
"""

from __future__ import annotations

import http.client
import io
import os
import socket
import threading
import time
from typing import Any, Final

import requests
from requests import exceptions
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ReadTimeoutError

from marketdata.clock import Deadline
from marketdata.errors import (
    BrokerError,
    BrokerResponseError,
    BrokerTimeoutError,
    BrokerUnavailableError,
)

LONGEST_REQUEST: Final = 60.0
"""Seconds one request may take in all, even for a caller without a deadline."""

# ------------------------------------------------------------------------- reads with a deadline


class _Allowance(threading.local):
    """Until when the request under way in this thread may go on, on `time.monotonic`.

    http.client makes the response object deep inside requests and urllib3, which pass numbers
    only: this is how the end of the allowance gets there.
    """

    end = float("inf")
    pause = float("inf")
    """Longest wait between two reads, seconds."""


_allowance = _Allowance()


class _Reader(io.RawIOBase):
    """The receiving side of a socket; no read waits beyond the allowance."""

    def __init__(self, connection: socket.socket, stream: io.BufferedReader) -> None:
        self._connection = connection
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = min(_allowance.end - time.monotonic(), _allowance.pause)
        if left <= 0:
            raise TimeoutError("the deadline passed while the answer was being read")
        self._connection.settimeout(None if left == float("inf") else left)
        return self._stream.raw.readinto(buffer)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_Reader(sock, self.fp), 65536)


class _Connection(HTTPConnection):
    response_class = _Response


class _SecureConnection(HTTPSConnection):
    response_class = _Response


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        _use_pools(self.poolmanager)

    def proxy_manager_for(self, proxy: Any, **options: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **options)
        _use_pools(manager)
        return manager


def _use_pools(manager: PoolManager) -> None:
    manager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}


# ------------------------------------------------------------------------------------ transport


class Transport:
    """A pool of HTTP connections, shared by threads and renewed after a fork.

    Parameters
    ----------
    timeouts : tuple of float
        Seconds to connect, and seconds between two reads of an answer.
    pool_size : int
        Connections kept open per host.
    """

    def __init__(self, *, timeouts: tuple[float, float] = (3.0, 15.0), pool_size: int = 64) -> None:
        self._connect, self._read = timeouts
        self._pool_size = pool_size
        self._lock = threading.Lock()
        self._open()

    def _open(self) -> None:
        session = requests.Session()
        adapter = _Adapter(pool_connections=8, pool_maxsize=self._pool_size, max_retries=0)
        session.mount("https://", adapter)
        session.mount("http://", adapter)
        # Any `auth` keeps requests from sending what a .netrc file holds for the host.
        session.auth = _as_it_is
        self._session, self._pid = session, os.getpid()

    def _current(self) -> requests.Session:
        if self._pid != os.getpid():  # the parent's sockets must not be shared
            self._open()
        return self._session

    def request(
        self, method: str, url: str, *, deadline: Deadline, **options: Any
    ) -> requests.Response:
        """Send one request and read its whole answer, whatever the status.

        Parameters
        ----------
        deadline : Deadline
            Bounds the request from the first packet to the last byte.
        **options
            As `requests.Session.request` takes them; time-outs and redirects are decided here.

        Raises
        ------
        requests.RequestException
            See `translate`.
        """
        left = deadline.cap(LONGEST_REQUEST)
        if left <= 0:
            raise exceptions.Timeout("the deadline had passed")
        options.update(
            allow_redirects=False,
            timeout=(min(self._connect, left), min(self._read, left)),
            stream=False,
        )
        _allowance.end = time.monotonic() + left
        _allowance.pause = self._read
        try:
            response = self._current().request(method, url, **options)
        finally:
            _allowance.end = _allowance.pause = float("inf")
        # JSON is UTF-8; without this requests guesses at length from the body.
        response.encoding = "utf-8"
        return response

    def within(self, deadline: Deadline) -> BoundSession:
        """Return what a client takes for its session: requests end by `deadline`."""
        return BoundSession(self, deadline)

    def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        self._current().close()


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


class BoundSession:
    """The part of `requests.Session` that SDK clients call, bound to one deadline.

    Attributes
    ----------
    response : requests.Response or None
        The last answer, for its status and headers.
    """

    def __init__(self, transport: Transport, deadline: Deadline) -> None:
        self._transport = transport
        self._deadline = deadline
        self.response: requests.Response | None = None

    def request(self, method: str, url: str, **options: Any) -> requests.Response:
        self.response = None
        self.response = self._transport.request(method, url, deadline=self._deadline, **options)
        return self.response


# ---------------------------------------------------------------------------------- translation

# The first class that matches decides; the order goes from the particular to the general.
_TABLE: Final[tuple[tuple[type[Exception], type[BrokerError], bool, str], ...]] = (
    (exceptions.ConnectTimeout, BrokerTimeoutError, True, "no connection in time"),
    (exceptions.Timeout, BrokerTimeoutError, True, "no answer in time"),
    (exceptions.ProxyError, BrokerUnavailableError, True, "the proxy failed"),
    (exceptions.SSLError, BrokerUnavailableError, True, "no secure connection"),
    (exceptions.ConnectionError, BrokerUnavailableError, True, "no connection"),
    (exceptions.ChunkedEncodingError, BrokerResponseError, True, "the answer was cut short"),
    (exceptions.ContentDecodingError, BrokerResponseError, True, "the answer cannot be unpacked"),
    (exceptions.JSONDecodeError, BrokerResponseError, True, "the answer is not JSON"),
    (exceptions.InvalidJSONError, BrokerResponseError, True, "the answer is not JSON"),
    (exceptions.RetryError, BrokerUnavailableError, True, "no connection"),
    (exceptions.TooManyRedirects, BrokerResponseError, False, "redirected"),
    (exceptions.InvalidURL, BrokerResponseError, False, "the address is not a URL"),
    (exceptions.MissingSchema, BrokerResponseError, False, "the address is not a URL"),
    (exceptions.InvalidSchema, BrokerResponseError, False, "the address is not a URL"),
    (exceptions.RequestException, BrokerResponseError, False, "the request cannot be sent"),
)


def translate(error: exceptions.RequestException, broker: str, deadline: Deadline) -> BrokerError:
    """Return the library's error for one of requests'; total over `requests.exceptions`.

    The original is not chained: it holds the request with its keys.
    """
    ours, transient, words = next(row[1:] for row in _TABLE if isinstance(error, row[0]))
    if _timed_out_while_reading(error):
        ours, words = BrokerTimeoutError, "the answer did not end in time"
    problem = ours(f"{broker}: {words}", transient=transient, cause=type(error).__name__)
    if isinstance(problem, BrokerTimeoutError) and deadline.expired:
        problem.facts["cut_by_deadline"] = True
        problem.cure = "allow more time with timeout="
    return problem


def _timed_out_while_reading(error: exceptions.RequestException) -> bool:
    """requests reports a time-out in the middle of a body as a ConnectionError."""
    return any(isinstance(each, ReadTimeoutError | TimeoutError) for each in error.args)
