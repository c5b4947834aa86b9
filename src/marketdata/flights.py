"""Single flight inside one process: one thread asks for a thing, the others wait for its outcome.

A thing is whatever can be a key: a stored series, a symbol's splits, a latest quote. For stored
series the cross-process part is a row in the store (`protocols.FlightLog`); this layer in front of
it keeps fifty threads of one process from polling the store fifty times.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from marketdata.clock import Deadline
from marketdata.errors import MarketDataError
from marketdata.protocols import FlightOutcome
from marketdata.spans import Span


@dataclass(slots=True)
class LocalFlight:
    """One thread's claim on one thing, for a span of time where that is part of the question."""

    span: Span | None = None
    landed: bool = False
    error: MarketDataError | None = None

    def outcome(self) -> FlightOutcome:
        return FlightOutcome(self.error, self.span)


class LocalFlights[Key: Hashable]:
    """Claims of this process's threads. Never blocks while holding a claim: a thread takes what
    is free, fetches that, lands, and only then waits for the others; so there is no deadlock."""

    def __init__(self) -> None:
        # One condition for all: a cycle of the aggregator boards ten thousand flights a minute.
        self._changed = threading.Condition(threading.Lock())
        self._flying: dict[Key, LocalFlight] = {}

    def board(
        self, keys: Iterable[Key], span: Span | None = None
    ) -> tuple[dict[Key, LocalFlight], dict[Key, LocalFlight]]:
        """Return the flights this thread leads and those of other threads, by key."""
        led: dict[Key, LocalFlight] = {}
        others: dict[Key, LocalFlight] = {}
        with self._changed:
            for key in keys:
                flying = self._flying.get(key)
                if flying is None:
                    led[key] = self._flying[key] = LocalFlight(span)
                else:
                    others[key] = flying
        return led, others

    def land(self, led: dict[Key, LocalFlight], error: MarketDataError | None = None) -> None:
        """End these flights and wake those who wait. Idempotent."""
        with self._changed:
            for key, flight in led.items():
                if self._flying.get(key) is flight:
                    del self._flying[key]
                if not flight.landed:
                    flight.error, flight.landed = error, True
            self._changed.notify_all()

    def wait(self, flight: LocalFlight, deadline: Deadline) -> FlightOutcome | None:
        """Return the flight's outcome, or None when the deadline comes first."""
        remaining = deadline.remaining()
        with self._changed:
            timeout = None if remaining == float("inf") else remaining
            landed = self._changed.wait_for(lambda: flight.landed, timeout)
        return flight.outcome() if landed else None


def is_private(error: MarketDataError, deadline: Deadline) -> bool:
    """Whether an error concerns its caller alone, so that those who waited start anew: its own
    deadline cut it short."""
    facts = error.facts
    return deadline.expired or bool(facts.get("deadline") or facts.get("cut_by_deadline"))
