"""Trying a pandas-ta indicator on generated bars: columns, look-back, memory, looking ahead.

What is found out holds for the bars it was tried on. They are random walks of several kinds, and
lengths found are doubled; an indicator whose memory depends on the prices (one that waits for a
reversal, say) can remember longer than that on prices that never reverse.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from marketdata.errors import RequestError
from marketdata.indicators import foreign
from marketdata.indicators.definitions import UNBOUNDED, Parameter
from marketdata.indicators.inputs import Inputs
from marketdata.types import DAY, HOUR, Bars, Floats

_AGREE: Final = 1e-10
_ROUNDED: Final = 1e-8
_ENDS: Final = 12
"""How many last values are compared."""
_SIZES: Final = (0, 32, 64, 128, 256, 512, 1024, 2048)
_SEEDS: Final = (1, 2, 3)


@dataclass(frozen=True)
class Measured:
    """What the probe found out.

    Attributes
    ----------
    columns : tuple of str
        pandas-ta's own, and `outputs` what each adds to the name here.
    lookback, stabilisation : int
        As of `Indicator`.
    """

    columns: tuple[str, ...]
    outputs: tuple[str, ...]
    lookback: int
    stabilisation: int


def generated(size: int, seed: int) -> Inputs:
    """Return `size` daily bars of a random walk; weekdays from 2000 on."""
    random = np.random.default_rng(seed)
    drift, noise = {1: (0.0, 0.01), 2: (0.0005, 0.02), 3: (-0.0002, 0.004)}.get(seed, (0.0, 0.01))
    close = 100 * np.exp(np.cumsum(random.normal(drift, noise, size)))
    opened = np.append(100.0, close[:-1]) * np.exp(random.normal(0, noise / 4, size))
    high = np.maximum(opened, close) * np.exp(np.abs(random.normal(0, noise / 2, size)))
    low = np.minimum(opened, close) * np.exp(-np.abs(random.normal(0, noise / 2, size)))
    volume = np.round(np.exp(random.normal(10, 0.7, size)))
    weeks, days = np.divmod(np.arange(size), 5)
    monday = 10959 * DAY  # 2000-01-03
    timestamp = monday + (weeks * 7 + days) * DAY + 5 * HOUR
    missing = np.full(size, np.nan)
    values = np.array([opened, high, low, close, volume, missing, missing])
    return Inputs(Bars(timestamp.astype(np.int64), values), np.arange(size))


@lru_cache(maxsize=1024)
def measure(name: str, keywords: tuple[tuple[str, Parameter], ...]) -> Measured:
    """Try an indicator and return what was found out.

    Raises
    ------
    RequestError
        It does not take these parameters, gives no values, or looks ahead.
    """
    given = dict(keywords)
    longest = max([int(v) for v in given.values() if isinstance(v, int | float)], default=0)
    size = 1000 + 4 * min(max(longest, 0), 10_000)
    first = generated(size, _SEEDS[0])
    columns, values = _columns(name, first, given)
    _refuse_ahead(name, first, given, columns, values)
    lookback = _lookback(values)
    stabilisation = max(_stabilisation(name, seed, given, columns, lookback) for seed in _SEEDS)
    return Measured(columns, foreign.outputs_of(columns), lookback, stabilisation)


@lru_cache(maxsize=1024)
def spelling(name: str, column: str) -> tuple[str | None, ...]:
    """Return which parameter each number in a pandas-ta column's name is; None for none.

    Found by changing one parameter after the other and looking which number changes.
    """
    words = [i for i, word in enumerate(column.split("_")) if foreign.is_number(word)]
    found: dict[int, str] = {}
    for key in foreign.parameters(name):
        for value in (13, 0.37):
            places = set(_places(name, key, value, column, words))
            if len(places) == 1:  # of two, one follows from the other
                found.setdefault(places.pop(), key)
    return tuple(found.get(place) for place in words)


def _places(name: str, key: str, value: float, column: str, words: Sequence[int]) -> Iterator[int]:
    """Yield the places at which `value` stands in a column spelt like `column`."""
    try:
        answer = foreign.call(name, generated(700, _SEEDS[0]), {key: value})
    except Exception:  # it does not take such a value
        return
    pattern = column.split("_")
    for other in () if answer is None else map(str, answer.columns):
        parts = other.split("_")
        if len(parts) == len(pattern) and all(
            part == pattern[i] for i, part in enumerate(parts) if i not in words
        ):
            yield from (i for i in words if parts[i] == str(value) or parts[i] == f"{value:.1f}")


def _columns(
    name: str, inputs: Inputs, given: Mapping[str, Parameter]
) -> tuple[tuple[str, ...], Floats]:
    try:
        answer = foreign.call(name, inputs, given)
    except Exception as error:
        raise RequestError(
            f"pandas-ta's {name} does not take {dict(given)}: {type(error).__name__}: {error}",
            cure=f"see help(pandas_ta.{name})",
        ) from error
    if answer is None or answer.isna().all(axis=None):
        raise RequestError(
            f"pandas-ta's {name} gives no values for {dict(given)}",
            cure=f"see help(pandas_ta.{name})",
        )
    columns = tuple(map(str, answer.columns))
    answer.columns = columns
    return columns, answer.to_numpy(np.float64).T


def _ask(
    name: str, inputs: Inputs, given: Mapping[str, Parameter], columns: tuple[str, ...]
) -> Floats:
    try:
        answer = foreign.call(name, inputs, given)
    except Exception:  # of too few bars: pandas-ta has as many ways as indicators
        answer = None
    missing = np.full(len(inputs), np.nan)
    if answer is None:
        return np.array([missing for _ in columns])
    return np.array([answer[c].to_numpy(np.float64) if c in answer else missing for c in columns])


def _same(left: Floats, right: Floats, agree: float = _AGREE) -> bool:
    both = np.isnan(left) & np.isnan(right)
    size = np.maximum(np.abs(left), np.abs(right))
    scale = np.nanmax(size, axis=1, keepdims=True, initial=1e-12) * 0.1
    with np.errstate(invalid="ignore"):
        close = np.abs(left - right) <= agree * np.maximum(size, scale)
    return bool((both | close | (left == right)).all())


def _refuse_ahead(
    name: str,
    inputs: Inputs,
    given: Mapping[str, Parameter],
    columns: tuple[str, ...],
    values: Floats,
) -> None:
    for count in (len(inputs) - 1, len(inputs) - 9, len(inputs) * 4 // 5):
        before = _ask(name, inputs.first(count), given, columns)
        ahead = [
            column
            for at, column in enumerate(columns)
            if not _same(before[at : at + 1], values[at : at + 1, :count])
        ]
        if ahead:
            raise RequestError(
                f"pandas-ta's {name} looks ahead: {', '.join(ahead)} at a bar changes when later "
                "bars are appended",
                cure="a value at t is computed from bars up to t; choose other parameters",
            )


def _lookback(values: Floats) -> int:
    """Return how many bars precede the first at which every column has had a value."""
    firsts = [int(np.argmax(~np.isnan(row))) for row in values if not np.isnan(row).all()]
    return max(firsts)


def _stabilisation(
    name: str, seed: int, given: Mapping[str, Parameter], columns: tuple[str, ...], lookback: int
) -> int:
    """Return how many bars before agree with all bars, twice over.

    pandas' own rolling sums carry rounding that no history takes away: where a looser comparison
    is content with far fewer bars, what remains is that, not memory.
    """
    whole = generated(_SIZES[-1] + lookback + 600, seed)
    reference = _ask(name, whole, given, columns)
    strict = _settled_at(name, whole, given, reference, columns, lookback, _AGREE)
    size = strict
    if strict > _SIZES[3]:
        loose = _settled_at(name, whole, given, reference, columns, lookback, _ROUNDED)
        size = strict if strict <= 4 * max(loose, _SIZES[1]) else loose
    return min(2 * size, UNBOUNDED)


def _settled_at(
    name: str,
    whole: Inputs,
    given: Mapping[str, Parameter],
    reference: Floats,
    columns: tuple[str, ...],
    lookback: int,
    agree: float,
) -> int:
    """Return how many bars beyond the look-back make windows agree with all bars."""
    size = 0
    for end in range(len(whole) - 300, len(whole) + 1, 150):
        while size < UNBOUNDED:
            start = end - _ENDS - lookback - size
            window = _ask(name, whole.part(start, end), given, columns)
            if _same(window[:, -_ENDS:], reference[:, end - _ENDS : end], agree):
                break
            larger = [s for s in _SIZES if s > size]
            size = larger[0] if larger else UNBOUNDED
    return size
