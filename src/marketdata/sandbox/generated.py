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
from datetime import date, timedelta
from functools import lru_cache
from hashlib import blake2b
from typing import Final

import numpy as np
from numpy.typing import NDArray

from marketdata.calendars import TradingCalendar, calendar_for
from marketdata.clock import SystemClock
from marketdata.sandbox.source import Action, Asset, Basis, day_number
from marketdata.sandbox.universe import BUILT_IN, Listing, listing_of
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
    Bools,
    Floats,
    Int64s,
)

UInt64s = NDArray[np.uint64]

PRE_MINUTES: Final = 330
"""From 04:00 to 09:30."""
_TICK: Final = 10_000
"""Prices are whole numbers of 1/10,000 dollar, as on the tape."""
_OCTAVES: Final = 2 ** np.arange(12, dtype=np.int64)
_GROWTH: Final = 0.06
_GROWTH_FROM: Final = day_number(date(2025, 1, 1))
_TRADE_SIZE: Final = 150.0
_ODD_PRICES: Final = 0.03
"""Share of minute prices that are not whole cents."""
_FRACTIONAL: Final = 0.02
"""Share of minute volumes that are not whole shares."""
_ANOMALOUS: Final = 1 / 5000
"""Share of regular minutes whose open lies outside [low, high], as trade conditions allow."""
_CACHE_BYTES: Final = 256 * 2**20
_BLOCK: Final = 64


# --------------------------------------------------------------------------- noise by address


