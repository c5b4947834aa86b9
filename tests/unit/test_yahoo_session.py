"""The seam to yfinance: every foreign exception has an error of ours, and no shared state moves."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings

import curl_cffi.requests.exceptions
import pytest
import requests.exceptions
import yfinance.exceptions
from yfinance.config import YfConfig
from yfinance.data import YfData
from yfinance.scrapers.history import PriceHistory

from marketdata.brokers.yahoo_errors import translate
from marketdata.brokers.yahoo_session import _private_data, _quiet_yfinance
from marketdata.clock import Deadline
from marketdata.errors import (
    BrokerError,
    BrokerResponseError,
    BrokerTimeoutError,
    BrokerUnavailableError,
    RateLimitError,
)

_FOREIGN = [
    kind
    for module in (requests.exceptions, curl_cffi.requests.exceptions, yfinance.exceptions)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, Warning)
]


def _made(kind: type[Exception]) -> Exception:
    error = kind.__new__(kind)
    Exception.__init__(error, "words")
    return error


@pytest.mark.parametrize("kind", _FOREIGN, ids=lambda k: f"{k.__module__}.{k.__name__}")
def test_every_exception_below_has_an_error_of_ours(kind: type[Exception]) -> None:
    found = translate(_made(kind), Deadline(10))
    assert isinstance(found, BrokerError)
    assert found.facts


@pytest.mark.parametrize(
    ("error", "kind", "transient"),
    [
        (requests.exceptions.ReadTimeout(), BrokerTimeoutError, True),
        (requests.exceptions.ConnectionError(), BrokerUnavailableError, True),
        (requests.exceptions.ChunkedEncodingError(), BrokerResponseError, True),
        (curl_cffi.requests.exceptions.Timeout("t"), BrokerTimeoutError, True),
        (curl_cffi.requests.exceptions.ConnectTimeout("t"), BrokerTimeoutError, True),
        (curl_cffi.requests.exceptions.DNSError("d"), BrokerUnavailableError, True),
        (curl_cffi.requests.exceptions.IncompleteRead("i"), BrokerResponseError, True),
        (yfinance.exceptions.YFRateLimitError(), RateLimitError, True),
        (KeyError("currency"), BrokerResponseError, False),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, Exception) else None,
)
def test_what_helps_on_retry_is_transient(
    error: Exception, kind: type[BrokerError], transient: bool
) -> None:
    found = translate(error, Deadline(10))
    assert type(found) is kind
    assert found.transient is transient


def test_yfinance_still_has_the_parts_that_are_replaced() -> None:
    """Renamed in a later yfinance, they would be replaced in vain."""
    for name in ("_save_cookie_curlCffi", "_load_cookie_curlCffi", "cache_get", "get"):
        assert callable(getattr(YfData, name))
    assert YfData.__init__.__code__.co_varnames[:2] == ("self", "session")
    assert PriceHistory.__init__.__code__.co_varnames[:5] == (
        "self",
        "data",
        "ticker",
        "tz",
        "session",
    )


def test_the_data_of_others_keeps_its_session() -> None:
    theirs, ours = requests.Session(), requests.Session()
    shared = YfData(session=theirs)
    private = _private_data(ours)
    assert private is not shared
    assert YfData()._session is theirs
    assert private._session is ours
    assert private.cache_get == private.get
    assert YfConfig.debug.hide_exceptions is True


def test_yfinance_is_quiet_only_while_we_call_it(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("yfinance")
    with caplog.at_level(logging.WARNING):
        with _quiet_yfinance():
            logger.error("$AAPL: possibly delisted")
        logger.error("said to others")
    assert [r.getMessage() for r in caplog.records] == ["said to others"]


def test_deprecations_inside_yfinance_stay_inside() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with _quiet_yfinance():
            for module in ("yfinance.utils", "elsewhere"):
                warnings.warn_explicit("old", DeprecationWarning, "f.py", 1, module=module)
    assert len(seen) == 1


def test_yfinance_is_not_imported_before_it_is_needed() -> None:
    code = (
        "import sys; from marketdata.brokers.yahoo import YahooBroker; "
        "from marketdata.clock import SystemClock; YahooBroker(clock=SystemClock()); "
        "print(sorted({'yfinance', 'curl_cffi'} & set(sys.modules)))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    )
    assert done.stdout.strip() == "[]"
