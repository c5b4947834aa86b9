"""Indicators of the series a strategy watches: computed once, shared by all that ask for the same.

A *study* is one indicator over one series: a name that `md.get_indicators` knows, or an author's
own function. Its values are computed for all bars held, and for the new ones only when bars are
added.

The last bits of a value depend on where its window begins. So a study is computed block by block,
a block being a week of intraday bars or a calendar year of others, each from what it needs before
the block's first bar: whatever was loaded before that, and whether the bars came all at once or one
by one, the values are the same to the last bit, and a live run decides as a back-test does. Over bars
given as a frame a study is computed from the first of them on, as any library does.
"""

from __future__ import annotations

import inspect
import itertools
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

import marketdata as md
from algorithms.algorithm import Algorithm, IndicatorSpec
from algorithms.errors import AlgorithmError
from algorithms.hours import Hours
from algorithms.lines import Floats, Int64s
from algorithms.series import Series
from marketdata.indicators import UNBOUNDED, Indicator, compute, history, resolve
from marketdata.types import Bars

MOST_BYTES: Final = 512 * 1024 * 1024
"""Kept for others that ask for the same; a strategy holds what it uses whatever this says."""

ALL: Final = UNBOUNDED
_HOUR: Final = 3_600_000_000
_WEEK: Final = 7 * 24 * _HOUR
_SUNDAY: Final = 3 * 24 * _HOUR
"""1970 began on a Thursday. A week that begins as Sunday does in UTC cuts no session in two."""
_A_YEAR: Final = {md.Timeframe.WEEK_1: 53, md.Timeframe.MONTH_1: 12}
_DAYS_A_YEAR: Final = 254


@dataclass(frozen=True)
class Study:
    """What to compute, of which timeframe.

    Attributes
    ----------
    aliases : tuple of str
        The names of its outputs in the context.
    key : tuple
        Equal for studies with equal values.
    needs : int
        Bars before the first value that may be used, warm-up of recursive ones included; `ALL` for
        every bar there is.
    sessions : int
        Whole sessions before its own that it needs besides.
    """

    timeframe: str
    aliases: tuple[str, ...]
    key: tuple[Any, ...]
    needs: int
    sessions: int = 0
    indicator: Indicator | None = field(default=None, compare=False)
    function: Callable[..., Any] | None = field(default=None, compare=False)
    arguments: Mapping[str, Any] = field(default_factory=dict, compare=False)


def studies_of(algorithm: Algorithm) -> tuple[Study, ...]:
    """Return the studies of a strategy.

    Raises
    ------
    RequestError
        A name that no indicator has.
    AlgorithmError
        Two indicators would have one name, or a function asks for what the strategy does not have.
    """
    found: list[Study] = []
    for alias, (spec, timeframe) in algorithm.indicator_specs().items():
        given = str(md.Timeframe.parse(timeframe))
        if isinstance(spec, str):
            found.extend(_named(alias, spec, given))
        else:
            found.append(_own(algorithm, alias, spec, given))
    taken: set[tuple[str, str]] = set()
    for study in found:
        for name in study.aliases:
            if (name, study.timeframe) in taken:
                raise AlgorithmError(
                    f"two indicators of {type(algorithm).__name__} are called {name!r}",
                    cure="give each its own name in `indicators`",
                )
            taken.add((name, study.timeframe))
    return tuple(found)


def _named(alias: str, spec: str, timeframe: str) -> list[Study]:
    found = []
    for indicator in resolve([spec]):
        columns = indicator.columns
        if len(columns) == 1:
            aliases: tuple[str, ...] = (alias,)
        else:
            aliases = tuple(alias + column.removeprefix(indicator.name) for column in columns)
        parsed = md.Timeframe.parse(timeframe)
        before = history([indicator], parsed)
        key = (indicator.name, columns, timeframe)
        found.append(Study(timeframe, aliases, key, *before, indicator=indicator))
    return found


def _own(algorithm: Algorithm, alias: str, spec: IndicatorSpec, timeframe: str) -> Study:
    function, needs = spec if isinstance(spec, tuple) else (spec, ALL)
    if not callable(function):
        raise AlgorithmError(
            f"the indicator {alias!r} of {type(algorithm).__name__} is {function!r}",
            cure="give a name such as 'sma_20', or a function of the bars",
        )
    arguments: dict[str, Any] = {}
    names = list(inspect.signature(function).parameters.values())[1:]
    for parameter in names:
        if parameter.name in algorithm.params:
            arguments[parameter.name] = algorithm.params[parameter.name]
        elif parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            raise AlgorithmError(
                f"the indicator {alias!r} asks for {parameter.name!r}, which is no parameter of "
                f"{type(algorithm).__name__}",
                cure=f"declare {parameter.name} = Param(...) in the class, or give it a default",
            )
    key = (function, tuple(sorted(arguments.items())), timeframe)
    return Study(timeframe, (alias,), key, needs, function=function, arguments=arguments)


