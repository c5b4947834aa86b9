"""The seam to redis-py: every foreign error is translated, no secret gets out."""

from __future__ import annotations

import builtins
import inspect

import pytest
import redis.exceptions

from marketdata.cache import Breaker, RedisCache
from marketdata.cache.link import FOREIGN, RedisLink, RefusedError
from marketdata.errors import CacheError, ConfigurationError

# Raised by the cluster client and by transactions, neither of which is used.
UNUSED = {
    "CrossSlotTransactionError",
    "IncorrectPolicyType",
    "InvalidPipelineStack",
    "RedisClusterException",
    "SlotNotCoveredError",
}
RAISED = [
    kind
    for _, kind in inspect.getmembers(redis.exceptions, inspect.isclass)
    if issubclass(kind, Exception) and kind.__name__ not in {*vars(builtins), *UNUSED}
]


@pytest.mark.parametrize("kind", RAISED)
def test_every_error_of_redis_py_is_foreign(kind: type[Exception]):
    assert issubclass(kind, FOREIGN)


@pytest.mark.parametrize(
    ("error", "expected", "stays_closed"),
    [
        (redis.exceptions.ConnectionError("refused"), CacheError, False),
        (redis.exceptions.TimeoutError("slow"), CacheError, False),
        (redis.exceptions.BusyLoadingError("loading"), CacheError, False),
        (redis.exceptions.AuthenticationError("who"), CacheError, False),
        (redis.exceptions.InvalidResponse("HTTP/1.1 400"), CacheError, False),
        (BrokenPipeError(), CacheError, False),
        (redis.exceptions.OutOfMemoryError("oom"), RefusedError, True),
        (redis.exceptions.ReadOnlyError("replica"), RefusedError, True),
        (redis.exceptions.NoPermissionError("acl"), RefusedError, True),
    ],
)
def test_no_answer_opens_the_breaker_and_a_refusal_does_not(
    error: Exception, expected: type[CacheError], stays_closed: bool
):
    link = RedisLink("redis://127.0.0.1:1", 0.1, Breaker())
    assert type(link._translate(error)) is expected
    assert link.breaker.is_closed() == stays_closed


def test_a_url_that_cannot_be_read_names_the_cure_and_no_secret():
    with pytest.raises(ConfigurationError, match="doctor") as caught:
        RedisCache("http://:hunter2@somewhere", 1)
    assert "hunter2" not in str(caught.value)


def test_no_secret_in_repr_error_or_log(caplog: pytest.LogCaptureFixture):
    cache = RedisCache("redis://user:hunter2@127.0.0.1:1/3", 1)
    with pytest.raises(CacheError) as caught:
        cache.info()
    said = repr(cache) + str(caught.value) + caplog.text
    assert "127.0.0.1:1/3" in repr(cache)
    assert "hunter2" not in said
