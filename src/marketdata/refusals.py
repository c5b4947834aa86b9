"""Why a broker of a chain cannot supply something: in words, and remembered for a moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from marketdata.answers import Answer
from marketdata.errors import (
    BrokerError,
    BrokerResponseError,
    DataQualityError,
    DataUnavailableError,
    MarketDataError,
    RateLimitError,
    error_from_record,
)
from marketdata.origin import shortened
from marketdata.queries import BarsQuery

if TYPE_CHECKING:
    from marketdata.links import Link

DOWN_MEMORY: Final = 15.0
"""Seconds for which a broker that gave no answer counts as down."""
REFUSAL_MEMORY: Final = 60.0
"""Seconds for which a refused window of a symbol is not asked again."""
_MOST_REMEMBERED: Final = 50_000

CANNOT_SUPPLY: Final = (BrokerError, DataUnavailableError, DataQualityError)
"""Errors of one broker that another one may make good. Those of the call and of the store stay."""

Reasons = dict[str, list[tuple["Link", MarketDataError | None]]]
"""By symbol, why each broker asked so far cannot supply it; None: it does not know it."""
_Refusal = tuple[str, str, str, str, object]


class Health:
    """What is remembered of one broker, in this process. Thread-safe."""

    def __init__(self) -> None:
        self.down_until = 0.0
        """On `time.monotonic`."""
        self._error: MarketDataError | None = None
        self._refused: dict[_Refusal, tuple[float, MarketDataError]] = {}
        self._lock = threading.Lock()

    def note(self, query: BarsQuery, answer: Answer) -> None:
        """Remember what the errors of an answer say of its broker."""
        now = time.monotonic()
        with self._lock:
            if len(self._refused) > _MOST_REMEMBERED:
                self._refused.clear()
            for symbol, error in answer.failed.items():
                if says_it_is_down(error):
                    if answer.trace.pages:
                        continue
                    if now >= self.down_until or error is not self._error:
                        self.down_until, self._error = now + DOWN_MEMORY, error
                elif not error.transient:
                    self._refused[_window(query, symbol)] = (now + REFUSAL_MEMORY, error)
            if answer.trace.pages:
                self.down_until, self._error = 0.0, None

    def known_down(self) -> MarketDataError | None:
        """Return the error of a broker that gave no answer a moment ago."""
        return self._error if self.down_until > time.monotonic() else None

    def refusals(self, query: BarsQuery, symbols: Sequence[str]) -> dict[str, MarketDataError]:
        """Return those of `symbols` whose window was refused a moment ago."""
        known = self._refused
        if not known:
            return {}
        now = time.monotonic()
        found = {symbol: known.get(_window(query, symbol)) for symbol in symbols}
        return {s: held[1] for s, held in found.items() if held is not None and held[0] > now}


def _window(query: BarsQuery, symbol: str) -> _Refusal:
    # Without its end: that of most windows is now.
    window = query.window
    return query.feed, symbol, query.timeframe.value, query.session, (window.start, window.limit)


def says_it_is_down(error: MarketDataError) -> bool:
    """Whether an error tells that a broker answers nobody now."""
    return (
        isinstance(error, BrokerError)
        and error.transient
        and not isinstance(error, RateLimitError | BrokerResponseError)
    )


def blamed_by(error: MarketDataError, symbols: Sequence[str]) -> list[str]:
    """Return those of `symbols` that an error says it is about; none where it does not say, or
    says all."""
    named = error.facts.get("symbols") or error.facts.get("unreadable")
    blamed = [s for s in symbols if s in named] if isinstance(named, list) else []
    return blamed if len(blamed) < len(symbols) else []


def kind_of(error: MarketDataError | None) -> str:
    """Return one word for a reason."""
    return "unknown" if error is None else type(error).__name__


def told_by(link: Link, error: MarketDataError | None) -> str:
    """Return a reason with the broker that gave it."""
    if error is None:
        return f"{link.provider} does not know it"
    return f"{link.provider}: {error.message}"


def together(symbols: Sequence[str], why: Reasons) -> MarketDataError:
    """Return one error for symbols that no broker can supply, of the first broker's class."""
    reasons = why[symbols[0]]
    errors = [error for _, error in reasons if error is not None]
    first = errors[0]
    promising = next((error for error in errors if error.transient), first)
    told = error_from_record(first.to_record())
    told.message = "; ".join(told_by(link, error) for link, error in reasons)
    told.args = (told.message,)
    told.asked = first.asked or shortened(symbols)
    told.cure = promising.cure
    told.transient = any(e.transient for s in symbols for _, e in why[s] if e is not None)
    told.facts["brokers"] = [link.provider for link, _ in reasons]
    told.facts["symbols"] = list(symbols)
    return told
