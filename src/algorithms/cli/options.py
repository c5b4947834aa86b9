"""The options that ``algo`` commands share, and what their words mean."""

from __future__ import annotations

import contextlib
import difflib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from algorithms.errors import AlgorithmError, ParameterError
from marketdata.cli.options import symbols_of
from marketdata.cli.output import Output
from marketdata.errors import RequestError

if TYPE_CHECKING:
    from algorithms.algorithm import Algorithm
    from algorithms.costs import Fees, Slippage
    from algorithms.params import Param, Value
    from marketdata.client import Client

_WHAT = "What runs"
_WHEN = "On what bars (2 years by default, 3 months of intraday bars)"
_MONEY = "With what money"
DAILY_PERIOD: Final = "2y"
INTRADAY_PERIOD: Final = "3mo"

Strategy = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help="FILE.py, FILE.py:Class, package.module:Class, or a name of the catalogue: sma_cross.",
    ),
]
Params = Annotated[
    list[str] | None,
    typer.Option(
        "--param", "-p", metavar="NAME=VALUE", help="A parameter; repeatable.",
        rich_help_panel=_WHAT,
    ),
]  # fmt: skip
SymbolsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--symbols", "-s", metavar="SYMBOLS", help="Instead of its own: AAPL,MSFT.",
        rich_help_panel=_WHAT,
    ),
]  # fmt: skip
TimeframeOption = Annotated[
    str | None,
    typer.Option(
        "--timeframe", "-t", help="Instead of its own: 1min 5min 1hour 1day.",
        rich_help_panel=_WHAT,
    ),
]  # fmt: skip
SessionOption = Annotated[
    str | None,
    typer.Option(
        "--session", metavar="HOURS", help="regular or extended, instead of its own.",
        rich_help_panel=_WHAT,
    ),
]  # fmt: skip
Start = Annotated[
    str | None,
    typer.Option(
        "--start", metavar="WHEN", help="First bar: 2024-01-31, -5d, an instant.",
        rich_help_panel=_WHEN,
    ),
]  # fmt: skip
End = Annotated[
    str | None,
    typer.Option(
        "--end", metavar="WHEN", help="Exclusive end; now by default.", rich_help_panel=_WHEN
    ),
]
Period = Annotated[
    str | None,
    typer.Option(
        "--period", metavar="LENGTH", help="Instead of --start: 5d 1mo 6mo 1y 2y max.",
        rich_help_panel=_WHEN,
    ),
]  # fmt: skip
AsOf = Annotated[
    str | None,
    typer.Option(
        "--as-of", metavar="WHEN", help="What was known then: bars, revisions, actions.",
        rich_help_panel=_WHEN,
    ),
]  # fmt: skip
Cash = Annotated[float, typer.Option("--cash", help="What it begins with.", rich_help_panel=_MONEY)]
FeesOption = Annotated[
    str | None,
    typer.Option(
        "--fees", metavar="WORDS", rich_help_panel=_MONEY,
        help="none, 0.1%, 0.005/share, 0.005/share,1 (at least 1 a fill).",
    ),
]  # fmt: skip
SlippageOption = Annotated[
    str | None,
    typer.Option(
        "--slippage", metavar="WORDS", rich_help_panel=_MONEY,
        help="none, 2bp (1bp by default), volume, volume:0.025:0.1 (share of a bar, impact).",
    ),
]  # fmt: skip
Leverage = Annotated[
    float,
    typer.Option("--leverage", help="Positions over equity, at most.", rich_help_panel=_MONEY),
]


# --------------------------------------------------------------------------------- strategies


def strategy_of(
    where: str,
    params: Sequence[str] | None,
    symbols: Sequence[str] | None,
    timeframe: str | None,
    session: str | None,
) -> Algorithm:
    """Return the strategy that a command line describes."""
    from algorithms.loader import find_algorithm

    kind = find_algorithm(where)
    values = {name: param.read(text) for name, param, text in given_params(kind, params)}
    return made(kind, values, symbols, timeframe, session)


def made(
    kind: type[Algorithm],
    values: Mapping[str, Value],
    symbols: Sequence[str] | None,
    timeframe: str | None,
    session: str | None,
) -> Algorithm:
    """Return a strategy with these values, and with what a command line says instead of its own."""
    settings: dict[str, Any] = {}
    if symbols:
        settings["symbols"] = tuple(dict.fromkeys(s.upper() for s in symbols_of(list(symbols))))
    if timeframe is not None:
        settings["timeframe"] = timeframe
    if session is not None:
        settings["session"] = session
    algorithm = kind(**settings, **values)
    if not algorithm.symbols:
        raise AlgorithmError(f"{kind.__name__} watches no symbols", cure="say --symbols AAPL,MSFT")
    return algorithm


