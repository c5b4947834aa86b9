"""pandas-ta itself: which indicators it has, what they take, and how they are called.

It is always called with ``talib=False`` and, where it takes one, a stated ``ddof``. Where it calls
its own averages without passing ``talib`` on, those are TA-Lib's, which this library depends on:
nothing depends on what is installed.
"""

from __future__ import annotations

import importlib
import inspect
import re
import threading
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, get_args

import numpy as np
import pandas as pd

from marketdata.errors import RequestError
from marketdata.indicators.definitions import Parameter
from marketdata.indicators.inputs import Inputs, wall_clock
from marketdata.indicators.moments import Column
from marketdata.types import CLOSE, HIGH, LOW, OPEN, VOLUME

_SERIES: Final = {
    "open_": OPEN,
    "open": OPEN,
    "high": HIGH,
    "low": LOW,
    "close": CLOSE,
    "volume": VOLUME,
}
_ALSO: Final = ("cdl_doji", "cdl_inside", "dm", "drawdown", "ttm_trend")
"""Time series that pandas-ta's own table of categories leaves out."""

_STATED: Final[dict[str, dict[str, Parameter]]] = {
    "bbands": {"ddof": 1},
    "cdl_z": {"ddof": 1},
    "dpo": {"centered": False},
    "ichimoku": {"include_chikou": False, "lookahead": False},
    "stdev": {"ddof": 1},
    "variance": {"ddof": 1},
    "zscore": {"ddof": 1},
}
"""Keywords that are always given: pandas-ta's default stated, or what keeps it from looking ahead."""

REFUSED: Final = {
    "long_run": "it takes two other indicators as its input",
    "short_run": "it takes two other indicators as its input",
    "tos_stdevall": "it looks ahead: it fits one line through all bars, later ones included",
    "vhm": "it looks ahead: it divides by the deviation of the newest bars, for earlier ones too",
    "vp": "it gives a profile by price, not values by time",
    "zigzag": "it looks ahead: a turn is known only once later bars confirm it",
}
_AHEAD: Final = ("centered", "include_chikou")
_FROM_ZERO: Final = ("ddof", "offset", "percent", "prenan")
_ANY_SIGN: Final = ("phase", "dist_offset", "std_length")
_LONGEST: Final = 10_000
_NUMBER: Final = re.compile(r"-?\d+(\.\d+)?%?")

# pandas-ta, numba's compiler and warnings.catch_warnings are not made for threads.
_lock = threading.RLock()


@lru_cache(maxsize=1)
def _library() -> Any:
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("pandas_ta")


@lru_cache(maxsize=1)
def names() -> frozenset[str]:
    """Return the names of pandas-ta's indicators that are time series of bars."""
    categories = importlib.import_module(f"{_library().__name__}.maps").Category
    listed = {name for group in categories.values() for name in group}
    return frozenset(listed | set(_ALSO))


def parameters(name: str) -> tuple[str, ...]:
    """Return the names of an indicator's parameters, in order, without its series."""
    function = getattr(_library(), name)
    return tuple(
        key
        for key, parameter in inspect.signature(function).parameters.items()
        if key not in _SERIES
        and key != "talib"
        and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    )


def check(name: str, key: str, value: Any) -> None:
    """Refuse what pandas-ta would pass over in silence, and what makes it look ahead."""
    wrong = _wrong(inspect.signature(getattr(_library(), name)).parameters[key], value)
    if wrong:
        raise misread(name, name, f"{key} must be {wrong}, not {value!r}")
    if key in _AHEAD and value is True:
        raise misread(name, name, f"a value must not look ahead: {key} is {value!r}")
    if name == "pivots" and key == "method" and value == "demark":
        raise misread(name, name, "demark takes one formula for all bars, by all of them at once")
    if key == "anchor" and str(value).upper() != "D":
        raise misread(name, name, "it counts by session: anchor is D")
    if key.endswith("mamode") and value not in _library().ma():
        known = " ".join(_library().ma())
        raise misread(name, name, f"{key} must be one of {known}, not {value!r}")


def _wrong(parameter: inspect.Parameter, value: Any) -> str | None:
    """Return what a parameter must be, if `value` is not."""
    kinds = get_args(parameter.annotation) or (parameter.annotation,)
    number = isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)
    if str in kinds:
        fine = isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9]\w*", value)
        return None if fine else "a word"
    if bool in kinds:
        return None if isinstance(value, bool) else "true or false"
    if not number:
        return "a number"
    if int in kinds and float not in kinds:
        least = 0 if parameter.name in _FROM_ZERO else 1
        whole = isinstance(value, int) and least <= value <= _LONGEST
        return None if whole else f"a whole number from {least} to {_LONGEST}"
    return None if value > 0 or parameter.name in _ANY_SIGN else "a number above 0"


