"""Trying a pandas-ta indicator on generated bars: columns, look-back, memory, looking ahead.

What is found out holds for the bars it was tried on: walks of several kinds, long trends, and rough
bars with gaps, inside bars, flat runs and bars without volume. The memory is measured from many
beginnings at once: one call on the bars from a beginning on tells, by the last bar at which it
differs from the call on all bars, how much history that beginning lacked. Lengths found are
doubled, and doubled again where they depend on the prices (an indicator that waits for a reversal).
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
from marketdata.indicators.generated import KINDS, ROUGH, WALK, generated
from marketdata.indicators.inputs import Inputs
from marketdata.types import Bools, Floats, Int64s

_AGREE: Final = 1e-10
_ROUNDED: Final = 1e-8
_EDGE: Final = 64
"""So many first values may depend on later bars; they are left out. More is looking ahead."""
_REACHES: Final = ((256, 6), (1024, 3), (4608, 1))
"""Bars beyond the look-back that are compared, and from how many beginnings of each kind."""
_LONGEST_WAIT: Final = 2048
"""What waits longer for a price (a new high, say) is taken to count from the first bar."""
_SPREAD: Final = 400
"""Over how many bars the beginnings are spread."""


@dataclass(frozen=True)
class Measured:
    """What the probe found out.

    Attributes
    ----------
    columns : tuple of str
        pandas-ta's own, and `outputs` what each adds to the name here.
    lookback, stabilisation : int
        As of `Indicator`.
    least : int
        Bars below which pandas-ta answers nothing, or not in all columns.
    unfounded : tuple of int
        How many first values of each column depend on later bars; they are no values.
    """

    columns: tuple[str, ...]
    outputs: tuple[str, ...]
    lookback: int
    stabilisation: int
    least: int
    unfounded: tuple[int, ...]


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
    first = generated(size, WALK)
    columns, values = _columns(name, first, given)
    unfounded = _unfounded(name, first, given, columns, values)
    rough = generated(size, ROUGH)
    found = _ask(name, rough, given, columns)
    unfounded = np.maximum(unfounded, _unfounded(name, rough, given, columns, found))
    lookback = max(_lookback(values), int(unfounded.max()))
    return Measured(
        columns,
        foreign.outputs_of(columns),
        lookback,
        _stabilisation(name, given, columns, lookback),
        _least(name, first, given, columns, lookback),
        tuple(unfounded.tolist()),
    )


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
        answer = foreign.call(name, generated(700, WALK), {key: value})
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


def _differ(left: Floats, right: Floats, agree: float = _AGREE) -> Bools:
    """Return where two arrays of columns differ, relative to the value or to the usual one."""
    both = np.isnan(left) & np.isnan(right)
    size = np.maximum(np.abs(left), np.abs(right))
    known = np.where(np.isfinite(right), np.abs(right), 0.0)
    usual = np.maximum(known.mean(axis=1, keepdims=True) * 0.1, 1e-13)
    with np.errstate(invalid="ignore"):
        close = np.abs(left - right) <= agree * np.maximum(size, usual)
    same: Bools = both | close | (left == right)
    return ~same


def _unfounded(
    name: str,
    inputs: Inputs,
    given: Mapping[str, Parameter],
    columns: tuple[str, ...],
    values: Floats,
) -> Int64s:
    """Return how many first values of each column change when later bars are appended.

    Others that change are looking ahead: refused.
    """
    found = np.zeros(len(columns), np.int64)
    for count in (len(inputs) - 1, len(inputs) - 9, len(inputs) * 4 // 5):
        before = _ask(name, inputs.first(count), given, columns)
        differ = _differ(before, values[:, :count])
        lengths = np.array([_last(row[np.newaxis]) for row in differ])
        if lengths.max() > _EDGE:
            ahead = [columns[at] for at in np.flatnonzero(lengths > _EDGE)]
            raise RequestError(
                f"pandas-ta's {name} looks ahead: {', '.join(ahead)} at a bar changes when later "
                "bars are appended",
                cure="a value at t is computed from bars up to t; choose other parameters",
            )
        found = np.maximum(found, lengths)
    return found


def _least(
    name: str,
    inputs: Inputs,
    given: Mapping[str, Parameter],
    columns: tuple[str, ...],
    lookback: int,
) -> int:
    """Return a number of bars with which pandas-ta answers in all columns: the least, if many."""

    def answers(count: int) -> bool:
        try:
            answer = foreign.call(name, inputs.first(count), given)
        except Exception:  # of too few bars: pandas-ta has as many ways as indicators
            return False
        return answer is not None and all(column in answer for column in columns)

    low, high = max(lookback + 1, 3), len(inputs)  # of fewer, some print that they refuse
    if answers(low):
        return low
    while low + 1 < high:
        middle = min((low + high) // 2, 2 * low + 1)
        low, high = (low, middle) if answers(middle) else (middle, high)
    return high


def _lookback(values: Floats) -> int:
    """Return how many bars precede the first at which every column has had a value."""
    firsts = [int(np.argmax(~np.isnan(row))) for row in values if not np.isnan(row).all()]
    return max(firsts)


def _stabilisation(
    name: str, given: Mapping[str, Parameter], columns: tuple[str, ...], lookback: int
) -> int:
    """Return how many bars beyond the look-back agree with all bars, and as many for safety.

    pandas' own rolling sums carry rounding that no history takes away: where a looser comparison
    is content with far fewer bars, what remains is that, not memory.
    """
    for reach, beginnings in _REACHES:
        strict, loose = _memories(name, given, columns, lookback, reach, beginnings)
        most, content = int(strict.max()), int(loose.max())
        if most > max(_EDGE, 4 * content):
            strict, most = loose, content + content // 2
        varied = most > int(np.median(strict)) * 3 // 2
        if varied and most > _LONGEST_WAIT:
            return UNBOUNDED
        if most < reach * 3 // 4:
            return 4 * most + _EDGE if varied else 2 * most
    return UNBOUNDED


def _memories(
    name: str,
    given: Mapping[str, Parameter],
    columns: tuple[str, ...],
    lookback: int,
    reach: int,
    beginnings: int,
) -> tuple[Int64s, Int64s]:
    """Return for each beginning how many bars beyond the look-back it takes to agree."""
    found: list[list[int]] = []
    length = lookback + reach
    for kind in KINDS:
        whole = generated(length + _SPREAD + 40, kind)
        reference = _ask(name, whole, given, columns)
        for start in np.linspace(40, 40 + _SPREAD, beginnings).astype(int).tolist():
            window = _ask(name, whole.part(start, start + length), given, columns)
            wanted = reference[:, start : start + length]
            ends = [_last(_differ(window, wanted, agree)) for agree in (_AGREE, _ROUNDED)]
            found.append([max(end - lookback, 0) for end in ends])
            if found[-1][1] >= reach * 3 // 4:  # a longer reach is needed
                return np.array([reach]), np.array([reach])
    strict, loose = np.array(found, np.int64).T
    return strict, loose


def _last(differ: Bools) -> int:
    """Return how many bars there are up to the last that differs in a column."""
    at = np.flatnonzero(differ.any(axis=0))
    return int(at[-1]) + 1 if len(at) else 0
