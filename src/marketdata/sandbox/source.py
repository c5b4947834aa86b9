"""What a market is to the sandbox: assets, bars, corporate actions; and arithmetic on them."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any, Final, Literal, Protocol

import numpy as np

from marketdata.calendars import TradingCalendar
from marketdata.spans import Span
from marketdata.types import (
    CLOSE,
    COLUMNS,
    DAY,
    HIGH,
    HOUR,
    LOW,
    MINUTE,
    OPEN,
    TRADE_COUNT,
    VOLUME,
    VWAP,
    Bars,
    Floats,
    Int64s,
)

Basis = Literal["raw", "split"]
"""The share basis of prices: as traded, or divided by every split that came later."""

ANNOUNCED_BEFORE: Final = timedelta(days=14)
NAMESPACE: Final = uuid.UUID("5a4d0a5e-62a4-4d1c-9f0e-6d61726b6574")
SPLITS: Final = ("forward_split", "reverse_split")
MERGERS: Final = ("cash_merger", "stock_merger", "stock_and_cash_merger")
ENDS: Final = (*MERGERS, "redemption", "worthless_removal")
"""Types after which a symbol names nothing any more."""
_UNDER_BOTH: Final = (*MERGERS, "name_change")
_EPOCH: Final = date(1970, 1, 1).toordinal()


@dataclass(frozen=True, slots=True)
class Asset:
    """One entry of the assets endpoint."""

    symbol: str
    name: str
    exchange: str = "NASDAQ"
    kind: str = "EQUITY"
    """``EQUITY`` or ``ETF``, as Yahoo names them."""
    spans: tuple[tuple[date, date | None], ...] = ()
    """From when to when, exclusive, the symbol names something, where that has ever changed."""

    def active_on(self, day: date) -> bool:
        return not self.spans or any(
            first <= day and (until is None or day < until) for first, until in self.spans
        )


@dataclass(frozen=True, slots=True)
class Action:
    """A corporate action: a split (`new` shares for `old`), a cash dividend (`amount` a share, raw
    basis), or one of another `kind`.

    The market is told of it on `announced`, at the moment `listed_at` at the earliest; Alpaca
    files it under `process_date`. Kinds are Alpaca's types, and `new`, `old` and `amount` their
    rates: new shares for held ones, dollars a share.
    """

    symbol: str
    ex_date: date
    new: float = 1.0
    old: float = 1.0
    amount: float = 0.0
    process_date: date | None = None
    announced: date | None = None
    kind: str | None = None
    """None is a split where `new` differs from `old`, else a cash dividend."""
    other_symbol: str | None = None
    """New name, acquirer, or what is spun off."""
    special: bool = False
    currency: str | None = None
    listed_at: int | None = None
    """Market time, microseconds UTC, before which no answer names it."""
    given_id: str | None = None
    """None makes one of symbol, ex-date and type."""

    @property
    def type(self) -> str:
        """Alpaca's name of what it is."""
        if self.kind is not None:
            return self.kind
        if self.new == self.old:
            return "cash_dividend"
        return "forward_split" if self.new > self.old else "reverse_split"

    @property
    def id(self) -> str:
        """Alpaca's id, which a correction does not change."""
        name = f"{self.symbol} {self.ex_date} {self.type}{' special' if self.special else ''}"
        return self.given_id or str(uuid.uuid5(NAMESPACE, name))

    @property
    def ratio(self) -> float:
        """Shares after it for each one held before."""
        if self.type == "stock_dividend":
            return 1 + self.new / self.old
        return self.new / self.old if self.type in SPLITS else 1.0

    @property
    def is_split(self) -> bool:
        """Whether the number of shares changes, by a split or a stock dividend."""
        return self.ratio != 1.0

    @property
    def names(self) -> tuple[str, ...]:
        """The symbols under which Alpaca lists it."""
        both = self.type in _UNDER_BOTH and self.other_symbol
        return (self.symbol, both) if both else (self.symbol,)

    @property
    def processed(self) -> date:
        """Dividends are processed when paid, two weeks after the ex-date, all else on it."""
        if self.process_date is not None:
            return self.process_date
        paid = self.type == "cash_dividend"
        return self.ex_date + timedelta(days=14) if paid else self.ex_date

    @property
    def known_from(self) -> date:
        return self.ex_date - ANNOUNCED_BEFORE if self.announced is None else self.announced