def misread(name: str, asked: str, what: str) -> RequestError:
    known = ", ".join(parameters(name)) if name in names() else "none"
    return RequestError(
        f"pandas-ta's {name}: {what}", asked=asked, cure=f"its parameters, in order: {known}"
    )


def refuse(name: str) -> None:
    if name in REFUSED:
        raise RequestError(
            f"pandas-ta's {name} is not served: {REFUSED[name]}",
            cure="a value at t is computed from bars up to t; marketdata.indicators() lists others",
        )


# ----------------------------------------------------------------------------------- the call


def call(name: str, inputs: Inputs, keywords: Mapping[str, Parameter]) -> pd.DataFrame | None:
    """Return pandas-ta's own answer as float64 columns; None if it gives none for so few bars."""
    function = getattr(_library(), name)
    wanted = inspect.signature(function).parameters
    frame = _frame(inputs)
    if name == "pivots":
        frame = _irregular(frame)
    series = {key: Column(frame.iloc[:, row]) for key, row in _SERIES.items() if key in wanted}
    given = {"talib": False, **_STATED.get(name, {}), **keywords}
    with _lock, warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        answer = function(**series, **given)
        if name == "eom" and answer is not None:
            answer = _ease(series, given).rename(answer.name)
    if isinstance(answer, tuple):
        answer = answer[0]
    if answer is None:
        return None
    if isinstance(answer, pd.Series):
        answer = answer.to_frame()
    return pd.DataFrame(answer).astype(np.float64).iloc[-len(inputs) :]


def _ease(series: Mapping[str, pd.Series], given: Mapping[str, Any]) -> pd.Series:
    """Return pandas-ta's eom, the mean of (move of the middle) * range / volume.

    A bar without volume divides by 0, and the average that pandas-ta takes carries the infinite
    sum on for ever; this mean leaves it again.
    """
    high, low = series["high"], series["low"]
    middle = (high + low) / 2
    spread = (high - low).replace(0.0, np.finfo(np.float64).eps)
    boxes = series["volume"] / given.get("divisor", 100_000_000) / spread
    single = (middle - middle.shift(given.get("drift", 1))) / boxes
    finite = single.replace([np.inf, -np.inf], np.nan)
    mean: pd.Series = finite.rolling(given.get("length", 14)).mean()
    return mean.shift(given.get("offset", 0))


def _irregular(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the bars after two empty days, a week and ten days earlier.

    Of bars on every calendar day (Monday to Friday, say) pandas-ta's pivots are those of the bar's
    own day, of others those of the day before: it skips its own shift where it finds a frequency.
    """
    early = frame.index[0].normalize() - pd.to_timedelta([10, 7], unit="D")
    return pd.concat([pd.DataFrame(np.nan, early, frame.columns), frame])


def _frame(inputs: Inputs) -> pd.DataFrame:
    """Return the bars for pandas-ta: wall-clock time of the exchange, since it cuts days there."""
    found: pd.DataFrame | None = inputs.shared.get("frame")
    if found is None:
        index = pd.DatetimeIndex(wall_clock(inputs.timestamp).astype("datetime64[us]"))
        columns = ["open", "high", "low", "close", "volume"]
        found = pd.DataFrame(inputs.values[:5].T.copy(), index=index, columns=columns)
        inputs.shared["frame"] = found
    return found


def served() -> list[str]:
    """Return the names of pandas-ta's indicators that can be asked for."""
    return sorted(names() - set(REFUSED))


def source(name: str) -> str:
    """Return where an indicator's formula is."""
    return f"pandas-ta, {getattr(_library(), name).__module__}, talib=False"


def title(name: str) -> str:
    """Return the first line of pandas-ta's description."""
    return (inspect.getdoc(getattr(_library(), name)) or name).partition("\n")[0]


def is_number(word: str) -> bool:
    """Return whether a word of a pandas-ta column is a number."""
    return _NUMBER.fullmatch(word) is not None


def outputs_of(columns: Sequence[str]) -> tuple[str, ...]:
    """Return what each pandas-ta column adds to the name: nothing, or its lower-cased words."""
    if len(columns) == 1:
        return ("",)
    words = [
        "_".join(w for w in column.split("_") if not _NUMBER.fullmatch(w)).lower()
        for column in columns
    ]
    if len(set(words)) < len(words):  # of the same words: its numbers tell them apart
        twice = {word for word in words if words.count(word) > 1}
        words = [
            column.lower() if word in twice else word
            for word, column in zip(words, columns, strict=True)
        ]
    return tuple(words)


def columns_read(name: str) -> tuple[int, ...]:
    """Return the rows of `Bars.values` that an indicator reads."""
    wanted = inspect.signature(getattr(_library(), name)).parameters
    return tuple(sorted({row for key, row in _SERIES.items() if key in wanted}))
