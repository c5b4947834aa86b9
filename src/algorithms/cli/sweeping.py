"""``marketdata algo sweep``: a strategy at every point of a grid of parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from algorithms.cli.faults import telling
from algorithms.cli.options import (
    AsOf,
    Cash,
    End,
    FeesOption,
    Leverage,
    Period,
    SessionOption,
    SlippageOption,
    Start,
    Strategy,
    SymbolsOption,
    TimeframeOption,
    fees_of,
    given_params,
    made,
    slippage_of,
    start_of,
    writing,
)
from algorithms.errors import ParameterError
from marketdata.cli.exits import DONE, INCOMPLETE
from marketdata.cli.options import ALL, command

if TYPE_CHECKING:
    from algorithms.algorithm import Algorithm
    from algorithms.params import Param, Value
    from marketdata.cli.output import Output
    from marketdata.config import Settings

_WHERE: Final = "How, and where to"
MOST_VALUES: Final = 100_000
"""Of one parameter: more is a slip of the pen."""


def register(app: typer.Typer) -> None:
    command(app, "sweep", ALL)(telling(sweep))


def sweep(
    out: Output,
    settings: Settings,
    strategy: Strategy,
    params: Annotated[
        list[str] | None,
        typer.Option(
            "--param",
            "-p",
            metavar="NAME=VALUES",
            help="5,10,20 or 5:50:5 (first, last, step: both ends are tried); repeatable.",
            rich_help_panel="What runs",
        ),
    ] = None,
    symbols: SymbolsOption = None,
    timeframe: TimeframeOption = None,
    session: SessionOption = None,
    start: Start = None,
    end: End = None,
    period: Period = None,
    as_of: AsOf = None,
    cash: Cash = 100_000.0,
    fees: FeesOption = None,
    slippage: SlippageOption = None,
    leverage: Leverage = 1.0,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="CONDITION", help='Which points to try: "fast < slow".', rich_help_panel=_WHERE
        ),
    ] = None,
    metric: Annotated[
        str, typer.Option(help="What points are judged by.", rich_help_panel=_WHERE)
    ] = "sharpe",
    sample: Annotated[
        int | None,
        typer.Option(min=1, help="No more than N points, at random.", rich_help_panel=_WHERE),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes; one a core by default.", rich_help_panel=_WHERE),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            help="Keep finished points in this file, and go on from it.", rich_help_panel=_WHERE
        ),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(help="Write all points as CSV.", rich_help_panel=_WHERE)
    ] = None,
    heatmap: Annotated[
        Path | None,
        typer.Option(help="Write a picture: one HTML file.", rich_help_panel=_WHERE),
    ] = None,
) -> int:
    """Run a strategy at every point of a grid, over all cores, and print the best points.

    For example: marketdata algo sweep sma_cross -p fast=5:50:5 -p slow=50,100,200
    """
    from algorithms import loader
    from algorithms.sweep import sweep as run_sweep
    from marketdata.client import Client

    kind = loader.find_algorithm(strategy)
    grid: dict[str, list[Value]] = {}
    fixed: dict[str, Value] = {}
    for name, param, text in given_params(kind, params):
        values = values_of(param, text)
        if len(values) > 1:
            grid[name] = values
        else:
            fixed[name] = values[0]
    if not grid:
        raise ParameterError(
            "nothing to sweep over",
            cure=f"give values: {_example(kind)}",
        )
    algorithm = made(kind, fixed, symbols, timeframe, session)
    with Client(settings) as client:
        try:
            result = run_sweep(
                algorithm,
                grid,
                start=start_of(client, algorithm, start, end, period),
                end=end,
                metric=metric,
                where=condition_of(where, kind),
                sample=sample,
                cash=cash,
                fees=fees_of(fees),
                slippage=slippage_of(slippage),
                leverage=leverage,
                workers=workers,
                store=store,
                client=client,
                as_of=as_of,
            )
        except KeyboardInterrupt as stopped:
            done = getattr(stopped, "result", None)
            if done is not None and done.tried:
                out.line(str(done))
                if store is not None:
                    out.note(f"{store} keeps {done.tried:,} points: the same command goes on")
            raise
    frame = result.frame
    out.rows({"point": point, **dict(row)} for point, row in frame.iterrows())
    out.line(str(result))
    if csv is not None:
        with writing(out, csv):
            frame.to_csv(csv)
    if heatmap is not None:
        with writing(out, heatmap):
            result.heatmap().write_html(heatmap, include_plotlyjs=True)
    failed = len(result.failed)
    known = bool(frame[result.metric].notna().any())
    return out.done(
        INCOMPLETE if failed else DONE,
        algorithm=algorithm.name,
        symbols=list(algorithm.symbols),
        points=result.tried,
        failed=failed,
        resumed=result.resumed,
        metric=result.metric,
        best=result.best_point() if known else None,
        figures=dict(result.best().drop("error")) if known else None,
        seconds=round(result.seconds, 3),
        fingerprint=result.fingerprint,
        simulated=result.simulated,
        written=[path for path in (csv, heatmap) if path is not None],
    )


def values_of(param: Param, text: str) -> list[Value]:
    """Return the values of a parameter that ``5,10,20`` or ``5:50:5`` say, in that order."""
    found: list[Value] = []
    for part in text.split(","):
        first, *rest = part.split(":")
        if rest and param.type in (int, float):
            found += _range(param, part, first, rest)
        else:
            found.append(param.read(part.strip() if param.type is not str else part))
    return list(dict.fromkeys(found))


def _range(param: Param, part: str, first: str, rest: Sequence[str]) -> list[Value]:
    try:
        low, high, step = (float(n) for n in (first, rest[0], rest[1] if len(rest) > 1 else "1"))
    except ValueError:
        low = high = step = 0.0
    if len(rest) > 2 or not step > 0 or not high >= low:
        raise ParameterError(
            f"{param.name}={part}", cure="write FIRST:LAST:STEP, such as 5:50:5, the last not below"
        )
    count = int((high - low) / step + 1e-9) + 1
    if count > MOST_VALUES:
        raise ParameterError(f"{param.name}={part} has {count:,} values", cure="take a longer step")
    # Rounded: 0.1 + 2 * 0.1 is 0.3 to whoever reads the table.
    numbers = [round(low + n * step, 12) for n in range(count)]
    return [
        param.read(f"{n:.0f}" if param.type is int and n == int(n) else str(n)) for n in numbers
    ]


def condition_of(text: str | None, kind: type[Algorithm]) -> Callable[[Any], bool] | None:
    """Return a condition on points as a function; parameters are its names."""
    if text is None:
        return None
    try:
        code = compile(text, "--where", "eval")
    except SyntaxError as error:
        raise ParameterError(
            f"--where {text!r} is no condition: {error.msg}", cure='write one like "fast < slow"'
        ) from None
    known = kind.declared()
    unknown = [name for name in code.co_names if name not in known and name not in _NAMES]
    if unknown:
        raise ParameterError(
            f"--where {text!r} asks for {unknown[0]!r}", cure="it has " + ", ".join(known)
        )

    def condition(point: Any) -> bool:
        values = {name: getattr(point, name) for name in known if hasattr(point, name)}
        # The command line is its user's own, as the strategy's file is.
        return bool(eval(code, {"__builtins__": _NAMES}, values))  # noqa: S307

    return condition


_NAMES: Final = {"abs": abs, "min": min, "max": max, "round": round}


def _example(kind: type[Algorithm]) -> str:
    for name, param in kind.declared().items():
        if param.type is int:
            base = int(param.default)
            return f"-p {name}={base}:{base * 3}:{max(1, base // 2)}"
    return "-p NAME=1,2,3"
