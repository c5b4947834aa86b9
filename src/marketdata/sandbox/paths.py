"""How a day's open, high, low and close become the prices of its minutes."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np

from marketdata.types import CLOSE, HIGH, LOW, OPEN, Bools, Floats, Int64s

PRE_MINUTES: Final = 330
"""From 04:00 to 09:30."""
TICK: Final = 10_000
"""Prices are whole numbers of 1/10,000 dollar, as on the tape."""
_ODD_PRICES: Final = 0.03
"""Share of minute prices that are not whole cents."""


def ticks_of(prices: Floats) -> Int64s:
    """Return whole ticks: cents from a dollar up, ticks below, at least one."""
    ticks = prices * TICK
    cents = np.rint(ticks / 100) * 100
    whole = np.where(ticks >= TICK, cents, np.rint(ticks))
    return np.asarray(np.maximum(whole, 1), np.int64)


@lru_cache(maxsize=8)
def volume_profile(regular: int, total: int) -> Floats:
    """Return each minute's share of the day's volume: busy at open and close, thin outside."""
    x = np.linspace(-1, 1, regular)
    busy = 0.6 + 1.8 * x**4
    before = np.linspace(0.05, 1, PRE_MINUTES) ** 2
    after = np.linspace(1, 0.1, total - PRE_MINUTES - regular) ** 3
    parts = ((before, 0.012), (busy, 0.94), (after, 0.02))
    return np.concatenate([share * p / p.sum() for p, share in parts])


def session_prices(
    day: Int64s, before: int, sections: tuple[int, int, int], noise: Floats, odd: Floats
) -> Int64s:
    """Return open, high, low and close in ticks of the bars before, in and after regular hours.

    Parameters
    ----------
    day : ndarray of int64, shape (4,)
        The day's open, high, low and close in ticks: the regular bars start, peak, dip and end
        on them.
    before : int
        The close of the session before.
    sections : tuple of int
        Number of bars before, in and after regular hours; at least one in them.
    noise : ndarray of float64, shape (4, bars)
        Standard normal numbers.
    odd : ndarray of float64, shape (bars,)
        Uniform numbers that decide which prices are not whole cents.
    """
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


def _bridge(start: float, end: float, steps: Floats, width: float) -> Floats:
    """Return a path of len(steps) + 1 points from `start` to `end`."""
    count = len(steps)
    path = np.concatenate([[0.0], np.cumsum(steps)]) * (width / np.sqrt(max(count, 1)))
    part = np.linspace(0.0, 1.0, count + 1)
    return np.asarray(start + (end - start) * part + path - part * path[-1])


def _bar_ticks(prices: Floats, odd: Floats) -> Int64s:
    exact: Bools = (odd < _ODD_PRICES) | (prices[LOW] < TICK)
    whole = np.where(exact, np.rint(prices), np.rint(prices / 100) * 100)
    return np.asarray(np.maximum(whole, 1), np.int64)


def _fold(path: Floats, bottom: float, width: float) -> Floats:
    """Reflect a path back into [bottom, bottom + width]."""
    return np.asarray(bottom + width - np.abs((path - bottom) % (2 * width) - width))
