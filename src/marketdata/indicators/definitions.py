"""What an indicator is: one definition gives its batch values, its steps, its needs and its words.

A `Definition` is a family (``rsi``), an `Indicator` a member with its parameters (``rsi_14``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from marketdata.types import Floats

if TYPE_CHECKING:
    from marketdata.indicators.inputs import Inputs
    from marketdata.indicators.live import Live

Parameter = int | float | str | bool | None
Value = Any
"""A float, or a float64 array of shape (series,): steps are written once for both."""
State = tuple[Value, ...]
Step = Callable[..., tuple[State, tuple[Value, ...]]]
"""``step(state, now, ops, *parameters) -> (state after this bar, values)``."""
Kernel = Literal["talib", "own", "pandas-ta"]
Scope = Literal["window", "session", "series"]

UNBOUNDED: Final = 1_000_000_000
"""Look-back of what counts from the first bar of the series: no finite history replaces it."""


@dataclass(frozen=True, slots=True)
class Argument:
    """One parameter of a definition: its name, default and least value; the default's type holds."""

    name: str
    default: int | float
    least: float = 1


def one_lookback(*_: Parameter) -> int:
    """Return 1: the value needs the bar before."""
    return 1


def none_needed(*_: Parameter) -> int:
    """Return 0: nothing of the kind is needed."""
    return 0


@dataclass(frozen=True)
class Definition:
    """A family of indicators.

    Attributes
    ----------
    name : str
        ``rsi``; names of members add the parameters, ``rsi_14``.
    outputs : tuple of str
        What each output adds to the name: ``""``, ``"signal"``, ``"hist"``.
    batch : callable
        ``batch(inputs, *parameters)`` -> one float64 array of shape (bars,) an output.
    lookback, stabilisation, sessions : callable
        Of the parameters: bars before the first value; further bars until two windows agree
        within 1e-9 relative; whole earlier sessions.
    step, seed : callable, optional
        The incremental form and its state after the last of a window's bars. Without them the
        newest value is computed from the last `lookback` + `stabilisation` bars.
    tail : callable
        Of the parameters: how many bars a step looks at, the new one included.
    columns : tuple of int
        Rows of `Bars.values` that are read.
    scope : str
        ``window``: of the bars before. ``session``: starts anew with each session.
        ``series``: with each session for intraday bars, else with the first bar of the series.
    formula, source : str
        As in the listing; the source is public.
    """

    name: str
    outputs: tuple[str, ...]
    arguments: tuple[Argument, ...]
    columns: tuple[int, ...]
    kernel: Kernel
    formula: str
    source: str
    batch: Callable[..., Sequence[Floats]]
    lookback: Callable[..., int]
    stabilisation: Callable[..., int] = none_needed
    sessions: Callable[..., int] = none_needed
    step: Step | None = None
    seed: Callable[..., State] | None = None
    tail: Callable[..., int] = one_lookback
    scope: Scope = "window"
    refuse: Callable[..., str | None] | None = None
    """Of the parameters: what is wrong with them together, or None."""
    spellings: tuple[str, ...] = ()
    """pandas-ta's column prefix of each output, as in ``BBU_20_2.0``."""


class History(NamedTuple):
    """What must precede the first bar asked for, so that its values are those of any window.

    Both hold at once: start at the earlier of the two.
    """

    bars: int
    """Bars before it; `UNBOUNDED` for all the series has."""
    sessions: int
    """Whole sessions before its own, and its own from the opening on; 0 for none of this."""


@dataclass(frozen=True, eq=False)
class Indicator:
    """An indicator with its parameters: hashable, picklable, and equal if name and columns are.

    Attributes
    ----------
    name : str
        The canonical name, ``rsi_14``.
    columns : tuple of str
        The columns it gives: its name, or its name and what tells its outputs apart.
    lookback : int
        Bars before its first value.
    stabilisation : int
        Further bars until a value no longer depends on where the window begins, 1e-9 relative;
        `UNBOUNDED` for what counts from the series' first bar.
    sessions : int
        Whole earlier sessions needed; 1 for what counts from its own session's opening.
    """

    definition: Definition
    parameters: tuple[Parameter, ...]
    name: str
    selected: tuple[int, ...]
    """Indices of the outputs that are given: all of them, unless one column was asked by name."""
    keywords: tuple[tuple[str, Parameter], ...] = field(default=())

    @cached_property
    def columns(self) -> tuple[str, ...]:
        outputs = self.definition.outputs
        return tuple(column_name(self.name, outputs[i]) for i in self.selected)

    @cached_property
    def lookback(self) -> int:
        return self.definition.lookback(*self.parameters)

    @cached_property
    def stabilisation(self) -> int:
        return self.definition.stabilisation(*self.parameters)

    @cached_property
    def sessions(self) -> int:
        return self.definition.sessions(*self.parameters)

    @cached_property
    def tail(self) -> int:
        """Bars that a step looks at, the new one included."""
        return self.definition.tail(*self.parameters)

    @cached_property
    def whole(self) -> bool:
        """Whether all its outputs are given."""
        return len(self.selected) == len(self.definition.outputs)

    @cached_property
    def batch(self) -> Callable[[Inputs], Sequence[Floats]]:
        """All outputs for every bar of the inputs."""
        kernel, arguments = self.definition.batch, self.parameters
        keywords = dict(self.keywords)
        if keywords:
            return lambda inputs: kernel(inputs, *arguments, **keywords)
        return lambda inputs: kernel(inputs, *arguments)

    def incremental(self) -> Live:
        """Return an empty state of this indicator: append bars to it one by one."""
        from marketdata.indicators.live import Live

        return Live((self,))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Indicator):
            return NotImplemented
        return self.name == other.name and self.selected == other.selected

    def __hash__(self) -> int:
        return hash((self.name, self.selected))

    def __repr__(self) -> str:
        return f"Indicator({', '.join(self.columns)})"

    def __reduce__(self) -> tuple[Callable[..., Indicator], tuple[str, tuple[int, ...]]]:
        from marketdata.indicators.names import restored

        return restored, (self.name, self.selected)


def column_name(name: str, output: str) -> str:
    """Return the column of an output: ``macd_12_26_9`` and ``hist`` give ``macd_12_26_9_hist``."""
    return f"{name}_{output}" if output else name


def spelt(value: Parameter) -> str:
    """Return a parameter as it stands in a name: ``2.0`` is ``2``."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def member_name(name: str, parameters: Sequence[Parameter]) -> str:
    """Return the canonical name of a member: ``rsi`` and ``(14,)`` give ``rsi_14``."""
    return "_".join((name, *map(spelt, parameters)))
