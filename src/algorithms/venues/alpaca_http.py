"""Requests to Alpaca's trading API through alpaca-py; the seam where foreign errors end.

alpaca-py addresses and signs requests and reads answers. Deadlines, waiting and errors are ours: it
has no time-outs, sleeps a fixed 3 s when told to slow down, and its errors carry the request with
its keys.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Final

import requests
from requests import exceptions
from requests.adapters import HTTPAdapter
from urllib3.exceptions import ReadTimeoutError

from algorithms.errors import VenueError

LONGEST_WAIT: Final = 120.0
"""Seconds. Limits are counted per minute: a longer wait asked by a header is a mistake."""
_CONNECT: Final = 3.0
_BETWEEN_READS: Final = 5.0
_PIECE: Final = 1 << 16

# The first class that matches decides; the order goes from the particular to the general.
_TABLE: Final[tuple[tuple[type[Exception], bool, str], ...]] = (
    (exceptions.ConnectTimeout, True, "no connection in time"),
    (exceptions.Timeout, True, "no answer in time"),
    (exceptions.ProxyError, True, "the proxy failed"),
    (exceptions.SSLError, True, "no secure connection"),
    (exceptions.ConnectionError, True, "no connection"),
    (exceptions.ChunkedEncodingError, True, "the answer was cut short"),
    (exceptions.ContentDecodingError, True, "the answer cannot be unpacked"),
    (exceptions.JSONDecodeError, True, "the answer is not JSON"),
    (exceptions.InvalidJSONError, True, "the answer is not JSON"),
    (exceptions.RetryError, True, "no connection"),
    (exceptions.TooManyRedirects, False, "redirected"),
    (exceptions.InvalidURL, False, "the address is not a URL"),
    (exceptions.MissingSchema, False, "the address is not a URL"),
    (exceptions.InvalidSchema, False, "the address is not a URL"),
    (exceptions.RequestException, False, "the request cannot be sent"),
)


def translate(error: exceptions.RequestException) -> VenueError:
    """Return ours for one of requests' errors; total over `requests.exceptions`.

    The original is not chained: it holds the request with its keys.
    """
    transient, words = next(row[1:] for row in _TABLE if isinstance(error, row[0]))
    if any(isinstance(each, ReadTimeoutError | TimeoutError) for each in error.args):
        transient, words = True, "the answer did not end in time"
    return VenueError(
        f"alpaca: {words}",
        cure=LATER if transient else ADDRESS,
        transient=transient,
        cause=type(error).__name__,
    )


LATER: Final = "try again; what was given is settled by giving it again"
ADDRESS: Final = "check the address of the trading API"
KEYS: Final = "check APCA_API_KEY_ID and APCA_API_SECRET_KEY: they must be a paper account's"


def error_of_status(status: int, words: str, code: int | None, wait: float | None) -> VenueError:
    """Return ours for an HTTP answer other than 200 and 204; total over all statuses.

    ================  ===========================================  =========
    status            meaning                                      transient
    ================  ===========================================  =========
    1xx, 2xx          nothing that can be read                     yes
    3xx               redirected, which is refused                 no
    401               wrong keys                                   no
    403, 404, 422,    refused: ``refused`` is true                 no
    other 4xx
    408, 425, 5xx     the broker is not well                       yes
    429               too many requests; ``retry_after``           yes
    ================  ===========================================  =========
    """
    said = f"alpaca answered {status}" + (f": {words}" if words else "")
    facts: dict[str, Any] = {"status": status} | ({} if code is None else {"code": code})
    if status == 429:
        seconds = round(1.0 if wait is None else wait, 3)
        cure = f"try again in {seconds:.0f} s"
        return VenueError(said, cure=cure, transient=True, retry_after=seconds, **facts)
    if status < 300 or status in (408, 425) or status >= 500:
        return VenueError(said, cure=LATER, transient=True, **facts)
    if status < 400:
        return VenueError(said + " (redirects are refused)", cure=ADDRESS, **facts)
    if status == 401:
        return VenueError(said, cure=KEYS, **facts)
    return VenueError(said, cure="change the order as the broker says", refused=True, **facts)


# ------------------------------------------------------------------------------------ session


class _Session:
    """What alpaca-py takes for its session: one pool of connections, each request with an end.

    Attributes
    ----------
    response : requests.Response or None
        The last answer.
    """

    def __init__(self, pool: requests.Session, end: float) -> None:
        self._pool = pool
        self._end = end
        self.response: requests.Response | None = None

    def request(self, method: str, url: str, **options: Any) -> requests.Response:
        self.response = None
        left = self._end - time.monotonic()
        if left <= 0:
            raise exceptions.Timeout("the deadline had passed")
        pause = min(_BETWEEN_READS, left)
        options |= {
            "allow_redirects": False,
            "timeout": (min(_CONNECT, left), pause),
            "stream": True,
        }
        # Packed bodies are unpacked in one go, however slowly they drip in.
        options["headers"] = {**options.get("headers", {}), "Accept-Encoding": "identity"}
        response = self._pool.request(method, url, **options)
        try:
            whole = self._body(response)
            # What was read counts as read, so that its connection is used again.
            vars(response).update(_content=whole, _content_consumed=True)
        finally:
            response.close()
        response.encoding = "utf-8"
        self.response = response
        return response

    def _body(self, response: requests.Response) -> bytes:
        """Read the body piece by piece: a time-out per read would not end a body that drips."""
        parts = []
        while True:
            try:
                piece = response.raw.read1(_PIECE, decode_content=False)
            except Exception as error:
                raise _as_requests_says(error) from None
            if not piece:
                break
            parts.append(piece)
            if time.monotonic() >= self._end:
                raise exceptions.Timeout("the deadline passed while the answer was being read")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise exceptions.ContentDecodingError("packed, which was not asked for")
        return b"".join(parts)


def _as_requests_says(error: Exception) -> Exception:
    from urllib3 import exceptions as lower

    if isinstance(error, ReadTimeoutError | TimeoutError):
        return exceptions.Timeout("the answer stopped")
    if isinstance(error, lower.DecodeError):
        return exceptions.ContentDecodingError("the answer cannot be unpacked")
    if isinstance(error, lower.HTTPError | OSError):
        return exceptions.ChunkedEncodingError("the answer was cut short")
    return error


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


class Requests:
    """Requests with keys to one address. Thread-safe; renewed after a fork.

    Parameters
    ----------
    url : str
        As `algorithms.venues.addresses.paper_address` returns it.
    key_id, secret_key : str
    seconds : float
        How long one request may take, its waits included.
    sleep : callable, optional
        Waits the given seconds.
    """

    def __init__(
        self,
        url: str,
        key_id: str,
        secret_key: str,
        *,
        seconds: float,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = url
        self.seconds = seconds
        self._key_id, self._secret_key = key_id, secret_key
        self._sleep = sleep
        self._client: Any = None
        self._pid = -1
        self._blocked_until = 0.0
        self._pool: requests.Session | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Requests({self.url})"

    def call(self, ask: Callable[[Any], Any]) -> Any:
        """Return what ``ask(client)`` answers, `client` being alpaca-py's in raw mode.

        A 429 is waited out where the time allows; nobody asks before the moment it named.

        Raises
        ------
        VenueError
            See `translate` and `error_of_status`; the outcome of what was asked is unknown where
            it is transient.
        """
        end = time.monotonic() + self.seconds
        while True:
            wait = self._blocked_until - time.monotonic()
            if wait > 0 and time.monotonic() + wait >= end:
                raise error_of_status(429, "asked to wait", None, wait)
            if wait > 0:
                self._sleep(wait)
            answer, problem = self._once(ask, end)
            if problem is None:
                return answer
            if problem.facts.get("status") != 429:
                raise problem
            seconds = float(problem.facts["retry_after"])  # type: ignore[arg-type]
            self._blocked_until = time.monotonic() + min(seconds, LONGEST_WAIT)

    def _once(self, ask: Callable[[Any], Any], end: float) -> tuple[Any, VenueError | None]:
        """Ask once. Errors are returned, so that none carries the request as its context."""
        from alpaca.common.exceptions import APIError

        client = copy.copy(self._sdk())
        session = client._session = _Session(self._connections(), end)
        answer, failure = None, None
        try:
            answer = ask(client)
        except (APIError, exceptions.RequestException, ValueError, RecursionError) as error:
            failure = error
        response = session.response
        if response is not None and response.status_code not in (200, 204, 207):
            words, code = self._said(response.text[:4000])
            wait = retry_after(response.headers)
            return None, error_of_status(response.status_code, words, code, wait)
        if isinstance(failure, exceptions.RequestException):
            return None, translate(failure)
        if failure is not None and response is None:
            # pydantic refused the request before it was sent.
            words = " ".join(str(failure).split())[:200]
            return None, VenueError(
                f"this order cannot be given to alpaca: {words}",
                cure="change the order",
                refused=True,
            )
        if failure is not None:
            return None, VenueError("alpaca: the answer cannot be read", cure=LATER, transient=True)
        return answer, None

    def _said(self, body: str) -> tuple[str, int | None]:
        """Return the message and code of an error body, without our keys."""
        import json

        try:
            found = json.loads(body)
        except ValueError:
            found = None
        code = None
        text = body
        if isinstance(found, Mapping):
            number = found.get("code")
            code = number if isinstance(number, int) else None
            reason = found.get("reject_reason")
            text = str(found.get("message") or "") + (f" ({reason})" if reason else "")
        elif body.lstrip().startswith("<"):
            text = ""
        for secret in (self._secret_key, self._key_id):
            if len(secret) >= 6:
                text = text.replace(secret, "***")
        return " ".join(text.split())[:200], code

    def _sdk(self) -> Any:
        """Return alpaca-py's client, imported and made on first use, its own retry off."""
        if self._client is None:  # made twice at worst
            with warnings.catch_warnings():
                # It imports a module of websockets that is deprecated, for streams not used here.
                warnings.simplefilter("ignore", DeprecationWarning)
                from alpaca.trading.client import TradingClient

            client = TradingClient(
                self._key_id, self._secret_key, paper=True, raw_data=True, url_override=self.url
            )
            client._retry, client._retry_codes = 0, []
            self._client = client
        return self._client

    def _connections(self) -> requests.Session:
        with self._lock:
            if self._pool is None or self._pid != os.getpid():  # a parent's are not ours
                pool = requests.Session()
                adapter = HTTPAdapter(pool_connections=2, pool_maxsize=32, max_retries=0)
                pool.mount("https://", adapter)
                pool.mount("http://", adapter)
                # Any `auth` keeps requests from sending what a .netrc file holds for the host; a
                # proxy is no part of this machine.
                pool.auth = _as_it_is
                pool.trust_env = self.url.startswith("https://paper-api.")
                self._pool, self._pid = pool, os.getpid()
            return self._pool

    def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        with self._lock:
            if self._pool is not None and self._pid == os.getpid():
                self._pool.close()
            self._pool = None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds until the broker answers again, or None if it does not say.

    ``X-RateLimit-Reset`` is an epoch second of the broker's clock, which the ``Date`` header of
    the same answer shows.
    """
    waits = []
    with contextlib.suppress(KeyError, TypeError, ValueError):
        shown = parsedate_to_datetime(headers["Date"]).timestamp()
        waits.append(float(headers["X-RateLimit-Reset"]) - shown)
    with contextlib.suppress(KeyError, ValueError):
        waits.append(float(headers["Retry-After"]))
    known = [wait for wait in waits if math.isfinite(wait)]
    return max(0.0, *known) if known else None