class MarketSource(Protocol):
    """Complete bars of a market, whatever the time is: the server hides what has not happened yet."""

    @property
    def basis(self) -> Basis: ...

    def assets(self) -> Sequence[Asset]:
        """Return the assets that are listed, by symbol."""
        ...

    def asset(self, symbol: str) -> Asset | None:
        """Return one asset, also one that exists without being listed; None if unknown."""
        ...

    def minutes(
        self, symbol: str, span: Span, feed: str, *, newest_first: bool = False
    ) -> Iterator[Bars]:
        """Yield the one-minute bars labelled in `span`, a session at a time, ascending inside
        each; extended hours included."""
        ...

    def days(self, symbol: str, span: Span, feed: str) -> Bars:
        """Return the daily bars labelled in `span`."""
        ...

    def actions(self, symbol: str) -> Sequence[Action]:
        """Return the corporate actions listed under `symbol`, ascending by ex-date."""
        ...

    def symbols_with_actions(self) -> Sequence[str]: ...

    def first_day(self, symbol: str) -> date:
        """Return the date of the first daily bar there can be."""
        ...


class Ledger:
    """What is told of actions, where that differs from what happened: corrections, withdrawals."""

    def __init__(self) -> None:
        self._told: dict[str, Action | None] = {}

    def correct(self, action: Action, changes: dict[str, Any]) -> Action:
        """Tell of `action` with other values from now on, under the same id; return that."""
        found = replace(self._told.get(action.id) or action, given_id=action.id, **changes)
        self._told[action.id] = found
        return found

    def withdraw(self, action: Action) -> None:
        """Tell of `action` no longer."""
        self._told[action.id] = None

    def told(self, actions: Iterable[Action]) -> list[Action]:
        """Return `actions` as they are told of, ascending by ex-date."""
        found = (self._told.get(a.id, a) for a in actions)
        return sorted((a for a in found if a is not None), key=lambda a: (a.ex_date, a.type, a.id))


def date_ordinals(timestamps: Int64s) -> Int64s:
    """Return the exchange date of bars as days since 1970-01-01.

    New York is four or five hours behind UTC: four hours back, both midnight labels and bars
    between 04:00 and 20:00 fall on their own date, summer and winter.
    """
    return (timestamps - 4 * HOUR) // DAY


def day_number(day: date) -> int:
    """Return `day` as days since 1970-01-01."""
    return day.toordinal() - _EPOCH


def day_of(number: int) -> date:
    """Return the date that is `number` days after 1970-01-01."""
    return date.fromordinal(number + _EPOCH)


def plain_number(number: float) -> int | float:
    """Return a whole number as int, as JSON from the vendors has it."""
    return int(number) if number == int(number) else number


# ------------------------------------------------------------------------------ share basis


def basis_factors(
    timestamps: Int64s, actions: Sequence[Action], native: Basis, wanted: Basis, today: date
) -> Floats | None:
    """Return price multipliers that take bars from `native` to `wanted`; None where all are 1.

    Split basis means: divided by every split with a later ex-date; wanted, by those in effect
    `today`; native, by all that are known. Volumes take the inverse.
    """
    splits = [a for a in actions if a.is_split]
    if not splits or not len(timestamps):
        return None
    days = date_ordinals(timestamps)
    factors = np.ones(len(timestamps))
    for split in splits:
        earlier = days < day_number(split.ex_date)
        divided = native == "split"
        to_divide = wanted == "split" and split.ex_date <= today
        if divided and not to_divide:
            factors[earlier] *= split.ratio
        elif to_divide and not divided:
            factors[earlier] /= split.ratio
    return None if (factors == 1.0).all() else factors


