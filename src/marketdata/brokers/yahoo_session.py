"""Calls yfinance for one chart at a time, and judges what Yahoo really answered.

yfinance asks for a cookie, a crumb and the chart. It is given a session of ours, through which
every such request passes: the session sets the time-outs, spends the rate budget, and stops at the
first bad answer to a chart. By itself yfinance turns 404, 422, 500 and time-outs into an empty
frame and answers one bad status with up to seven requests.

Nothing of yfinance's process-wide state is used or changed, so that other users of it in the same
process are left alone: not its singleton of cookies and session (the last session given wins for
all threads), not its cache of past ranges (which remembers an error for good), not its SQLite
files (locked by other processes), not its configuration. Two filters are added, to its log and to
the warnings raised inside it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import requests

from marketdata.brokers.resilience import Caller, CircuitBreaker, RequestGate
from marketdata.brokers.transport import Transport
from marketdata.brokers.yahoo_errors import (
    Refusal,
    chart_error,
    error_of_status,
    out_of_time,
    translate,
)
from marketdata.clock import Deadline
from marketdata.errors import MarketDataError

log = logging.getLogger("marketdata.brokers.yahoo")

_COOKIE_SECONDS: Final = 5.0
_COOKIE_PAUSE: Final = 600.0
"""Seconds without asking for cookies once their hosts, which some networks block, did not answer."""
_CHART_PATH: Final = "/v8/finance/chart/"
_ZONE: Final = "America/New_York"


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of one request for a chart.

    Attributes
    ----------
    frame : DataFrame or None
        What yfinance made of it; None where it raised.
    error : Exception or None
        What yfinance raised.
    body : bytes
        What Yahoo sent with status 200, as the judge of both.
    refusal : Refusal or None
        Yahoo refused with its reasons; frame and body mean nothing then.
    """

    frame: Any
    error: Exception | None
    body: bytes
    refusal: Refusal | None = None


class _ChartStoppedError(Exception):
    """Leads out of yfinance once the outcome of a chart request is known."""


class _CookiePause:
    """Until when to do without cookies."""

    def __init__(self) -> None:
        self._until = float("-inf")

    def begin(self) -> None:
        self._until = time.monotonic() + _COOKIE_PAUSE

    def check(self) -> None:
        if time.monotonic() < self._until:
            raise requests.ConnectionError("Yahoo's cookie hosts did not answer lately")


class _Exchange:
    """The HTTP requests of one call of yfinance, and what they came to."""

    def __init__(
        self,
        gate: RequestGate,
        cookies: _CookiePause,
        timeouts: tuple[float, float],
        deadline: Deadline,
    ) -> None:
        self._gate = gate
        self._cookies = cookies
        self._timeouts = timeouts
        self._deadline = deadline
        self._paid = True  # the caller's gate counted the first chart
        self._turned_away = False
        self.body: bytes | None = None
        self.failure: MarketDataError | None = None
        self.refusal: Refusal | None = None

    def send(
        self, perform: Callable[..., Any], method: str, url: str, options: dict[str, Any]
    ) -> Any:
        """Send one HTTP request of yfinance's.

        What goes wrong with a chart is remembered, because yfinance swallows exceptions. A cookie
        or a crumb that cannot be had is yfinance's own affair: the chart may do without.
        """
        chart = _CHART_PATH in urlsplit(url).path
        if not chart:
            self._cookies.check()
        try:
            self._pay(chart)
            options["timeout"] = self._timeout(chart)
            response = perform(method, url, **options)
        except MarketDataError as error:
            self.failure = error
            raise _ChartStoppedError from error
        except Exception as error:
            if not chart:
                self._cookies.begin()
                raise
            self.failure = translate(error, self._deadline)
            raise _ChartStoppedError from error
        if chart:
            self._judge(response)
        return response

    def _pay(self, chart: bool) -> None:
        if self._deadline.expired:
            raise out_of_time(self._deadline)
        if chart and self._paid:
            self._paid = False
        else:
            self._gate.acquire(self._deadline)

    def _timeout(self, chart: bool) -> tuple[float, float]:
        """Return seconds to connect and to answer; together they stay inside the deadline."""
        connect, read = self._timeouts
        left = max(0.002, self._deadline.remaining())
        connect = min(connect, left / 2)
        return connect, min(read if chart else min(read, _COOKIE_SECONDS), left - connect)

    def _judge(self, response: Any) -> None:
        status = int(response.status_code)
        if status in (401, 403) and not self._turned_away:
            self._turned_away = True  # yfinance renews its cookie and asks once more
            return
        if status == 200:
            self.body = bytes(response.content)
            return
        error = chart_error(response.content)
        if error is not None and 400 <= status < 500 and status not in (401, 403, 429):
            self.refusal = Refusal(status, *error)
        else:
            self.failure = error_of_status(status, response)
        raise _ChartStoppedError


