"""The newest bar, trade, quote or snapshot: kept for a second, asked once for all who wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

from marketdata.clock import Clock, Deadline, from_micros, now
from marketdata.errors import (
    BrokerTimeoutError,
    DataUnavailableError,
    MarketDataError,
    as_other_waiter,
)
from marketdata.flights import LocalFlight, LocalFlights, is_private
from marketdata.protocols import Broker

if TYPE_CHECKING:
    import pandas as pd

MEMORY: Final = 1.0
"""Seconds an answer serves further callers."""


@dataclass(frozen=True, slots=True)
class _Latest:
    """What latest bars, trades and quotes have in common."""

    symbol: str
    timestamp: datetime | None
    """Aware, UTC."""
    age: timedelta | None
    """Market time between `timestamp` and the answer."""


@dataclass(frozen=True, slots=True)
class Bar(_Latest):
    """A minute bar; it may still be forming. Prices in dollars, NaN where the source has none."""

    open: float
    high: float
    low: float
    close: float
    volume: float
    vwap: float
    trade_count: float


@dataclass(frozen=True, slots=True)
class Trade(_Latest):
    """A trade: price in dollars, size in shares."""

    price: float
    size: float
    exchange: str | None = None
    conditions: tuple[str, ...] = ()
    id: int | None = None
    tape: str | None = None


@dataclass(frozen=True, slots=True)
class Quote(_Latest):
    """A quote: prices in dollars, sizes as the broker counts them (Alpaca: round lots or shares)."""

    bid_price: float
    bid_size: float
    ask_price: float
    ask_size: float
    bid_exchange: str | None = None
    ask_exchange: str | None = None
    conditions: tuple[str, ...] = ()
    tape: str | None = None

    @property
    def midpoint(self) -> float:
        """Halfway between bid and ask, in dollars; NaN where either is."""
        return (self.bid_price + self.ask_price) / 2


_CLASSES: Final[dict[str, type[_Latest]]] = {"bar": Bar, "trade": Trade, "quote": Quote}


Wanted = tuple[str, str, str]
"""Kind, feed, symbol."""


class LatestReader:
    """Answers ``get_latest_*`` and ``get_snapshots``. Nothing here is stored."""

    most_remembered: ClassVar[int] = 50_000

    def __init__(self, broker: Broker, clock: Clock) -> None:
        self._broker = broker
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[Wanted, tuple[float, Mapping[str, Any] | None]] = {}
        self._flights = LocalFlights[Wanted]()

    def get(
        self, kind: str, symbols: Sequence[str], single: bool, feed: str, deadline: Deadline
    ) -> object:
        """Return one frozen object for a single symbol, else a frame by symbol.

        Raises
        ------
        DataUnavailableError
            The broker answered, and has none of the single symbol; a retry does not help now.
        BrokerError
            Ours, or that of the caller whose request we waited for. `BrokerTimeoutError` where
            that one did not end within our deadline; a retry helps.
        """
        found = self.find(kind, symbols, feed, deadline)
        if single and symbols[0] not in found:
            raise self.none_of(kind, symbols[0])
        return self.shaped(kind, symbols, single, found)

    def none_of(self, kind: str, symbol: str) -> DataUnavailableError:
        """Return the error for a symbol of which the broker's answer has nothing."""
        return DataUnavailableError(
            f"{self._broker.provider} has no latest {kind} of {symbol}",
            cure="check the symbol; a thinly traded one may have none today",
        )

    def shaped(
        self,
        kind: str,
        symbols: Sequence[str],
        single: bool,
        found: Mapping[str, Mapping[str, Any]],
    ) -> object:
        """Return what was found as one frozen object, or as a frame by symbol."""
        if single:
            return self._record(kind, symbols[0], found[symbols[0]])
        return self._frame(kind, symbols, found)

    def find(
        self, kind: str, symbols: Sequence[str], feed: str, deadline: Deadline
    ) -> dict[str, Mapping[str, Any]]:
        """Return what is a second old at most; one thread asks for a symbol, the others wait. A
        symbol that the broker has none of is absent."""
        found: dict[str, Mapping[str, Any]] = {}
        wanted = self._remembered([(kind, feed, s) for s in symbols], found)
        while wanted:
            led, others = self._flights.board(wanted)
            if led:
                self._lead(kind, feed, led, found, deadline)
            for flight in {id(f): f for f in others.values()}.values():
                self._wait(kind, flight, deadline)
            wanted = self._remembered(list(others), found)
        return found

    def _remembered(
        self, wanted: Sequence[Wanted], found: dict[str, Mapping[str, Any]]
    ) -> list[Wanted]:
        """Put what is fresh into `found`; return the rest."""
        rest: list[Wanted] = []
        with self._lock:
            for at in wanted:
                until, raw = self._known.get(at, (0.0, None))
                if until <= time.monotonic():
                    rest.append(at)
                elif raw is not None:
                    found[at[2]] = raw
        return rest

    def _lead(
        self,
        kind: str,
        feed: str,
        led: dict[Wanted, LocalFlight],
        found: dict[str, Mapping[str, Any]],
        deadline: Deadline,
    ) -> None:
        """Ask for what is ours, and give the answer or the error to all who wait for it."""
        shared: MarketDataError | None = None
        try:
            # Somebody may have landed between our look and our claim.
            symbols = [at[2] for at in self._remembered(list(led), found)]
            if symbols:
                answer = self._broker.latest(kind, symbols, feed, deadline)
                self._remember(kind, feed, symbols, answer)
                found.update(answer)
        except MarketDataError as error:
            shared = None if is_private(error, deadline) else error
            raise
        finally:
            self._flights.land(led, shared)

    def _remember(
        self, kind: str, feed: str, symbols: Sequence[str], answer: Mapping[str, Mapping[str, Any]]
    ) -> None:
        until = time.monotonic() + MEMORY
        with self._lock:
            if len(self._known) > self.most_remembered:
                self._known.clear()
            for symbol in symbols:
                self._known[kind, feed, symbol] = (until, answer.get(symbol))

    def _wait(self, kind: str, flight: LocalFlight, deadline: Deadline) -> None:
        outcome = self._flights.wait(flight, deadline)
        if outcome is None:
            raise BrokerTimeoutError(
                f"another caller's request for the latest {kind} did not end within "
                f"{deadline.seconds or 0:g} s",
                cure="call again, or give a longer timeout",
                deadline=True,
            )
        if outcome.error is not None:
            raise as_other_waiter(outcome.error)

    def _record(self, kind: str, symbol: str, raw: Mapping[str, Any]) -> _Latest:
        cls = _CLASSES[kind]
        names = {f.name for f in fields(cls)}
        values = {k: v for k, v in raw.items() if k in names and k != "timestamp"}
        if values.get("conditions") is not None:
            values["conditions"] = tuple(values["conditions"])
        moment = None if raw.get("timestamp") is None else from_micros(raw["timestamp"])
        age = None if moment is None else now(self._clock) - moment
        return cls(symbol=symbol, timestamp=moment, age=age, **values)

    def _frame(
        self, kind: str, symbols: Sequence[str], found: Mapping[str, Mapping[str, Any]]
    ) -> pd.DataFrame:
        import pandas as pd

        rows = [_flat(kind, found.get(s, {})) for s in symbols]
        frame = pd.DataFrame(rows, index=pd.Index(list(symbols), dtype="str", name="symbol"))
        for name in _columns(kind):
            if name not in frame:
                frame[name] = pd.NaT if name.endswith("timestamp") else float("nan")
        for name in [c for c in frame.columns if c.endswith("timestamp")]:
            stamps = pd.to_datetime(frame[name], unit="us", utc=True)
            frame[name] = stamps.astype("datetime64[us, UTC]")
        frame = frame[_columns(kind)]
        if kind != "snapshot":
            frame["age"] = pd.Timestamp(now(self._clock)) - frame["timestamp"]
        return frame