def rebased(bars: Bars, factors: Floats | None) -> Bars:
    """Return `bars` with prices multiplied and volumes divided by `factors`."""
    if factors is None:
        return bars
    values = bars.values.copy()
    values[[OPEN, HIGH, LOW, CLOSE, VWAP]] *= factors
    values[VOLUME] /= factors
    return Bars(bars.timestamp, values)


def dividend_factors(timestamps: Int64s, actions: Sequence[Action], closes: Bars) -> Floats:
    """Return price multipliers 1 - D/P for each later dividend D, P the close before its ex-date.

    `closes` are daily bars in the basis in which the dividends are stated, covering the ex-dates.
    """
    days = date_ordinals(timestamps)
    closing = date_ordinals(closes.timestamp)
    factors = np.ones(len(timestamps))
    for action in actions:
        if action.type != "cash_dividend" or action.amount <= 0:
            continue
        number = day_number(action.ex_date)
        before = int(np.searchsorted(closing, number)) - 1
        if before >= 0:
            close = closes.values[CLOSE, before]
            factors[days < number] *= 1 - action.amount / close
    return factors


# ------------------------------------------------------------------------------ aggregation


def aggregate(bars: Bars, labels: Int64s) -> Bars:
    """Join neighbouring bars that share a label into one; labels ascend."""
    if not len(bars):
        return bars
    starts = np.flatnonzero(np.r_[True, labels[1:] != labels[:-1]])
    ends = np.r_[starts[1:], len(labels)] - 1
    v = bars.values
    out = np.empty((len(COLUMNS), len(starts)))
    out[OPEN], out[CLOSE] = v[OPEN, starts], v[CLOSE, ends]
    out[HIGH] = np.fmax.reduceat(v[HIGH], starts)
    out[LOW] = np.fmin.reduceat(v[LOW], starts)
    out[VOLUME] = np.round(np.add.reduceat(v[VOLUME], starts), 6)
    out[TRADE_COUNT] = np.add.reduceat(v[TRADE_COUNT], starts)
    traded = np.add.reduceat(v[VOLUME] * v[VWAP], starts)
    with np.errstate(invalid="ignore", divide="ignore"):
        out[VWAP] = np.round(traded / out[VOLUME], 6)
    return Bars(labels[starts], out)


def clock_labels(bars: Bars, calendar: TradingCalendar, minutes: int) -> Int64s:
    """Return for each bar of one session the multiple of `minutes` after exchange midnight."""
    midnight = calendar.midnight[calendar.session_index(bars.timestamp)]
    step = minutes * MINUTE
    return np.asarray(midnight + (bars.timestamp - midnight) // step * step, np.int64)


def week_labels(timestamps: Int64s, calendar: TradingCalendar) -> Int64s:
    """Return for each daily bar the exchange midnight of its week's Monday."""
    # 1970-01-01 was a Thursday, three days after its Monday.
    days = date_ordinals(timestamps)
    return _midnights((days + 3) // 7 * 7 - 3, calendar)


def month_labels(timestamps: Int64s, calendar: TradingCalendar, count: int) -> Int64s:
    """Return for each daily bar the exchange midnight that begins its `count` months of a year."""
    months = date_ordinals(timestamps).astype("datetime64[D]").astype("datetime64[M]")
    number = months.astype(np.int64) // count * count
    days = number.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
    return _midnights(days, calendar)


def _midnights(days: Int64s, calendar: TradingCalendar) -> Int64s:
    unique, where = np.unique(days, return_inverse=True)
    found = np.array([calendar.midnight_of(day_of(int(d))) for d in unique], np.int64)
    return found[where]
