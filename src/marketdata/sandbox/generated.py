"""A market made of arithmetic: every bar follows from seed, symbol and session alone.

A day's prices come from noise that can be read at any date without walking there; a session's
minutes come from a random stream of their own, bent so that the regular minutes open, peak, dip
and close where the day does. The window of a request therefore never changes an answer, and ten
thousand symbols cost nothing until somebody asks for one.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from hashlib import blake2b
from typing import Final

import numpy as np

from marketdata.calendars import EXCHANGE, TradingCalendar, calendar_for
from marketdata.clock import SystemClock
from marketdata.sandbox.happenings import Happenings
from marketdata.sandbox.noise import levels, normals, uniforms
from marketdata.sandbox.paths import PRE_MINUTES, TICK, session_prices, ticks_of, volume_profile
from marketdata.sandbox.source import Action, Basis, day_number, day_of
from marketdata.sandbox.tickers import Held
from marketdata.sandbox.universe import BUILT_IN, Listing
from marketdata.spans import Span
from marketdata.types import (
    CLOSE,
    COLUMNS,
    DAY,
    HIGH,
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

_TRADE_SIZE: Final = 150.0
_FRACTIONAL: Final = 0.02
"""Share of minute volumes that are not whole shares."""
_ANOMALOUS: Final = 1 / 5000
"""Share of regular minutes whose open lies outside [low, high], as trade conditions allow."""
_CACHE_BYTES: Final = 256 * 2**20
_BLOCK: Final = 16


@dataclass(frozen=True, slots=True)
class _Days:
    """Day figures of neighbouring sessions; prices in ticks, columns open high low close."""

    prices: Int64s
    volume: Floats
    before: Int64s
    """Close of the session before, in the same share basis."""


class GeneratedMarket(Happenings):
    """A `MarketSource` of generated prices on the NYSE calendar, raw basis.

    Parameters
    ----------
    seed : int
        Another seed, another market.
    symbols : sequence of str, optional
        Symbols the assets endpoint lists; the built-in ones by default. Simulated ones
        (``S0001``, ``SIM1``) exist even when unlisted.
    """

    basis: Basis = "raw"

    def __init__(self, seed: int = 7, symbols: Sequence[str] | None = None) -> None:
        self.seed = seed
        super().__init__(tuple(BUILT_IN) if symbols is None else tuple(symbols))
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[str, int], tuple[TradingCalendar, Bars]] = OrderedDict()
        self._cached_bytes = 0
        self._days_cache: dict[tuple[str, int], _Days] = {}

    def _forget(self) -> None:
        """Forget every figure that an action or a new name may have changed."""
        with self._lock:
            super()._forget()
            self._days_cache = {}
            self._cache.clear()
            self._cached_bytes = 0

    def _dividends(self, listing: Listing) -> list[Action]:
        """Quarterly cash dividends in March, June, September and December, never on a split."""
        if not listing.dividend:
            return []
        calendar = _calendar(0)
        key = self._key(listing.symbol)
        splits = {day for day, _, _ in listing.splits}
        splits |= {e.ex_date for e in self._effects.get(listing.symbol, [])}
        sessions = calendar.midnight // DAY
        wanted = _quarter_days(5 + key % 15)
        wanted = wanted[(wanted > day_number(listing.listed) + 30) & (wanted <= sessions[-1])]
        numbers = sessions[np.searchsorted(sessions, wanted)]
        days = [day_of(n) for n in numbers.tolist()]
        closes = self._closes(listing, numbers)
        return [
            Action(listing.symbol, day, amount=max(0.01, round(c * listing.dividend / 4, 2)))
            for day, c in zip(days, closes.tolist(), strict=True)
            if day not in splits
        ]

    # ------------------------------------------------------------------------------- days

    def _key(self, symbol: str) -> int:
        return _symbol_key(self.seed, symbol)

    def _closes(self, listing: Listing, days: Int64s) -> Floats:
        typical = np.exp(levels(self._key(listing.symbol), listing.volatility, days))
        basis = self._share_factors(listing, days) * self._left(listing, days)
        return np.asarray(listing.price * typical * basis)

    def _figures(self, listing: Listing, calendar: TradingCalendar, low: int, high: int) -> _Days:
        """Return the figures of sessions `low` to `high` (exclusive) of `calendar`."""
        key = self._key(listing.symbol)
        days = calendar.midnight[max(low - 1, 0) : high] // DAY
        level = listing.price * np.exp(levels(key, listing.volatility, days))
        share = self._share_factors(listing, days)[-(high - low) :]
        # What is spun off is missing from the close before as well: no bar shows it leave.
        basis = share * self._left(listing, days)[-(high - low) :]
        close = level[-(high - low) :] * basis
        before = (level[:-1] if low else level) * basis
        days = days[-(high - low) :]
        spread = listing.volatility
        gap, up, down, busy = normals(key, (3, 4, 5, 6), days)
        open_ = before * np.exp(0.4 * spread * gap)
        top = np.maximum(open_, close) * np.exp(0.5 * spread * np.abs(up))
        bottom = np.minimum(open_, close) * np.exp(-0.5 * spread * np.abs(down))
        prices = ticks_of(np.stack([open_, top, bottom, close]))
        prices[1] = prices.max(axis=0)
        prices[2] = prices.min(axis=0)
        moved = np.abs(np.log(close / open_)) / spread
        volume = listing.volume / share * np.exp(0.3 * busy + 0.25 * moved)
        return _Days(prices, np.rint(volume), ticks_of(before))

    def days(self, symbol: str, span: Span, feed: str) -> Bars:
        if span.empty or feed not in ("sip", "iex"):
            return Bars.empty()
        pieces = [self._days_of(held, span, feed) for held in self._tickers.held(symbol)]
        return pieces[0] if len(pieces) == 1 else Bars.concat(pieces)

    def _days_of(self, held: Held, span: Span, feed: str) -> Bars:
        listing = held.listing
        calendar = _calendar(span.end)
        within = _within(held, span, calendar)
        low, high = (int(i) for i in np.searchsorted(calendar.midnight, within))
        if high <= low:
            return Bars.empty()
        figures = self._figures(listing, calendar, low, high)
        key = self._key(listing.symbol)
        midnight = calendar.midnight[low:high]
        values = np.empty((len(COLUMNS), high - low))
        values[:4] = figures.prices / TICK
        values[VOLUME] = figures.volume
        trades = np.rint(figures.volume / (60 + 60 * uniforms(key, 31, midnight)))
        values[TRADE_COUNT] = np.maximum(trades, 1)
        part = uniforms(key, 32, midnight)
        low_, high_ = figures.prices[2], figures.prices[1]
        values[VWAP] = np.rint((low_ + (high_ - low_) * (0.3 + 0.4 * part)) * 100) / 1e6
        bars = Bars(midnight.copy(), values)
        return bars if feed == "sip" else _iex(bars, key, keep_all=True)

    # ---------------------------------------------------------------------------- minutes

    def minutes(
        self, symbol: str, span: Span, feed: str, *, newest_first: bool = False
    ) -> Iterator[Bars]:
        if span.empty or feed not in ("sip", "iex"):
            return
        every = self._tickers.held(symbol)
        for held in reversed(every) if newest_first else every:
            yield from self._minutes_of(held, span, feed, newest_first=newest_first)

    def _minutes_of(
        self, held: Held, span: Span, feed: str, *, newest_first: bool
    ) -> Iterator[Bars]:
        listing = held.listing
        calendar = _calendar(span.end)
        within = _within(held, span, calendar)
        low = int(np.searchsorted(calendar.extended_close, within.start, side="right"))
        high = int(np.searchsorted(calendar.extended_open, within.end))
        order = range(high - 1, low - 1, -1) if newest_first else range(low, high)
        for session in order:
            bars = self._session(listing, calendar, session).within(span)
            if feed == "iex":
                bars = _iex(bars, self._key(listing.symbol))
            if len(bars):
                yield bars

    def _session(self, listing: Listing, calendar: TradingCalendar, session: int) -> Bars:
        address = (listing.symbol, int(calendar.midnight[session]))
        with self._lock:
            kept = self._cache.get(address)
            if kept is not None:
                self._cache.move_to_end(address)
                return kept[1]
        bars = self._make_session(listing, calendar, session)
        with self._lock:
            self._cache[address] = (calendar, bars)
            self._cached_bytes += bars.values.nbytes
            while self._cached_bytes > _CACHE_BYTES:
                _, (_, dropped) = self._cache.popitem(last=False)
                self._cached_bytes -= dropped.values.nbytes
        return bars

    def _day_of_session(
        self, listing: Listing, calendar: TradingCalendar, session: int
    ) -> tuple[Int64s, float, int]:
        block = session // _BLOCK
        address = (listing.symbol, block)
        days = self._days_cache.get(address)
        if days is None or session - block * _BLOCK >= len(days.volume):
            low, high = block * _BLOCK, min((block + 1) * _BLOCK, len(calendar.midnight))
            days = self._figures(listing, calendar, low, high)
            if len(self._days_cache) > 20_000:
                self._days_cache = {}
            self._days_cache[address] = days
        at = session - block * _BLOCK
        return days.prices[:, at], float(days.volume[at]), int(days.before[at])

    def _make_session(self, listing: Listing, calendar: TradingCalendar, session: int) -> Bars:
        day, volume, before = self._day_of_session(listing, calendar, session)
        opening = int(calendar.extended_open[session])
        regular = int(calendar.close[session] - calendar.open[session]) // MINUTE
        total = int(calendar.extended_close[session] - opening) // MINUTE
        key = np.array([self._key(listing.symbol), opening], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key))
        chance, odd, part, size = rng.random((4, total))
        noise = rng.standard_normal((4, total))
        weights = volume * volume_profile(regular, total)
        quiet = chance >= -np.expm1(-weights / _TRADE_SIZE)
        if quiet[PRE_MINUTES : PRE_MINUTES + regular].all():
            quiet[PRE_MINUTES + int(part[0] * regular)] = False
        at = np.flatnonzero(~quiet)
        pre, reg = np.searchsorted(at, (PRE_MINUTES, PRE_MINUTES + regular)).tolist()
        sections = (pre, reg - pre, len(at) - reg)
        prices = session_prices(day, before, sections, noise[:, at], odd[at])
        values = np.empty((len(COLUMNS), len(at)))
        values[:4] = prices / TICK
        traded = np.maximum(np.rint(weights[at] * np.exp(0.5 * noise[3, at])), 1.0)
        # Fractional shares have been on the tape since February 2026, in any size.
        odd_lot = part[at] < _FRACTIONAL
        traded[odd_lot] += np.rint(size[at][odd_lot] * 1e6) / 1e6
        values[VOLUME] = np.rint(traded * 1e6) / 1e6
        values[TRADE_COUNT] = np.maximum(np.rint(traded / (60 + 120 * size[at])), 1.0)
        top, bottom = prices[HIGH], prices[LOW]
        middle = (prices[OPEN] + top + bottom + prices[CLOSE]) / 4 + (size[at] - 0.5) * 0.3 * (
            top - bottom
        )
        values[VWAP] = np.rint(np.clip(middle, bottom, top) * 100) / 1e6
        # The first and the last regular bar keep the day's open and close.
        strange = chance[at] / np.maximum(1 - np.exp(-weights[at] / _TRADE_SIZE), 1e-9)
        inner = np.zeros(len(at), np.bool_)
        inner[pre + 1 : reg - 1] = True
        outside = inner & (strange < _ANOMALOUS)
        values[OPEN, outside] = (top[outside] + 100) / TICK
        return Bars(opening + at * MINUTE, values)


@lru_cache(maxsize=32)
def _quarter_days(day: int) -> Int64s:
    """Return `day` of every quarter's last month from 1990 on, as days since 1970-01-01."""
    found = [day_number(date(y, m, day)) for y in range(1990, 2100) for m in (3, 6, 9, 12)]
    return np.array(found, np.int64)


