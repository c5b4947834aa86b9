"""Bars that indicators are tried on: walks, long trends, and what markets have besides."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np

from marketdata.indicators.inputs import Inputs
from marketdata.types import DAY, HOUR, Bars, Floats

WALK: Final = "walk"
_WALKS: Final = {WALK: (0.0, 0.01), "rising": (0.0005, 0.02)}
_SIDEWAYS: Final = "sideways"
_TRENDS: Final = "trends"
ROUGH: Final = "rough"
KINDS: Final = (*_WALKS, _SIDEWAYS, _TRENDS, ROUGH)


@lru_cache(maxsize=16)
def generated(size: int, kind: str) -> Inputs:
    """Return `size` daily bars of one of `KINDS`; weekdays from 2000 on.

    ``sideways`` bars come back to one price for 60 bars of 120, ``trends`` go one way for 60 to 150. ``rough`` bars are in whole cents, with gaps, inside
    bars, runs of unchanged price, bars without volume, and a last bar that engulfs all others.
    """
    random = np.random.default_rng(KINDS.index(kind) + 1)
    drift, noise = _WALKS.get(kind, (0.0, 0.006 if kind == _TRENDS else 0.01))
    moves = random.normal(drift, noise, size)
    if kind == _SIDEWAYS:
        back = np.arange(1, size) % 120 < 60
        moves[1:] -= np.where(back, 0.9 * moves[:-1], 0.0)
    if kind == _TRENDS:
        lengths = random.integers(60, 151, size // 60 + 1)
        signs = np.where(np.arange(len(lengths)) % 2, -0.005, 0.005)
        moves += np.repeat(signs, lengths)[:size]
    if kind == ROUGH:
        moves += np.where(random.random(size) < 0.01, random.normal(0, 0.06, size), 0.0)
        for begin in random.integers(0, size, size // 80):
            moves[begin : begin + 2] = 0.0
    close = 100 * np.exp(np.cumsum(moves))
    opened = np.append(100.0, close[:-1]) * np.exp(random.normal(0, noise / 4, size))
    high = np.maximum(opened, close) * np.exp(np.abs(random.normal(0, noise / 2, size)))
    low = np.minimum(opened, close) * np.exp(-np.abs(random.normal(0, noise / 2, size)))
    volume = np.round(np.exp(random.normal(10, 0.7, size)))
    values = np.array([opened, high, low, close, volume, *np.full((2, size), np.nan)])
    if kind == ROUGH:
        _roughen(values, random)
    weeks, days = np.divmod(np.arange(size), 5)
    monday = 10959 * DAY  # 2000-01-03
    timestamp = monday + (weeks * 7 + days) * DAY + 5 * HOUR
    return Inputs(Bars(timestamp.astype(np.int64), values), np.arange(size))


def _roughen(values: Floats, random: np.random.Generator) -> None:
    """Put inside bars, bars of one price, bars without volume and an engulfing last bar."""
    size = values.shape[1]
    prices = values[:4]
    inside = 2 * np.flatnonzero(random.random((size - 1) // 2) < 0.12) + 1
    high, low = prices[1, inside - 1], prices[2, inside - 1]
    shares = np.sort(random.uniform(0.1, 0.9, (4, len(inside))), axis=0)[[1, 3, 0, 2]]
    prices[:, inside] = low + (high - low) * shares
    still = np.flatnonzero(random.random(size) < 0.02)
    prices[:, still] = prices[3, still]
    values[4, random.random(size) < 0.02] = 0.0
    np.round(prices, 2, out=prices)
    if size:
        prices[1, -1], prices[2, -1] = prices[1].max() * 1.1, prices[2].min() * 0.9
