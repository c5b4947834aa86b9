"""`Algorithm`: what an author writes. The engine calls its hooks; it never calls the engine."""

from __future__ import annotations

import difflib
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import marketdata as md
from algorithms.errors import ParameterError
from algorithms.params import Param, Value

if TYPE_CHECKING:
    from algorithms.context import Context
    from algorithms.orders import Fill

OwnIndicator = Callable[..., Any]
IndicatorSpec = str | OwnIndicator | tuple[OwnIndicator, int]
"""A name that `md.get_indicators` knows, an author's own function, or one with its look-back."""

_SETTINGS = ("symbols", "timeframe", "timeframes", "name", "fractional", "adjustment", "session")
_WORDS = {
    "adjustment": ("raw", "split", "dividend", "all"),
    "session": ("regular", "extended"),
}


class Algorithm:
    """A strategy. Subclass it, say what it watches, and write `on_bar`.

    The same class runs over the past (`algorithms.backtest`) and live (``marketdata algo run``).

    >>> class Momentum(Algorithm):
    ...     symbols = ["AAPL"]
    ...     indicators = {"average": "sma_{length}"}
    ...     length = Param(50, low=2)
    ...
    ...     def on_bar(self, ctx):
    ...         ctx.order_target_percent(1.0 if ctx.close[-1] > ctx.average[-1] else 0.0)
    >>> Momentum(length=20).length
    20

    Attributes
    ----------
    symbols : sequence of str
    timeframe : str
        Of the bars that `on_bar` is called for.
    timeframes : sequence of str
        Further ones to see, as ``ctx["AAPL", "1hour"]``; a bar is there once it has closed.
    indicators : mapping of str to spec, or sequence of str
        What to compute, by the name it is to have in the context. A spec is any name that
        `md.get_indicators` knows, in which ``{length}`` stands for a parameter and to which
        ``@1hour`` adds another timeframe (then it is read at ``ctx["AAPL", "1hour"]``); or a function of your own: it is given the bars as
        arrays (`BarArrays`), by name those of your parameters it asks for, and returns one number
        a bar; ``(function, n)`` says that a value needs the `n` bars before its own and no more.
        An indicator of several outputs has several names: ``macd``, ``macd_signal``.
    adjustment : str
        What the prices and indicators that `on_bar` sees are adjusted for, as of the bar it is
        called at: ``split``, ``all``, ``dividend`` or ``raw``. Orders fill at raw prices always.
    session : str
        ``regular`` or ``extended``.
    fractional : bool
        Whether shares can be broken.
    warm_up : int
        Bars to have before the first `on_bar`, beyond what the indicators need. Where a parameter
        says how many, set it in ``__init__``, after that of the base class.
    state : dict
        JSON-representable; kept over restarts when live. Everything else of an instance is not.
    """

    symbols: Sequence[str] = ()
    timeframe: str = "1day"
    timeframes: Sequence[str] = ()
    indicators: Mapping[str, IndicatorSpec] | Sequence[str] = {}
    adjustment: str = "split"
    session: str = "regular"
    fractional: bool = False
    warm_up: int = 0
    name: str = ""
    state: dict[str, Any]

    _params: ClassVar[dict[str, Param]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        found: dict[str, Param] = {}
        for base in reversed(cls.__mro__):
            for name, value in vars(base).items():
                if isinstance(value, Param):
                    found[name] = value
                elif name in found:
                    # A subclass gives an inherited parameter another default.
                    found[name] = _inherited(found[name], name, value)
        cls._params = found

    def __init__(self, **given: Any) -> None:
        for name in _SETTINGS:
            if name in given:
                setattr(self, name, given.pop(name))
        for name, words in _WORDS.items():
            if getattr(self, name) not in words:
                raise ParameterError(
                    f"{name}={getattr(self, name)!r} of {type(self).__name__} is not known",
                    cure="use one of: " + ", ".join(words),
                )
        self.symbols = tuple(dict.fromkeys(_several(self.symbols)))
        self.timeframes = tuple(dict.fromkeys(_several(self.timeframes)))
        self.name = self.name or type(self).__name__
        self.state = {}
        unknown = [name for name in given if name not in self._params]
        if unknown:
            raise _unknown(type(self), unknown[0])
        for name, param in self._params.items():
            self.__dict__[name] = param.check(given.get(name, param.default))

    # ------------------------------------------------------------------------------ the hooks

    def on_start(self, ctx: Context) -> None:
        """Called once before the first bar; live also after each restart, with positions, open
        orders and `state` as they were. What it orders after a restart is not sent again, and
        `state` keeps what it held: a restart changes nothing of what is traded."""

    def on_bar(self, ctx: Context) -> None:
        """Called at each moment at which a bar of `timeframe` closes for at least one symbol."""

    def on_fill(self, ctx: Context, fill: Fill) -> None:
        """Called for each fill, before `on_bar` of the bar it happened in.

        Everything that the symbol's orders did in that bar is booked by then; what is ordered here
        waits for the next bar.
        """

    def on_stop(self, ctx: Context) -> None:
        """Called once after the last bar. Orders given here are not sent."""

    # ------------------------------------------------------------------- what the engine reads

    @classmethod
    def declared(cls) -> dict[str, Param]:
        """Return the parameters of the class, by name."""
        return dict(cls._params)

    @property
    def params(self) -> dict[str, Value]:
        """The values of the parameters, by name."""
        return {name: self.__dict__[name] for name in self._params}

    def indicator_specs(self) -> dict[str, tuple[IndicatorSpec, str]]:
        """Return each indicator's spec, parameters filled in, and its timeframe."""
        given = self.indicators
        named = given if isinstance(given, Mapping) else {}
        found: dict[str, tuple[IndicatorSpec, str]] = {}
        for alias, spec in named.items():
            found[alias] = self._placed(spec)
        for spec in () if isinstance(given, Mapping) else _several(given):
            placed = self._placed(spec)
            alias = placed[0] if isinstance(placed[0], str) else _name_of(placed[0])
            if alias in found:
                raise ParameterError(
                    f"two indicators of {type(self).__name__} are called {alias!r}",
                    cure='give each its own name: indicators = {"slow": "sma_20@1day", ...}',
                )
            found[alias] = placed
        return found

    def _placed(self, spec: IndicatorSpec) -> tuple[IndicatorSpec, str]:
        """Return a spec, parameters filled in, without its timeframe, and that."""
        if not isinstance(spec, str):
            return spec, self.timeframe
        name, _, timeframe = self._filled(spec).partition("@")
        return name, timeframe or self.timeframe

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={value!r}" for name, value in self.params.items())
        return f"{type(self).__name__}({inner})"

    def _filled(self, spec: str) -> str:
        wanted = [field for _, field, _, _ in string.Formatter().parse(spec) if field is not None]
        missing = [field for field in wanted if field not in self._params]
        if missing:
            raise ParameterError(
                f"the indicator {spec!r} asks for a parameter {missing[0]!r} that "
                f"{type(self).__name__} does not have",
                cure=f"declare it in the class: {missing[0] or 'length'} = Param(14)",
            )
        return spec.format(**self.params)


def _several(given: Any) -> Iterable[Any]:
    """Return what was given as several; a single word is one of them, None is nothing."""
    if given is None:
        return ()
    return (given,) if isinstance(given, str) else given


def _name_of(spec: Any) -> str:
    function = spec[0] if isinstance(spec, tuple) else spec
    return getattr(function, "__name__", repr(function))


def _inherited(param: Param, name: str, default: object) -> Param:
    changed = Param(
        param.check(default),
        low=param.low,
        high=param.high,
        choices=param.choices,
        about=param.about,
    )
    changed.name = name
    return changed


def _unknown(owner: type[Algorithm], name: str) -> md.MarketDataError:
    known = [*owner.declared(), *_SETTINGS]
    near = difflib.get_close_matches(name, known, 1)
    return ParameterError(
        f"{owner.__name__} has no parameter {name!r}",
        cure=f"did you mean {near[0]!r}?" if near else "it has: " + ", ".join(known),
    )