@lru_cache(maxsize=65536)
def _symbol_key(seed: int, symbol: str) -> int:
    return int.from_bytes(blake2b(f"{seed}:{symbol}".encode(), digest_size=8).digest(), "big")


def _calendar(moment: int) -> TradingCalendar:
    return calendar_for(EXCHANGE, max(moment, SystemClock().now_us()))


def _within(held: Held, span: Span, calendar: TradingCalendar) -> Span:
    """Return the part of `span` in which a symbol names what it is held by."""
    first = calendar.midnight_of(held.first)
    until = span.end if held.until is None else calendar.midnight_of(held.until)
    return Span(max(span.start, first), max(first, min(span.end, until)))


def _iex(bars: Bars, key: int, *, keep_all: bool = False) -> Bars:
    """Return what one exchange with two per cent of the volume saw: fewer and smaller bars."""
    index = bars.timestamp // MINUTE
    trades = bars.values[TRADE_COUNT] * 0.03
    keep = keep_all | (uniforms(key, 41, index) < -np.expm1(-trades - 0.02))
    values = bars.values.copy()
    part = 0.01 + 0.02 * uniforms(key, 42, index)
    values[VOLUME] = np.maximum(np.rint(values[VOLUME] * part), 1.0)
    values[TRADE_COUNT] = np.maximum(np.rint(trades), 1.0)
    return Bars(bars.timestamp, values).take(np.asarray(keep, np.bool_))


def simulated(count: int) -> list[str]:
    """Return the first `count` simulated symbols, ``S00001`` and on."""
    return [f"S{n:05d}" for n in range(1, count + 1)]
