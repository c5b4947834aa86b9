"""What keeps a store in order, as functions of a runtime; they raise where something failed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from marketdata import sealing
from marketdata.aggregator import Aggregator
from marketdata.backfill import Backfill, Limits, Wanted
from marketdata.cycle_report import CycleReport
from marketdata.errors import MarketDataError
from marketdata.types import Timeframe
from marketdata.verifying import verify as verify_bars
from marketdata.wiring import Runtime

LEASE: Final = 0.6
"""Seconds of a flight's lease: others wait this long for a process that was killed."""


def cycle(runtime: Runtime, symbols: Sequence[str], timeframes: Sequence[str]) -> CycleReport:
    aggregator = Aggregator(
        runtime,
        threading.Event(),
        wanted=lambda: [(s, t) for t in timeframes for s in symbols],
        notify=lambda keys, until: None,
    )
    report = aggregator.cycle()
    if report.failed:
        raise MarketDataError(str(report.failed))
    return report


def seal(runtime: Runtime, symbols: Sequence[str], *, repin: bool) -> None:
    report = sealing.seal(runtime, threading.Event(), symbols=symbols, repin=repin)
    assert not report.failed, report.failed


def unseal(runtime: Runtime, symbol: str, start: int, end: int) -> None:
    report = sealing.unseal(runtime, symbol, Timeframe.MIN_1, start, end)
    assert not report.failed, report.failed


def retain(runtime: Runtime) -> None:
    report = sealing.retain(runtime, threading.Event())
    assert not report.failed, report.failed


def backfill(runtime: Runtime, symbols: Sequence[str], start: str) -> None:
    wanted = Wanted(symbols=tuple(symbols), timeframes=(Timeframe.MIN_1,), start=start)
    report = Backfill(runtime).run(wanted, Limits(max_symbols=0))
    if not report.complete:
        raise MarketDataError(f"backfill: {report}")


def verify(runtime: Runtime, symbols: Sequence[str]) -> None:
    report = verify_bars(runtime, symbols=symbols, sample=3, correct=True)
    if report.failed:
        raise MarketDataError(f"verify: {report.failed}")


JOBS: Final[Mapping[str, Callable[..., Any]]] = {
    each.__name__: each for each in (cycle, seal, unseal, retain, backfill, verify)
}