def _mixed(x: UInt64s) -> UInt64s:
    """Scatter 64-bit numbers (the finaliser of splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniforms(key: int, stream: int, index: Int64s) -> Floats:
    """Return numbers in [0, 1) addressed by key, stream and index; any shape."""
    salt = (key + stream * 0x9E3779B97F4A7C15) % 2**64
    mixed = _mixed(_mixed(index.astype(np.uint64) + np.uint64(salt)) ^ np.uint64(key))
    return np.asarray((mixed >> np.uint64(11)) * 2.0**-53)


def _normals(key: int, stream: int, index: Int64s) -> Floats:
    """Return nearly normal numbers (three uniforms), within plus and minus three."""
    total = sum(uniforms(key, stream * 3 + s, index) for s in range(3))
    return np.asarray(total * 2.0 - 3.0)


def _levels(key: int, volatility: float, days: Int64s) -> Floats:
    """Return the logarithm of price relative to its typical level, for days since 1970-01-01.

    Noise of doubling periods, interpolated: its daily moves have the given standard deviation,
    and it stays within a factor of a few of its level for ever.
    """
    cell, inside = np.divmod(days[None, :], _OCTAVES[:, None])
    # Each octave reads its own part of one index space.
    base = cell + (np.arange(len(_OCTAVES)) << 40)[:, None]
    noise = _normals(key, 1, np.stack([base, base + 1]))
    part = inside / _OCTAVES[:, None]
    heights = noise[0] * (1 - part) + noise[1] * part
    weights = 0.5 * volatility * np.sqrt(_OCTAVES)
    growth = _GROWTH / 365 * (days - _GROWTH_FROM)
    return np.asarray((heights * weights[:, None]).sum(axis=0) + growth)


@dataclass(frozen=True, slots=True)
class _Days:
    """Day figures of neighbouring sessions; prices in ticks, columns open high low close."""

    prices: Int64s
    volume: Floats
    before: Int64s
    """Close of the session before, in the same share basis."""


class GeneratedMarket:
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
        self._listed = tuple(BUILT_IN) if symbols is None else tuple(symbols)
        self._added: dict[str, list[Action]] = {}
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[str, int], tuple[TradingCalendar, Bars]] = OrderedDict()
        self._cached_bytes = 0
        self._days_cache: dict[tuple[str, int], _Days] = {}
        self._actions: dict[str, list[Action]] = {}

    # ----------------------------------------------------------------------------- assets

    def assets(self) -> Sequence[Asset]:
        found = (self.asset(s) for s in sorted(self._listed))
        return [a for a in found if a is not None]

    def asset(self, symbol: str) -> Asset | None:
        listing = listing_of(symbol)
        if listing is None:
            return None
        return Asset(symbol, f"{listing.name} (SIMULATED)", listing.exchange, listing.kind)

    def first_day(self, symbol: str) -> date:
        listing = listing_of(symbol)
        return date(1990, 1, 2) if listing is None else listing.listed

    # ---------------------------------------------------------------------------- actions

    def add_split(
        self,
        symbol: str,
        ex_date: date,
        new: float,
        old: float = 1.0,
        *,
        process_date: date | None = None,
        announced: date | None = None,
    ) -> Action:
        """Let a split happen: raw prices fall from `ex_date` on, earlier ones stay as they were.

        With `announced` after `ex_date` the corporate action is late, as it can be in reality.
        """
        action = Action(symbol, ex_date, new, old, 0.0, process_date, announced)
        with self._lock:
            self._added.setdefault(symbol, []).append(action)
            self._actions.pop(symbol, None)
            self._days_cache = {k: v for k, v in self._days_cache.items() if k[0] != symbol}
            for key in [k for k in self._cache if k[0] == symbol]:
                self._cached_bytes -= self._cache.pop(key)[1].values.nbytes
        return action

    def actions(self, symbol: str) -> Sequence[Action]:
        found = self._actions.get(symbol)
        if found is None:
            listing = listing_of(symbol)
            if listing is None:
                return []
            splits = [Action(symbol, day, new, old) for day, new, old in listing.splits]
            splits += self._added.get(symbol, [])
            found = sorted(splits + self._dividends(listing), key=lambda a: a.ex_date)
            self._actions[symbol] = found
        return found

    def symbols_with_actions(self) -> Sequence[str]:
        return sorted({*self._listed, *self._added})

    def _dividends(self, listing: Listing) -> list[Action]:
        """Quarterly cash dividends in March, June, September and December, never on a split."""
        if not listing.dividend:
            return []
        calendar = _calendar(0)
        key = self._key(listing.symbol)
        splits = {day for day, _, _ in listing.splits}
        splits |= {a.ex_date for a in self._added.get(listing.symbol, [])}
        last = calendar.session_date(len(calendar.midnight) - 1)
        wanted = [
            date(year, month, 5 + key % 15)
            for year in range(listing.listed.year, last.year + 1)
            for month in (3, 6, 9, 12)
        ]
        wanted = [d for d in wanted if listing.listed + timedelta(30) < d <= last]
        at = np.searchsorted(calendar.midnight, [calendar.midnight_of(d) for d in wanted])
        at = at[at < len(calendar.midnight)]
        days = [calendar.session_date(int(i)) for i in at]
        level = self._closes(listing, np.array([day_number(d) for d in days], np.int64))
        return [
            Action(listing.symbol, day, amount=max(0.01, round(c * listing.dividend / 4, 2)))
            for day, c in zip(days, level.tolist(), strict=True)
            if day not in splits
        ]

    # ------------------------------------------------------------------------------- days

    def _key(self, symbol: str) -> int:
        return _symbol_key(self.seed, symbol)

    def _share_factors(self, listing: Listing, days: Int64s) -> Floats:
        """Return raw over typical price: built-in splits to come, added splits behind."""
        factors = np.ones(len(days))
        for ex_date, new, old in listing.splits:
            factors[days < day_number(ex_date)] *= new / old
        for action in self._added.get(listing.symbol, []):
            factors[days >= day_number(action.ex_date)] /= action.ratio
        return factors

    def _closes(self, listing: Listing, days: Int64s) -> Floats:
        levels = np.exp(_levels(self._key(listing.symbol), listing.volatility, days))
        return np.asarray(listing.price * levels * self._share_factors(listing, days))

    def _figures(self, listing: Listing, calendar: TradingCalendar, low: int, high: int) -> _Days:
        """Return the figures of sessions `low` to `high` (exclusive) of `calendar`."""
        key = self._key(listing.symbol)
        days = calendar.midnight[max(low - 1, 0) : high] // DAY
        levels = listing.price * np.exp(_levels(key, listing.volatility, days))
        share = self._share_factors(listing, days)[-(high - low) :]
        close = levels[-(high - low) :] * share
        before = (levels[:-1] if low else levels) * share
        days = days[-(high - low) :]
        spread = listing.volatility
        open_ = before * np.exp(0.4 * spread * _normals(key, 3, days))
        up, down = np.abs(_normals(key, 4, days)), np.abs(_normals(key, 5, days))
        top = np.maximum(open_, close) * np.exp(0.5 * spread * up)
        bottom = np.minimum(open_, close) * np.exp(-0.5 * spread * down)
        prices = _ticks(np.stack([open_, top, bottom, close]))
        prices[1] = prices.max(axis=0)
        prices[2] = prices.min(axis=0)
        moved = np.abs(np.log(close / open_)) / spread
        volume = listing.volume / share * np.exp(0.3 * _normals(key, 6, days) + 0.25 * moved)
        return _Days(prices, np.rint(volume), _ticks(before))

    def days(self, symbol: str, span: Span, feed: str) -> Bars:
        listing = listing_of(symbol)
        if listing is None or span.empty or feed not in ("sip", "iex"):
            return Bars.empty()
        calendar = _calendar(span.end)
        first = calendar.midnight_of(listing.listed)
        low, high = (
            int(i) for i in np.searchsorted(calendar.midnight, (max(span.start, first), span.end))
        )
        if high <= low:
            return Bars.empty()
        figures = self._figures(listing, calendar, low, high)
        key = self._key(symbol)
        midnight = calendar.midnight[low:high]
        values = np.empty((len(COLUMNS), high - low))
        values[:4] = figures.prices / _TICK
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
        listing = listing_of(symbol)
        if listing is None or span.empty or feed not in ("sip", "iex"):
            return
        calendar = _calendar(span.end)
        first = int(np.searchsorted(calendar.midnight, calendar.midnight_of(listing.listed)))
        low = max(first, int(np.searchsorted(calendar.extended_close, span.start, side="right")))
        high = int(np.searchsorted(calendar.extended_open, span.end))
        order = range(high - 1, low - 1, -1) if newest_first else range(low, high)
        for session in order:
            bars = self._session(listing, calendar, session).within(span)
            if feed == "iex":
                bars = _iex(bars, self._key(symbol))
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
        weights = volume * _profile(regular, total)
        quiet = chance >= -np.expm1(-weights / _TRADE_SIZE)
        if quiet[PRE_MINUTES : PRE_MINUTES + regular].all():
            quiet[PRE_MINUTES + int(part[0] * regular)] = False
        at = np.flatnonzero(~quiet)
        pre, reg = np.searchsorted(at, (PRE_MINUTES, PRE_MINUTES + regular)).tolist()
        sections = (pre, reg - pre, len(at) - reg)
        prices = _paths(day, before, sections, noise[:, at], odd[at])
        values = np.empty((len(COLUMNS), len(at)))
        values[:4] = prices / _TICK
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
        values[OPEN, outside] = (top[outside] + 100) / _TICK
        return Bars(opening + at * MINUTE, values)


@lru_cache(maxsize=65536)
def _symbol_key(seed: int, symbol: str) -> int:
    return int.from_bytes(blake2b(f"{seed}:{symbol}".encode(), digest_size=8).digest(), "big")


def _calendar(moment: int) -> TradingCalendar:
    return calendar_for("XNYS", max(moment, SystemClock().now_us()))


def _ticks(prices: Floats) -> Int64s:
    """Return whole ticks: cents from a dollar up, ticks below, at least one."""
    ticks = prices * _TICK
    cents = np.rint(ticks / 100) * 100
    return np.maximum(np.where(ticks >= _TICK, cents, np.rint(ticks)), 1).astype(np.int64)


@lru_cache(maxsize=8)
def _profile(regular: int, total: int) -> Floats:
    """Return each minute's share of the day's volume: busy at open and close, thin outside."""
    x = np.linspace(-1, 1, regular)
    busy = 0.6 + 1.8 * x**4
    before = np.linspace(0.05, 1, PRE_MINUTES) ** 2
    after = np.linspace(1, 0.1, total - PRE_MINUTES - regular) ** 3
    parts = ((before, 0.012), (busy, 0.94), (after, 0.02))
    return np.concatenate([share * p / p.sum() for p, share in parts])


def _bridge(start: float, end: float, steps: Floats, width: float) -> Floats:
    """Return a path of len(steps) + 1 points from `start` to `end`."""
    count = len(steps)
    path = np.concatenate([[0.0], np.cumsum(steps)]) * (width / np.sqrt(max(count, 1)))
    part = np.linspace(0.0, 1.0, count + 1)
    return np.asarray(start + (end - start) * part + path - part * path[-1])


def _paths(
    day: Int64s, before: int, sections: tuple[int, int, int], noise: Floats, odd: Floats
) -> Int64s:
    """Return open, high, low and close in ticks of the bars before, in and after regular hours."""
    day_open, top, bottom, day_close = (int(x) for x in day)
    pre, regular, _ = sections
    width = float(max(top - bottom, 1))
    inside = slice(pre, pre + regular)
    last = day_close + 0.1 * width * float(noise[2, 0])
    legs = (
        _bridge(before, day_open, noise[0, :pre], 0.3 * width),
        _fold(_bridge(day_open, day_close, noise[0, inside], 0.5 * width), bottom, width),
        _bridge(day_close, last, noise[0, pre + regular :], 0.1 * width),
    )
    open_ = np.concatenate([leg[:-1] for leg in legs])
    close = np.concatenate([leg[1:] for leg in legs])
    reach = 0.3 * width / np.sqrt(max(regular, 1))
    # A bar seldom opens exactly where the one before it closed.
    open_ = open_ + np.where(np.arange(len(open_)) == pre, 0.0, 0.3 * reach * noise[2])
    high = np.maximum(open_, close) + reach * np.abs(noise[1])
    low = np.minimum(open_, close) - reach * np.abs(noise[3])
    prices = np.stack([open_, high, low, close])
    prices[:, inside] = np.clip(prices[:, inside], bottom, top)
    ticks = _bar_ticks(prices, odd)
    ticks[HIGH, pre + int(np.argmax(prices[HIGH, inside]))] = top
    ticks[LOW, pre + int(np.argmin(prices[LOW, inside]))] = bottom
    ticks[OPEN, pre], ticks[CLOSE, pre + regular - 1] = day_open, day_close
    ticks[HIGH] = ticks.max(axis=0)
    ticks[LOW] = ticks.min(axis=0)
    return ticks


def _bar_ticks(prices: Floats, odd: Floats) -> Int64s:
    exact: Bools = (odd < _ODD_PRICES) | (prices[LOW] < _TICK)
    return np.maximum(np.where(exact, np.rint(prices), np.rint(prices / 100) * 100), 1).astype(
        np.int64
    )


def _fold(path: Floats, bottom: float, width: float) -> Floats:
    """Reflect a path back into [bottom, bottom + width]."""
    return np.asarray(bottom + width - np.abs((path - bottom) % (2 * width) - width))


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


