"""The seam to requests: every one of its errors has ours, and none carries the request."""

from __future__ import annotations

import pickle

import pytest
import requests
from requests import exceptions
from urllib3.exceptions import ReadTimeoutError

from marketdata.brokers.transport import translate
from marketdata.clock import Deadline
from marketdata.errors import (
    BrokerError,
    BrokerResponseError,
    BrokerTimeoutError,
    BrokerUnavailableError,
)

EVERY = sorted(
    (
        value
        for value in vars(exceptions).values()
        if isinstance(value, type) and issubclass(value, exceptions.RequestException)
    ),
    key=lambda kind: kind.__name__,
)
EXPECTED: dict[str, tuple[type[BrokerError], bool]] = {
    "ChunkedEncodingError": (BrokerResponseError, True),
    "ConnectTimeout": (BrokerTimeoutError, True),
    "ConnectionError": (BrokerUnavailableError, True),
    "ContentDecodingError": (BrokerResponseError, True),
    "HTTPError": (BrokerResponseError, False),
    "InvalidHeader": (BrokerResponseError, False),
    "InvalidJSONError": (BrokerResponseError, True),
    "InvalidProxyURL": (BrokerResponseError, False),
    "InvalidSchema": (BrokerResponseError, False),
    "InvalidURL": (BrokerResponseError, False),
    "JSONDecodeError": (BrokerResponseError, True),
    "MissingSchema": (BrokerResponseError, False),
    "ProxyError": (BrokerUnavailableError, True),
    "ReadTimeout": (BrokerTimeoutError, True),
    "RequestException": (BrokerResponseError, False),
    "RetryError": (BrokerUnavailableError, True),
    "SSLError": (BrokerUnavailableError, True),
    "StreamConsumedError": (BrokerResponseError, False),
    "Timeout": (BrokerTimeoutError, True),
    "TooManyRedirects": (BrokerResponseError, False),
    "URLRequired": (BrokerResponseError, False),
    "UnrewindableBodyError": (BrokerResponseError, False),
}


def made(kind: type[exceptions.RequestException]) -> exceptions.RequestException:
    request = requests.Request("GET", "https://x.test", headers={"APCA-API-SECRET-KEY": "s3cret"})
    if kind is exceptions.JSONDecodeError:
        return exceptions.JSONDecodeError("no", "{", 0)
    return kind("no", request=request.prepare())


def test_the_table_names_every_error_of_requests() -> None:
    assert {kind.__name__ for kind in EVERY} == set(EXPECTED)


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_every_error_of_requests_has_ours(kind: type[exceptions.RequestException]) -> None:
    ours = translate(made(kind), "alpaca", Deadline(9))
    assert (type(ours), ours.transient) == EXPECTED[kind.__name__]
    assert ours.facts["cause"] == kind.__name__
    assert "s3cret" not in str(ours) + repr(ours.to_record())
    assert ours.__cause__ is None
    assert str(pickle.loads(pickle.dumps(ours))) == str(ours)


def test_a_timeout_in_the_middle_of_a_body_is_a_timeout() -> None:
    inner = ReadTimeoutError(None, "/v2", "Read timed out.")  # type: ignore[arg-type]
    ours = translate(exceptions.ConnectionError(inner), "alpaca", Deadline(9))
    assert type(ours) is BrokerTimeoutError
    assert ours.transient


def test_a_timeout_of_the_callers_making_is_marked() -> None:
    assert translate(exceptions.Timeout(), "alpaca", Deadline(0)).facts["cut_by_deadline"]
    assert "cut_by_deadline" not in translate(exceptions.Timeout(), "alpaca", Deadline(9)).facts
