"""Requests to one of Alpaca's hosts through alpaca-py; the seam where foreign errors end.

alpaca-py signs and addresses the requests. Deadlines, retry and errors are ours: it has no
time-outs, sleeps a fixed 3 s between retries whatever the answer says, and its errors carry the
request with its keys.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from requests.exceptions import RequestException

from marketdata.brokers.alpaca_wire import error_of_status, retry_after, words_of
from marketdata.brokers.clock_watch import ClockWatch
from marketdata.brokers.resilience import Caller
from marketdata.brokers.transport import BoundSession, Transport, translate
from marketdata.clock import Deadline, SystemClock
from marketdata.errors import BrokerResponseError, MarketDataError
from marketdata.types import SECOND


class Keys:
    """Key id and secret, kept out of every repr."""

    __slots__ = ("key_id", "secret_key")

    def __init__(self, key_id: str, secret_key: str) -> None:
        self.key_id = key_id
        self.secret_key = secret_key


class Endpoint:
    """One of Alpaca's hosts.

    Attributes
    ----------
    url : str
        Base URL, without the API version.
    requests_left : int or None
        ``X-RateLimit-Remaining`` of the last answer.
    """

    def __init__(
        self,
        url: str,
        keys: Keys,
        transport: Transport,
        caller: Caller,
        watch: ClockWatch | None = None,
    ) -> None:
        self.url = url
        self.caller = caller
        self.requests_left: int | None = None
        self._keys = keys
        self._transport = transport
        self._watch = watch
        self._client: Any = None

    def get(
        self,
        path: str,
        params: Mapping[str, str | int] | None,
        deadline: Deadline,
        *,
        api_version: str = "v2",
    ) -> Any:
        """Return the JSON answer to one GET; raises `MarketDataError` for everything else."""
        return self.caller.call(lambda: self._send(path, params, api_version, deadline), deadline)

    def _send(
        self, path: str, params: Mapping[str, str | int] | None, version: str, deadline: Deadline
    ) -> Any:
        from alpaca.common.exceptions import APIError

        session = self._transport.within(deadline)
        client = copy.copy(self._sdk())
        client._session = session
        asked_us = 0 if self._watch is None else self._watch.now_us()
        failure: Exception | None = None
        answer = None
        try:
            answer = client.get(path, dict(params or {}), api_version=version)
        except (APIError, RequestException, ValueError, RecursionError) as error:
            failure = error
        if self._watch is not None and session.response is not None:
            self._watch.note(asked_us, session.response.headers)
        # Raised out here, so that no error carries the request and its keys as its context.
        problem = self._problem(session, failure, deadline)
        if problem is not None:
            raise problem
        return answer

    def _problem(
        self, session: BoundSession, failure: Exception | None, deadline: Deadline
    ) -> MarketDataError | None:
        response = session.response
        if response is not None:
            now_seconds = SystemClock().now_us() / SECOND
            self._learn(response.headers)
            if response.status_code != 200:
                secrets = (self._keys.secret_key, self._keys.key_id)
                words = words_of(response.text[:4000], secrets)
                wait = retry_after(response.headers, now_seconds)
                return error_of_status(response.status_code, words, wait)
        if isinstance(failure, RequestException):
            return translate(failure, "alpaca", deadline)
        if failure is not None:
            return BrokerResponseError("alpaca: the answer cannot be read", transient=True)
        return None

    def _learn(self, headers: Mapping[str, str]) -> None:
        limit, left = headers.get("X-RateLimit-Limit"), headers.get("X-RateLimit-Remaining")
        if left is not None and left.isdigit():
            self.requests_left = int(left)
        if limit is not None and limit.isdigit():
            self.caller.gate.learn(int(limit), self.requests_left)

    def _sdk(self) -> Any:
        """Return alpaca-py's client, imported and made on first use, its own retry off."""
        if self._client is None:  # made twice at worst: cheaper than a lock that a fork may hold
            from alpaca.common.rest import RESTClient

            client = RESTClient(self.url, self._keys.key_id, self._keys.secret_key, raw_data=True)
            client._retry, client._retry_codes = 0, []
            self._client = client
        return self._client
