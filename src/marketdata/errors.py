"""Every error this library raises, in one tree.

::

    MarketDataError
    ├── ConfigurationError              settings, schema or environment need a hand
    │   └── MissingDependencyError      an optional extra is not installed
    ├── RequestError                    the call itself cannot be answered
    │   ├── InvalidSymbolError
    │   ├── InvalidTimeframeError
    │   ├── InvalidRangeError
    │   │   └── NaiveTimestampError
    │   └── UnsupportedRequestError     a timeframe that cannot be made of what there is
    ├── UnknownSymbolError              the broker's assets endpoint does not know it
    ├── DataUnavailableError            not entitled, too old, offline gap
    ├── DataQualityError                what came back fails the quality gates as a whole
    ├── BrokerError
    │   ├── RateLimitError              transient
    │   ├── BrokerTimeoutError          transient
    │   ├── BrokerUnavailableError      transient
    │   ├── BrokerResponseError         transient where the body was cut or garbled
    │   └── AuthenticationError
    ├── StoreError
    │   ├── StoreUnavailableError       transient
    │   ├── StoreReadOnlyError
    │   └── SchemaError                 missing, newer or changed schema
    └── CacheError                      never raised by a read

Each error knows whether trying the same call again can help (``transient``), what was asked
(``asked``) and what to do about it (``cure``); ``facts`` holds further numbers and strings.
Errors are picklable, so that they survive process pools and flights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

Fact = str | int | float | bool | None | list[str]


class MarketDataError(Exception):
    """Base class of every error raised by marketdata.

    Parameters
    ----------
    message : str
        What happened, as one sentence.
    asked : str, optional
        What was asked for, for example ``"AAPL 1min 2024-01-02 to 2024-01-03"``.
    cure : str, optional
        What the caller can do about it.
    transient : bool, optional
        Whether repeating the same call can help; the class decides by default.
    **facts
        JSON-representable details (``retry_after`` in seconds, ``symbols``, ``status``, ...).
    """

    transient: bool = False
    default_cure: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        asked: str | None = None,
        cure: str | None = None,
        transient: bool | None = None,
        **facts: Fact,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.asked = asked
        self.cure = cure if cure is not None else self.default_cure
        self.facts: dict[str, Fact] = facts
        if transient is not None:
            self.transient = transient

    def __str__(self) -> str:
        parts = [self.message]
        if self.asked:
            parts.append(f"(asked: {self.asked})")
        if self.cure:
            parts.append(f"-> {self.cure}")
        return " ".join(parts)

    def to_record(self) -> dict[str, object]:
        """Return the error as JSON-representable data; `error_from_record` restores it."""
        return {
            "type": type(self).__name__,
            "message": self.message,
            "asked": self.asked,
            "cure": self.cure,
            "transient": self.transient,
            "facts": self.facts,
        }

    @classmethod
    def _restore(cls, record: Mapping[str, object]) -> Self:
        error = cls.__new__(cls)
        MarketDataError.__init__(
            error,
            str(record.get("message", "")),
            asked=_optional_text(record.get("asked")),
            cure=_optional_text(record.get("cure")),
            transient=bool(record.get("transient")),
        )
        facts = record.get("facts")
        if isinstance(facts, Mapping):
            error.facts = dict(facts)
        return error


def _optional_text(value: object) -> str | None:
    return None if value is None else str(value)


class ConfigurationError(MarketDataError):
    """A setting, a key or the environment is wrong; a retry does not help."""

    default_cure = "run: marketdata doctor"


class MissingDependencyError(ConfigurationError):
    """An optional extra is not installed; the message names its pip line."""

    default_cure = "install the extra with pip, for example: pip install 'marketdata[all]'"


class RequestError(MarketDataError, ValueError):
    """The call itself cannot be answered as written; a retry does not help."""

    default_cure = "correct the call; its parameters are described in help(marketdata.get_bars)"


class InvalidSymbolError(RequestError):
    """Not a symbol this library can ask for."""

    default_cure = "use the exchange's symbol of a US stock or ETF, such as AAPL or BRK.B"


class InvalidTimeframeError(RequestError):
    """Not a timeframe, or an ambiguous one such as ``1M``."""

    default_cure = "use one of: 1min 5min 15min 30min 1hour 4hour 1day 1week 1month"


class InvalidRangeError(RequestError):
    """Reversed, contradictory or unreadable start, end, period or limit."""

    default_cure = "give start before end, or a period, or a limit; end is exclusive"


class NaiveTimestampError(InvalidRangeError):
    """A datetime without time zone; the message shows the corrected spelling."""

    default_cure = "give the datetime a time zone"


class UnsupportedRequestError(RequestError):
    """Bars of a timeframe that cannot be made of those there are."""

    default_cure = "ask for a timeframe that is a multiple of the one there is"


class UnknownSymbolError(MarketDataError):
    """The broker's assets endpoint says these symbols do not exist.

    ``facts["symbols"]`` lists all of them.
    """

    default_cure = "correct the symbol: a company that was renamed has its newest symbol"


class DataUnavailableError(MarketDataError):
    """The data exists nowhere this call may look: not entitled, too old, an offline gap."""

    default_cure = (
        "ask for another span, timeframe or feed; marketdata doctor shows what the broker grants"
    )


class DataQualityError(MarketDataError):
    """An answer fails the quality gates as a whole."""

    default_cure = "nothing of it was stored; report it to the broker"


class BrokerError(MarketDataError):
    """The broker failed to answer."""

    default_cure = "run: marketdata doctor"


class RateLimitError(BrokerError):
    """The request budget is spent; ``facts["retry_after"]`` says for how many seconds."""

    transient = True
    default_cure = "call again in a minute, or allow more time with timeout="


class BrokerTimeoutError(BrokerError):
    """The broker did not answer in time; what its finished pages proved is kept."""

    transient = True
    default_cure = "call again to go on where it stopped, or allow more time with timeout="


class BrokerUnavailableError(BrokerError):
    """No connection to the broker, or it answers 5xx."""

    transient = True
    default_cure = "call again later; run: marketdata doctor"


class AuthenticationError(BrokerError):
    """Missing or refused credentials."""

    default_cure = "check the broker's keys; run: marketdata doctor"


class BrokerResponseError(BrokerError):
    """The broker's answer cannot be understood or contradicts its own protocol."""

    default_cure = (
        "call again where error.transient is true; else check the broker's URL, and report it"
    )


