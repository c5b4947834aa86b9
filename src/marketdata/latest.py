"""The newest bar, trade, quote or snapshot: kept for a second, asked once for all who wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Final

from marketdata.clock import Clock, Deadline, from_micros, now
from marketdata.errors import DataUnavailableError
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
        return (self.bid_price + self.ask_price) / 2


_CLASSES: Final[dict[str, type[_Latest]]] = {"bar": Bar, "trade": Trade, "quote": Quote}


@dataclass(slots=True)
class _Flight:
    done: threading.Event = field(default_factory=threading.Event)


class LatestReader:
    """Answers ``get_latest_*`` and ``get_snapshots``. Nothing here is stored."""

    most_remembered: ClassVar[int] = 50_000

    def __init__(self, broker: Broker, clock: Clock) -> None:
        self._broker = broker
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str, str], tuple[float, Mapping[str, Any] | None]] = {}
        self._flying: dict[tuple[str, str, str], _Flight] = {}

    def get(
        self, kind: str, symbols: Sequence[str], single: bool, feed: str, deadline: Deadline
    ) -> object:
        """Return one frozen object for a single symbol, else a frame by symbol."""
        found = self._fresh(kind, symbols, feed, deadline)
        if not single:
            return self._frame(kind, symbols, found)
        raw = found.get(symbols[0])
        if raw is None:
            raise DataUnavailableError(
                f"{self._broker.provider} has no latest {kind} of {symbols[0]}",
                cure="check the symbol; a thinly traded one may have none today",
            )
        return self._record(kind, symbols[0], raw)

    def _fresh(
        self, kind: str, symbols: Sequence[str], feed: str, deadline: Deadline
    ) -> dict[str, Mapping[str, Any]]:
        found: dict[str, Mapping[str, Any]] = {}
        wanted = list(symbols)
        while wanted:
            mine: list[str] = []
            waits: list[_Flight] = []
            with self._lock:
                for symbol in wanted:
                    at = (kind, feed, symbol)
                    known = self._known.get(at)
                    if known is not None and known[0] > time.monotonic():
                        if known[1] is not None:
                            found[symbol] = known[1]
                    elif at in self._flying:
                        waits.append(self._flying[at])
                    else:
                        mine.append(symbol)
                        self._flying[at] = _Flight()
            if mine:
                found.update(self._ask(kind, mine, feed, deadline))
            for flight in waits:
                flight.done.wait(deadline.cap(60.0))
            wanted = [s for s in wanted if s not in found and s not in mine] if waits else []
            if deadline.expired:
                break
        return found

    def _ask(
        self, kind: str, symbols: Sequence[str], feed: str, deadline: Deadline
    ) -> dict[str, Mapping[str, Any]]:
        try:
            answer = self._broker.latest(kind, symbols, feed, deadline)
            until = time.monotonic() + MEMORY
            with self._lock:
                if len(self._known) > self.most_remembered:
                    self._known.clear()
                for symbol in symbols:
                    self._known[kind, feed, symbol] = (until, answer.get(symbol))
            return answer
        finally:
            with self._lock:
                for symbol in symbols:
                    self._flying.pop((kind, feed, symbol)).done.set()

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
