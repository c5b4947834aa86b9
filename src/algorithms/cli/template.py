"""``marketdata algo new``: a strategy to start from."""

from __future__ import annotations

import keyword
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from algorithms.cli.faults import telling
from algorithms.errors import StrategyFileError
from marketdata.cli.options import command

if TYPE_CHECKING:
    from marketdata.cli.output import Output

TEMPLATE: Final = '''\
"""{title}: say here in one sentence why this should make money."""

from algorithms import Algorithm, Context, Param, crossed_above, crossed_below


class {name}(Algorithm):
    symbols = ["AAPL"]  # --symbols MSFT,NVDA gives others
    timeframe = "1day"  # on_bar is called when such a bar closes
    # Any indicator that md.get_indicators knows; {{length}} is the parameter below.
    indicators = {{"average": "sma_{{length}}"}}
    length = Param(50, low=2, about="bars of the average")

    def on_bar(self, ctx: Context) -> None:
        # ctx.close[-1] is the newest close, ctx.close[-2] the one before. Orders fill at the next
        # bar's open.
        if crossed_above(ctx.close, ctx.average):
            ctx.order_target_percent(0.98, tag="above the average")
        elif crossed_below(ctx.close, ctx.average):
            ctx.close_position(tag="below the average")
'''


def register(app: typer.Typer) -> None:
    command(app, "new")(telling(new))


def new(
    out: Output,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Of the file: my_idea, or strategies/my_idea.py.")
    ],
) -> int:
    """Write a strategy to start from, and say how to run it. Never overwrites a file.

    For example: marketdata algo new my_idea
    """
    path = Path(name if name.endswith(".py") else f"{name}.py")
    stem = path.stem
    if not stem.isidentifier() or keyword.iskeyword(stem):
        raise StrategyFileError(
            f"{stem!r} cannot be the name of a Python file that is imported",
            cure="use letters, digits and underscores: my_idea",
        )
    title = stem.replace("_", " ").strip().capitalize() or stem
    kind = "".join(part[:1].upper() + part[1:] for part in stem.split("_")) or stem
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(TEMPLATE.format(title=title, name=kind))
    except FileExistsError:
        raise StrategyFileError(
            f"{path} is there already", cure="give another name; nothing was written"
        ) from None
    except OSError as error:
        raise StrategyFileError(
            f"cannot write {path}: {error.strerror or error}", cure="give a place you may write to"
        ) from None
    out.line(f"wrote {path}: the class {kind}")
    out.line()
    for words, what in (
        (
            f"marketdata algo backtest {path} --period 5y --plot {stem}.html",
            "what it would have done",
        ),
        (f"marketdata algo check {path}", "whether it knows the future"),
        (f"marketdata algo sweep {path} -p length=20:200:10", "which parameters"),
        (f"marketdata algo run {path}", "live, with paper money"),
    ):
        out.line(f"  {words:<70}  {what}")
    return out.done(path=str(path), name=kind)