class YahooLine:
    """The way to Yahoo: one session, used by one thread at a time, renewed after a fork.

    Parameters
    ----------
    gate : RequestGate
        Rate budget; every request takes from it, cookies and crumbs too.
    breaker : CircuitBreaker
        Shared by all calls.
    base_url : str or None
        Where to send all requests instead of Yahoo: a sandbox or a proxy.
    timeouts : tuple of float
        Seconds to connect, and for the answer.
    """

    def __init__(
        self,
        gate: RequestGate,
        breaker: CircuitBreaker,
        *,
        base_url: str | None,
        timeouts: tuple[float, float],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._gate = gate
        self._caller = Caller(breaker, gate, sleep=sleep)
        self._base_url = base_url
        self._timeouts = timeouts
        self._open()

    def _open(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._data: Any = None
        self._session: Any = None
        self._exchange: _Exchange | None = None
        self._cookies = _CookiePause()

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        with self._lock:
            if self._session is not None:
                self._session.close()
            self._session = self._data = None

    def chart(self, symbol: str, interval: str, start: int, end: int, deadline: Deadline) -> Reply:
        """Ask for one chart.

        Parameters
        ----------
        symbol : str
            In Yahoo's spelling.
        interval : str
            In Yahoo's spelling: ``1m``, ``5m``, ``15m``, ``1h``, ``1d``.
        start, end : int
            Seconds since 1970, half-open.

        Raises
        ------
        BrokerError
            Nothing was answered, or nothing that can be understood; transient errors have been
            retried.
        """
        if self._pid != os.getpid():  # the parent's sockets and locks must not be shared
            self._open()
        return self._caller.call(
            lambda: self._ask_once(symbol, interval, start, end, deadline), deadline
        )

    def _ask_once(
        self, symbol: str, interval: str, start: int, end: int, deadline: Deadline
    ) -> Reply:
        left = deadline.remaining()
        if not self._lock.acquire(timeout=-1 if left == float("inf") else left):
            raise out_of_time(deadline)
        try:
            exchange = self._exchange = _Exchange(
                self._gate, self._cookies, self._timeouts, deadline
            )
            frame: Any = None
            error: Exception | None = None
            with _quiet_yfinance():
                try:
                    frame = self._history(symbol, interval, start, end)
                except Exception as problem:
                    error = problem
        finally:
            self._exchange = None
            self._lock.release()
        if exchange.failure is not None:
            raise exchange.failure
        if exchange.refusal is not None:
            return Reply(None, None, b"", exchange.refusal)
        if exchange.body is None:
            raise translate(error or RuntimeError("no chart was asked for"), deadline)
        return Reply(frame, error, exchange.body)

    def _history(self, symbol: str, interval: str, start: int, end: int) -> Any:
        from yfinance.scrapers.history import PriceHistory

        if self._data is None:
            self._session = self._new_session()
            self._data = _private_data(self._session)
        # The zone is given, not asked for (one request less); the answer's zone is checked later.
        return PriceHistory(self._data, symbol, _ZONE, session=self._session).history(
            interval=interval,
            start=start,
            end=end,
            prepost=interval != "1d",
            auto_adjust=False,
            repair=False,
            actions=True,
        )

    def _new_session(self) -> Any:
        if self._base_url is not None:
            return _RedirectedSession(self, Transport(timeouts=self._timeouts), self._base_url)
        return _browser_session(self)

    def send(
        self, perform: Callable[..., Any], method: str, url: str, options: dict[str, Any]
    ) -> Any:
        """Send one HTTP request for the call of yfinance under way; for the session."""
        assert self._exchange is not None
        return self._exchange.send(perform, method, url, options)


# ------------------------------------------------------------------------------------- sessions


class _RedirectedSession(requests.Session):
    """Asks one address for whatever is asked of Yahoo; follows no redirect away from it.

    A subclass of requests' session, because yfinance takes no other.
    """

    def __init__(self, line: YahooLine, transport: Transport, base_url: str) -> None:
        super().__init__()
        self._line = line
        self._transport = transport
        self._base_url = base_url.rstrip("/")

    def request(self, method: Any, url: Any, *_: Any, **options: Any) -> requests.Response:
        return self._line.send(self._redirected, method, url, options)  # type: ignore[no-any-return]

    def _redirected(self, method: str, url: str, **options: Any) -> requests.Response:
        return self._transport.request(
            method,
            self._base_url + urlsplit(url).path,
            deadline=Deadline(sum(options["timeout"])),
            params=options.get("params"),
            data=options.get("data"),
        )

    def close(self) -> None:
        self._transport.close()
        super().close()


def _browser_session(line: YahooLine) -> Any:
    """Return the session that the real Yahoo wants: curl_cffi with a browser's TLS fingerprint.

    Its time-outs hold for a whole answer. yfinance depends on curl_cffi.
    """
    import curl_cffi.requests

    base: Any = curl_cffi.requests.Session

    class BrowserSession(base):  # type: ignore[misc]
        def request(self, method: str, url: str, **options: Any) -> Any:
            return line.send(super().request, method, url, options)

    return BrowserSession(impersonate="chrome")


def _private_data(session: Any) -> Any:
    """Return a `yfinance.data.YfData` of our own.

    ``YfData(session)`` would hand our session to every other user in this process. The cache of
    past ranges is bypassed, and the cookie lives in memory, for as long as yfinance trusts it.
    """
    from yfinance.data import YfData

    data = type.__call__(YfData, session)
    data.cache_get = data.get

    def keep_cookie() -> bool:
        data._cookie = True
        return True

    data._save_cookie_curlCffi = keep_cookie
    data._load_cookie_curlCffi = lambda: False
    return data


# ---------------------------------------------------------------------------------------- quiet


class _Chatter(logging.Filter):
    """Turns yfinance's log lines into debug lines of ours while we are the ones calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.calling = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        if not getattr(self.calling, "now", False):
            return True
        log.debug("yfinance: %s", record.getMessage())
        return False


_chatter: Final = _Chatter()


@contextmanager
def _quiet_yfinance() -> Iterator[None]:
    """Keep yfinance's log ("possibly delisted") and deprecation warnings from our users.

    By filters for its modules, and not with `warnings.catch_warnings`, which swaps the filters of
    the whole process and loses some when threads overlap.
    """
    import yfinance  # noqa: F401  # it puts a filter of its own in front

    logger = logging.getLogger("yfinance")
    if _chatter not in logger.filters:
        logger.addFilter(_chatter)
    for category in (DeprecationWarning, FutureWarning, RuntimeWarning):
        warnings.filterwarnings("ignore", category=category, module=r"yfinance(\.|$)")
    _chatter.calling.now = True
    try:
        yield
    finally:
        _chatter.calling.now = False
