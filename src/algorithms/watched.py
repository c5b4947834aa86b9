"""One series as one strategy follows it: a cursor, its lines, and the arrays they read."""

from __future__ import annotations

import itertools
import operator
from typing import TYPE_CHECKING, Any

from algorithms.blotter import Bar
from algorithms.context import SymbolView
from algorithms.hours import delay_of
from algorithms.lines import Cursor, Floats, Int64s, Line
from algorithms.market import MarketData
from algorithms.series import COLUMNS, Series
from algorithms.studies import Study

if TYPE_CHECKING:
    from algorithms.engine import Engine


class Watched:
    """One series as one strategy follows it: a cursor, its lines, and what to bind them to."""

    __slots__ = ("bar", "bound", "cursor", "delay", "epoch", "lines", "series", "studies", "view")

    def __init__(self, series: Series, studies: list[Study], engine: Engine) -> None:
        self.series = series
        self.studies = studies
        self.delay = delay_of(series.timeframe, engine.timeframe)
        self.cursor = Cursor(series.symbol)
        self.epoch = -1
        names = [*COLUMNS, *(alias for study in studies for alias in study.aliases)]
        self.lines = {name: Line(self.cursor) for name in names}
        self.view = SymbolView(series.symbol, series.timeframe, self.cursor, engine)
        self.view._lines = self.lines
        self.view.__dict__.update(self.lines)
        self.bar = Bar((), [])
        self.bound: tuple[Any, ...] = ()

    def bind(self, market: MarketData, epoch: int) -> None:
        """Read the series' arrays from now on, scaled as of this epoch."""
        series = self.series
        self.epoch = epoch
        columns, closes = series.columns(epoch), self.closes
        values = [market.studies.values(study, series, epoch) for study in self.studies]
        bound = (columns, series.raw, series.labels, closes, *itertools.chain(*values))
        if len(bound) == len(self.bound) and all(map(operator.is_, bound, self.bound)):
            # Bars were added within the arrays' room: live, that is nearly always.
            self.cursor.next = self.cursor.closes[self.cursor.at]
            return
        self.bound = bound
        for row, name in enumerate(COLUMNS):
            self.lines[name].bind(columns[row])
        for study, arrays in zip(self.studies, values, strict=True):
            for alias, array in zip(study.aliases, arrays, strict=True):
                self.lines[alias].bind(array)
        raw = [memoryview(column) for column in series.raw]
        self.bar = Bar(memoryview(series.labels), raw)
        self.cursor.bind(closes)

    @property
    def closes(self) -> Int64s:
        """When each bar can be seen; `NEVER` after the last."""
        return self.series.seen_at(self.delay)

    @property
    def indicators(self) -> list[Floats]:
        """The values of all studies, as bound."""
        return [self.lines[alias]._array for study in self.studies for alias in study.aliases]