def given_params(
    kind: type[Algorithm], words: Sequence[str] | None
) -> Iterator[tuple[str, Param, str]]:
    """Yield the name, the parameter and the text of each ``NAME=VALUE``."""
    declared = kind.declared()
    for word in words or ():
        name, sign, text = word.partition("=")
        name = name.strip()
        if not sign:
            raise ParameterError(f"--param {word!r}", cure="write --param NAME=VALUE")
        if name not in declared:
            near = difflib.get_close_matches(name, declared, 1)
            has = ", ".join(declared) or "none"
            raise ParameterError(
                f"{kind.__name__} has no parameter {name!r}",
                cure=f"did you mean {near[0]!r}?" if near else f"it has {has}",
            )
        yield name, declared[name], text.strip()


# ------------------------------------------------------------------------------------ windows


def start_of(
    client: Client,
    algorithm: Algorithm,
    start: str | None,
    end: str | None,
    period: str | None,
) -> Any:
    """Return where a run begins: what was said, or the first session of a period.

    A period is counted in sessions as `md.get_bars` counts it; daily bars tell them.
    """
    from marketdata import MarketDataWarning, Timeframe

    if start is not None and period is not None:
        raise RequestError("--start and --period both say where to begin", cure="give one of them")
    if start is not None:
        return start
    intraday = Timeframe.parse(algorithm.timeframe).intraday
    length = period or (INTRADAY_PERIOD if intraday else DAILY_PERIOD)
    with warnings.catch_warnings():
        # Whoever reads the bars that run says so again.
        warnings.simplefilter("ignore", MarketDataWarning)
        days = client.get_bars(
            list(algorithm.symbols), "1day", period=length, end=end, missing="skip", field="close",
            adjustment="raw", tz="exchange",
        )  # fmt: skip
    if not len(days):
        raise AlgorithmError(
            f"no bars of {', '.join(algorithm.symbols[:8])} in {length}",
            cure="ask for another --period, or say --start",
        )
    first = days.index[0]
    return f"{first:%Y-%m-%d}"


# -------------------------------------------------------------------------------------- money


def fees_of(words: str | None) -> Fees | None:
    """Return the fees that words mean; None where nothing was said."""
    from algorithms.costs import NoFees, Percent, PerShare

    if words is None:
        return None
    text, _, least = words.strip().lower().partition(",")
    cure = "give none, 0.1%, 0.005/share or 0.005/share,1"
    minimum = _number(least, f"--fees {words!r}", cure) if least else 0.0
    if text == "none" and not least:
        return NoFees()
    if text.endswith("%"):
        return Percent(_number(text[:-1], f"--fees {words!r}", cure) / 100, minimum)
    if text.endswith("/share"):
        return PerShare(_number(text.removesuffix("/share"), f"--fees {words!r}", cure), minimum)
    raise RequestError(f"--fees {words!r} is not known", cure=cure)


def slippage_of(words: str | None) -> Slippage | None:
    """Return the slippage that words mean; None where nothing was said."""
    from algorithms.costs import BasisPoints, NoSlippage, VolumeShare

    if words is None:
        return None
    text = words.strip().lower()
    cure = "give none, 2bp, volume or volume:0.025:0.1"
    if text == "none":
        return NoSlippage()
    if text.endswith("bp"):
        return BasisPoints(_number(text.removesuffix("bp"), f"--slippage {words!r}", cure))
    name, *numbers = text.split(":")
    if name == "volume" and len(numbers) <= 2:
        return VolumeShare(*(_number(n, f"--slippage {words!r}", cure) for n in numbers))
    raise RequestError(f"--slippage {words!r} is not known", cure=cure)


def _number(text: str, what: str, cure: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise RequestError(f"{what}: {text!r} is no number", cure=cure) from None
    if not 0 <= value < float("inf"):
        raise RequestError(f"{what}: {text!r} is below 0 or endless", cure=cure)
    return value


# -------------------------------------------------------------------------------------- files


@contextlib.contextmanager
def writing(out: Output, path: Path) -> Iterator[None]:
    """Say that a file was written, or why it could not be."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RequestError(f"cannot write {path}: {error.strerror or error}") from None
    out.note(f"wrote {path}")