def reach(study: Study, session: str) -> int:
    """Return the bars to have before a moment, so that the block it lies in can be computed; `ALL`
    for every bar there is."""
    if study.needs >= ALL:
        return ALL
    if not study.needs and not study.sessions:
        return 0
    frame = md.Timeframe.parse(study.timeframe)
    if not frame.intraday:
        return study.needs + _A_YEAR.get(frame, _DAYS_A_YEAR)
    hours = 16 if session == "extended" else 7
    return study.needs + (study.sessions + 5) * -(-hours * _HOUR // frame.step)


def blocks(labels: Int64s, timeframe: str, first: int = 0) -> list[tuple[int, int]]:
    """Return the index ranges of the blocks that hold the bars from an index on, ascending."""
    if first >= len(labels):
        return []
    low, high = int(labels[first]), int(labels[-1])
    if md.Timeframe.parse(timeframe).intraday:
        edges = list(range(low - (low - _SUNDAY) % _WEEK, high + 1, _WEEK))
    else:
        years = np.arange(_year(low), _year(high) + np.timedelta64(1, "Y"))
        edges = [int(edge) for edge in years.astype("datetime64[us]").astype(np.int64)]
    starts = [*labels.searchsorted(edges).tolist(), len(labels)]
    return [(start, end) for start, end in itertools.pairwise(starts) if start < end]


def _year(instant: int) -> np.datetime64[Any]:
    year: np.datetime64[Any] = np.datetime64(instant, "us").astype("datetime64[Y]")
    return year


class _Values:
    """The outputs of one study over one series, with room for more bars."""

    __slots__ = ("arrays", "size")

    def __init__(self, arrays: list[Floats], size: int) -> None:
        self.arrays = arrays
        self.size = size

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)


class StudyBook:
    """The values of studies, by series; what is asked for again is not computed again.

    Parameters
    ----------
    hours : Hours
    most_bytes : int, optional
        What is asked for seldom is forgotten beyond this.
    whole : bool, optional
        Compute from the first bar on instead of block by block.
    """

    def __init__(self, hours: Hours, most_bytes: int = MOST_BYTES, *, whole: bool = False) -> None:
        self.hours = hours
        self.whole = whole
        self._most = most_bytes
        self._held: OrderedDict[tuple[Any, ...], _Values] = OrderedDict()
        self._bytes = 0

    def values(self, study: Study, series: Series, epoch: int) -> Sequence[Floats]:
        """Return one array an output, at least `series.size` long; shared, not to be written."""
        key = (series.symbol, series.timeframe, epoch, study.key)
        held = self._held.get(key)
        if held is None:
            held = _Values(self._compute(study, series, epoch, 0), series.size)
            self._held[key] = held
            self._bytes += held.bytes
            self._forget()
        elif held.size < series.size:
            self._bytes -= held.bytes
            self._extend(held, study, series, epoch)
            self._bytes += held.bytes
        self._held.move_to_end(key)
        return held.arrays

    def _extend(self, held: _Values, study: Study, series: Series, epoch: int) -> None:
        fresh = self._compute(study, series, epoch, held.size)
        for place, values in enumerate(fresh):
            array = held.arrays[place]
            if len(array) < series.size or not array.flags.writeable:
                grown = np.full(max(series.size, len(array) + len(array) // 2), np.nan)
                grown[: held.size] = array[: held.size]
                held.arrays[place] = array = grown
            array[held.size : series.size] = values
        held.size = series.size

    def _compute(self, study: Study, series: Series, epoch: int, first: int) -> list[Floats]:
        """Return the values from an index on."""
        labels = series.labels[: series.size]
        if self.whole or study.needs >= ALL:
            return [values[first:] for values in self._window(study, series, epoch, 0, series.size)]
        parts: list[list[Floats]] = []
        for start, end in blocks(labels, series.timeframe, first):
            begin = self._begin(study, labels, start)
            values = self._window(study, series, epoch, begin, end)
            parts.append([column[max(start, first) - begin :] for column in values])
        if not parts:
            return [np.empty(0) for _ in study.aliases]
        return [np.concatenate(columns) for columns in zip(*parts, strict=True)]

    def _begin(self, study: Study, labels: Int64s, start: int) -> int:
        """Return where the window of the block begins that starts at an index."""
        begin = max(0, start - study.needs)
        if study.sessions and len(self.hours.midnight):
            own = int(self.hours.session_of(labels[start : start + 1])[0])
            opened = self.hours.midnight[max(0, own - study.sessions)]
            begin = min(begin, int(labels.searchsorted(opened)))
        return begin

    def _window(
        self, study: Study, series: Series, epoch: int, first: int, end: int
    ) -> list[Floats]:
        """Return the values of the bars of these indices, computed from them alone."""
        if study.indicator is not None:
            columns = series.columns(epoch)[:, first:end]
            labels = series.labels[first:end]
            # Five rows: no indicator reads vwap or trade count.
            bars = Bars(labels, columns)
            sessions = self.hours.session_of(labels)
            return list(compute([study.indicator], bars, sessions, early=self.hours.early))
        assert study.function is not None
        given = series.arrays(epoch, first, end)
        result = np.asarray(study.function(given, **study.arguments), np.float64)
        if result.shape != (len(given),):
            raise AlgorithmError(
                f"the indicator {study.aliases[0]!r} gave an array of shape {result.shape} for "
                f"{len(given)} bars of {series.symbol}",
                cure="return one number for each bar, NaN where there is none",
            )
        return [np.array(result)]

    def forget(self, symbol: str) -> None:
        """Compute a symbol's values anew where they are asked for again."""
        for key in [key for key in self._held if key[0] == symbol]:
            self._bytes -= self._held.pop(key).bytes

    def _forget(self) -> None:
        while self._bytes > self._most and len(self._held) > 1:
            _, values = self._held.popitem(last=False)
            self._bytes -= values.bytes
