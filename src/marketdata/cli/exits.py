"""Exit codes, and which error ends with which: one table over the whole error tree.

69, 75 and 78 are ``EX_UNAVAILABLE``, ``EX_TEMPFAIL`` and ``EX_CONFIG`` of BSD's ``sysexits.h``.
"""

from __future__ import annotations

from typing import Final

from marketdata import errors

DONE: Final = 0
UNEXPECTED: Final = 1
USAGE: Final = 2
INCOMPLETE: Final = 3
"""Finished, but with gaps or failed symbols, which are listed."""
UNAVAILABLE: Final = 69
"""A server or the broker is not there; another time it may be."""
BUSY: Final = 75
CONFIGURATION: Final = 78
INTERRUPTED: Final = 130

BY_ERROR: Final[dict[type[errors.MarketDataError], int]] = {
    errors.MarketDataError: UNEXPECTED,
    errors.ConfigurationError: CONFIGURATION,
    errors.MissingDependencyError: CONFIGURATION,
    errors.RequestError: USAGE,
    errors.InvalidSymbolError: USAGE,
    errors.InvalidTimeframeError: USAGE,
    errors.InvalidRangeError: USAGE,
    errors.NaiveTimestampError: USAGE,
    errors.UnsupportedRequestError: USAGE,
    errors.UnknownSymbolError: INCOMPLETE,
    errors.DataUnavailableError: INCOMPLETE,
    errors.DataQualityError: INCOMPLETE,
    errors.BrokerError: UNAVAILABLE,
    errors.RateLimitError: BUSY,
    errors.BrokerTimeoutError: UNAVAILABLE,
    errors.BrokerUnavailableError: UNAVAILABLE,
    errors.BrokerResponseError: UNAVAILABLE,
    errors.AuthenticationError: CONFIGURATION,
    errors.StoreError: UNAVAILABLE,
    errors.StoreUnavailableError: UNAVAILABLE,
    errors.StoreReadOnlyError: UNAVAILABLE,
    errors.SchemaError: CONFIGURATION,
    errors.CacheError: UNAVAILABLE,
}
_BUSY_STATES: Final = ("53", "55")
"""SQLSTATE classes 53 (insufficient resources) and 55 (object not in prerequisite state: locks)."""


def exit_code(error: BaseException) -> int:
    """Return the exit code that `error` ends a command with."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if not isinstance(error, errors.MarketDataError):
        return UNEXPECTED
    state = error.facts.get("sqlstate")
    if isinstance(error, errors.StoreUnavailableError) and str(state)[:2] in _BUSY_STATES:
        return BUSY
    return next(BY_ERROR[c] for c in type(error).__mro__ if c in BY_ERROR)