class StoreError(MarketDataError):
    """PostgreSQL refused or failed."""

    default_cure = "run: marketdata doctor"


class StoreUnavailableError(StoreError):
    """PostgreSQL cannot be reached or has just gone away; a retry can help."""

    transient = True
    default_cure = "check that PostgreSQL is running; run: marketdata doctor"


class StoreReadOnlyError(StoreError):
    """PostgreSQL does not take writes (disk full, read-only, missing rights)."""

    default_cure = (
        "what is stored can be read, a gap needs a user and a server that take writes; "
        "run: marketdata doctor"
    )


class SchemaError(StoreError):
    """The database schema is missing, newer than this release, or was changed by hand."""

    default_cure = "run: marketdata db status"


class CacheError(MarketDataError):
    """Redis failed. Never raised by a read: a read goes on with PostgreSQL."""

    transient = True
    default_cure = "check that Redis is running; run: marketdata doctor"


def _tree(cls: type[MarketDataError]) -> dict[str, type[MarketDataError]]:
    found = {cls.__name__: cls}
    for child in cls.__subclasses__():
        found.update(_tree(child))
    return found


def error_from_record(record: Mapping[str, object]) -> MarketDataError:
    """Rebuild an error from `MarketDataError.to_record`; an unknown type becomes the base class."""
    kind = _tree(MarketDataError).get(str(record.get("type")), MarketDataError)
    return kind._restore(record)


def as_other_waiter(error: MarketDataError) -> MarketDataError:
    """Return a copy of `error` to raise in another thread, without sharing its traceback."""
    return error_from_record(error.to_record())
