"""One sweep's work: what every point of it has in common, and how one point is run.

A job is made once, by whoever sweeps, and copied once to each process that helps.
"""

from __future__ import annotations

import copy
import math
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from algorithms.algorithm import Algorithm
from algorithms.backtest import run
from algorithms.blotter import Costs
from algorithms.engine import Limits
from algorithms.market import MarketData, SeriesName
from algorithms.metrics import METRICS, Figures
from algorithms.params import Value
from algorithms.result import BacktestResult
from algorithms.run_record import BacktestRun
from algorithms.series import Series
from algorithms.studies import StudyBook
from algorithms.sweeping.deflation import kurtosis, skewness
from algorithms.sweeping.fingerprint import is_library

Measure = Callable[[BacktestResult], float]

MOMENTS: Final = ("skewness", "kurtosis", "observations")
"""What `deflated_sharpe` needs of each point beside its Sharpe ratio."""

_ALL_BOOKS: Final = 1 << 30
"""Bytes of indicators that all processes of one machine keep together, for points to come."""
_LEAST_BOOK: Final = 32 << 20
_ROOMS: Final = 2


class Span(NamedTuple):
    """A window: `on_bar` is called at moments in ``[since, until]``, microseconds UTC."""

    since: int
    until: int


class Task(NamedTuple):
    """One run: its number in the sweep, the window of the job, and the parameters."""

    number: int
    span: int
    point: Mapping[str, Value]


class Outcome(NamedTuple):
    """What came of a task: figures by name, or why there are none."""

    number: int
    figures: dict[str, float]
    error: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Job:
    """What all runs of a sweep share.

    Attributes
    ----------
    id : str
        Of this sweep alone.
    kind : type
        The strategy's class.
    given : mapping
        Its parameters and settings, where a point does not say otherwise.
    market : MarketData
    spans : tuple of Span
    cut : bool
        Whether what lies after a span's end is taken away before its runs, so that not even an
        author's own indicator can see it.
    measures : mapping of str to callable
        The author's own metrics.
    """

    id: str
    kind: type[Algorithm]
    given: Mapping[str, Any]
    market: MarketData
    spans: tuple[Span, ...]
    cut: bool = False
    cash: float = 100_000.0
    costs: Costs = field(default_factory=Costs)
    limits: Limits | None = None
    measures: Mapping[str, Measure] = field(default_factory=dict)
    risk_free: float = 0.0

    def algorithm(self, point: Mapping[str, Value]) -> Algorithm:
        """Return the strategy with a point's parameters."""
        return self.kind(**{**self.given, **point})

    def record(self, task: Task, cash: float | None = None) -> BacktestRun:
        """Run a task; what the strategy raises is passed on."""
        span = self.spans[task.span]
        return run(
            self.algorithm(task.point),
            self.room(task.span),
            span.since,
            span.until,
            cash=self.cash if cash is None else cash,
            costs=self.costs,
            limits=copy.deepcopy(self.limits),
        )

    def outcome(self, task: Task) -> Outcome:
        """Run a task and measure it; what the strategy raises becomes its error."""
        began = time.perf_counter()
        try:
            figures, error = self.measured(self.record(task)), ""
        except (Exception, SystemExit) as raised:
            figures, error = {}, told(raised)
        return Outcome(task.number, figures, error, time.perf_counter() - began)

    def measured(self, record: BacktestRun) -> dict[str, float]:
        """Return all figures of a run."""
        figures = Figures(record, risk_free=self.risk_free)
        found = {name: float(metric.of(figures)) for name, metric in METRICS.items()}
        returns = figures.account.returns
        found["skewness"] = skewness(returns)
        found["kurtosis"] = kurtosis(returns)
        found["observations"] = float(len(returns))
        if self.measures:
            result = BacktestResult(record, risk_free=self.risk_free)
            for name, measure in self.measures.items():
                value = measure(result)
                found[name] = math.nan if value is None else float(value)
        return found

    def room(self, span: int) -> MarketData:
        """Return this thread's market of a span: bars are shared, indicators are its own."""
        rooms: OrderedDict[tuple[str, int], MarketData] | None = getattr(_local, "rooms", None)
        if rooms is None:
            rooms = _local.rooms = OrderedDict()
        key = (self.id, span if self.cut else -1)
        room = rooms.get(key)
        if room is None:
            whole = self.market
            series: Mapping[SeriesName, Series] = whole.series
            if self.cut:
                until = self.spans[span].until
                series = {name: _until(one, until) for name, one in whole.series.items()}
            room = MarketData(series, whole.hours, whole.session, whole.origin)
            room.studies = StudyBook(whole.hours, book_bytes(), whole=whole.origin.given)
            rooms[key] = room
            while len(rooms) > _ROOMS:
                rooms.popitem(last=False)
        rooms.move_to_end(key)
        return room


def _until(series: Series, instant: int) -> Series:
    """Return a series without what closes or happens later; its prices are not copied."""
    size = int(np.searchsorted(series.closes[: series.size], instant, side="right"))
    return Series(
        series.symbol,
        series.timeframe,
        series.labels[:size],
        series.closes[:size],
        series.raw[:, :size],
        [step for step in series.steps if step.time <= instant],
        [action for action in series.actions if action.time <= instant],
    )


_local = threading.local()
_sharing = 1


def share_memory_of(processes: int) -> None:
    """Say how many processes of this machine keep indicators at once."""
    global _sharing
    _sharing = max(1, processes)


def book_bytes() -> int:
    return max(_LEAST_BOOK, min(_ALL_BOOKS // 2, _ALL_BOOKS // _sharing))


def forget_rooms() -> None:
    """Let go of the markets and indicators that this thread kept for further points."""
    _local.rooms = OrderedDict()


def told(error: BaseException) -> str:
    """Return what an error says, and the line of the author's code that it came from."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_ours(f)]
    if not frames:
        return text
    return f"{text} ({Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name})"


def _is_ours(frame: traceback.FrameSummary) -> bool:
    """Return whether a line is the engine's, or a library's."""
    directory, path = Path(__file__).parents[1], Path(frame.filename)
    if path.is_relative_to(directory):
        return not path.is_relative_to(directory / "library")
    return is_library(frame.filename)