def relabelled(found: object, names: Sequence[str], today: Sequence[str]) -> object:
    """Return an answer about today's symbols under the names that were asked for."""
    if isinstance(found, _Latest):
        return replace(found, symbol=names[0])
    frame = cast("pd.DataFrame", found).loc[list(today)]
    frame.index = frame.index.__class__(list(names), dtype="str", name="symbol")
    return frame


_BAR_FIELDS: Final = ["open", "high", "low", "close", "volume", "vwap", "trade_count"]
_FRAME_COLUMNS: Final = {
    "bar": ["timestamp", *_BAR_FIELDS],
    "trade": ["timestamp", "price", "size"],
    "quote": ["timestamp", "bid_price", "bid_size", "ask_price", "ask_size"],
}
_PARTS: Final = {
    "latest_trade": "trade",
    "latest_quote": "quote",
    "minute_bar": "bar",
    "daily_bar": "bar",
    "previous_daily_bar": "bar",
}
_PREFIX: Final = {
    "latest_trade": "trade",
    "latest_quote": "quote",
    "minute_bar": "minute",
    "daily_bar": "daily",
    "previous_daily_bar": "previous_daily",
}


def _columns(kind: str) -> list[str]:
    if kind != "snapshot":
        return _FRAME_COLUMNS[kind]
    return [f"{_PREFIX[p]}_{c}" for p, inner in _PARTS.items() for c in _FRAME_COLUMNS[inner]]


def _flat(kind: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    if kind != "snapshot":
        return {name: raw.get(name) for name in _FRAME_COLUMNS[kind]}
    flat: dict[str, Any] = {}
    for part, inner in _PARTS.items():
        values = raw.get(part) or {}
        for name in _FRAME_COLUMNS[inner]:
            flat[f"{_PREFIX[part]}_{name}"] = values.get(name)
    return flat
