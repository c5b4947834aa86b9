"""The one seam where Yahoo's and yfinance's failures become our errors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

import requests

from marketdata.brokers.transport import translate as translate_requests
from marketdata.clock import Deadline
from marketdata.errors import (
    AuthenticationError,
    BrokerError,
    BrokerResponseError,
    BrokerTimeoutError,
    BrokerUnavailableError,
    RateLimitError,
)

RATE_LIMIT_PAUSE: Final = 60.0
"""Seconds of silence after a 429 that names none; Yahoo's do not."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Yahoo's own words for why there is no chart: ``chart.error`` of its JSON body."""

    status: int
    code: str
    description: str


def chart_error(body: bytes) -> tuple[str, str] | None:
    """Return code and description of ``chart.error``, or None where the body holds none."""
    try:
        error = json.loads(body)["chart"]["error"]
        return (str(error["code"]), str(error.get("description") or "")) if error else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def error_of_status(status: int, response: Any) -> BrokerError:
    if status == 429:
        pause = _seconds(response.headers.get("Retry-After"))
        return RateLimitError(
            "Yahoo answers 429: too many requests",
            cure=f"try again in {pause:.0f} s",
            retry_after=pause,
            status=status,
        )
    if status in (401, 403):
        return AuthenticationError(
            f"Yahoo answers {status} to requests from here",
            cure="update yfinance, or try from another network",
            status=status,
        )
    if status >= 500:
        return BrokerUnavailableError(f"Yahoo answers {status}", status=status)
    return BrokerResponseError(f"Yahoo answers {status} without a reason", status=status)


def _seconds(text: str | None) -> float:
    try:
        return max(1.0, float(text)) if text else RATE_LIMIT_PAUSE
    except ValueError:
        return RATE_LIMIT_PAUSE


_CURL: Final[tuple[tuple[str, type[BrokerError], bool], ...]] = (
    ("Timeout", BrokerTimeoutError, True),
    ("ChunkedEncodingError", BrokerResponseError, True),
    ("ContentDecodingError", BrokerResponseError, True),
    ("IncompleteRead", BrokerResponseError, True),
    ("InvalidJSONError", BrokerResponseError, True),
    ("TooManyRedirects", BrokerResponseError, False),
    ("CurlError", BrokerUnavailableError, True),
)
"""By the names of curl_cffi's exception classes, so that it need not be imported to know them."""
_CURL_GARBLED: Final = (18, 61)
"""libcurl's codes for a partial file and for a bad content encoding."""


def translate(error: Exception, deadline: Deadline) -> BrokerError:
    """Return the error of ours that an exception below stands for: requests', curl_cffi's,
    yfinance's or any other."""
    if isinstance(error, requests.RequestException):
        return translate_requests(error, "Yahoo", deadline)
    names = {cls.__name__ for cls in type(error).__mro__}
    cause = type(error).__name__
    if "YFRateLimitError" in names:
        return RateLimitError(
            "Yahoo answers 429: too many requests", retry_after=RATE_LIMIT_PAUSE, cause=cause
        )
    if getattr(error, "code", None) in _CURL_GARBLED:
        return BrokerResponseError(f"Yahoo: {error}", transient=True, cause=cause)
    for name, kind, transient in _CURL:
        if name in names:
            found = kind(f"Yahoo: {error}", transient=transient, cause=cause)
            if name == "Timeout" and deadline.expired:
                found.facts["cut_by_deadline"] = True
            return found
    return BrokerResponseError(f"yfinance failed: {cause}: {str(error)[:200]}", cause=cause)


def out_of_time(deadline: Deadline) -> BrokerTimeoutError:
    return BrokerTimeoutError(
        f"the call's {deadline.seconds or 0:g} s are over",
        cure="allow more time with timeout=",
        cut_by_deadline=True,
    )
