"""``marketdata algo check``: does a strategy know in a back-test what it could not have known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from algorithms.cli.faults import telling
from algorithms.cli.options import (
    AsOf,
    Cash,
    End,
    FeesOption,
    Leverage,
    Params,
    Period,
    SessionOption,
    SlippageOption,
    Start,
    Strategy,
    SymbolsOption,
    TimeframeOption,
    fees_of,
    slippage_of,
    start_of,
    strategy_of,
)
from marketdata.cli.exits import DONE, INCOMPLETE
from marketdata.cli.options import ALL, command

if TYPE_CHECKING:
    from marketdata.cli.output import Output
    from marketdata.config import Settings


def register(app: typer.Typer) -> None:
    command(app, "check", ALL)(telling(check))


def check(
    out: Output,
    settings: Settings,
    strategy: Strategy,
    params: Params = None,
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
    cuts: Annotated[
        int | None,
        typer.Option(
            min=1, help="Moments at which later data is taken away; 40, fewer where it is much."
        ),
    ] = None,
) -> int:
    """Look for biases: look-ahead, state between runs, warm-up, survivorship, fills.

    Exit code 0 where there is no bias, 3 where there is one; warnings do not count.

    For example: marketdata algo check my_idea.py --period 3y
    """
    from algorithms import bias
    from marketdata.client import Client

    algorithm = strategy_of(strategy, params, symbols, timeframe, session)
    with Client(settings) as client:
        report = bias.check(
            algorithm,
            start=start_of(client, algorithm, start, end, period),
            end=end,
            cash=cash,
            fees=fees_of(fees),
            slippage=slippage_of(slippage),
            leverage=leverage,
            client=client,
            as_of=as_of,
            cuts=cuts,
        )
    out.line(str(report))
    return out.done(DONE if report.passed else INCOMPLETE, **report.to_dict())
