"""`SweepResult`: the table a sweep gives back, its best point, its picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import pandas as pd

import marketdata as md
from algorithms import performance
from algorithms.errors import AlgorithmError
from algorithms.metrics import METRICS
from algorithms.params import Value
from algorithms.rendering import SIMULATED, value_text
from algorithms.result import BacktestResult
from algorithms.run_record import BacktestRun
from algorithms.sweeping.deflation import deflated_sharpe
from algorithms.sweeping.grid import Point
from algorithms.sweeping.job import MOMENTS, Job, Outcome, Task

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_SHOWN: Final = ("return", "sharpe", "deflated_sharpe", "max_drawdown", "trades")
_ROWS: Final = 8
_LUCK: Final = 0.95


class SweepResult:
    """What a sweep found: one row a point, and how far to believe the best of them.

    Attributes
    ----------
    metrics : tuple of str
        What was asked for; the first decides.
    parameters : tuple of str
        What was swept.
    seconds : float
        How long it took, reading included.
    resumed : int
        Points that were in the store already.
    """

    def __init__(
        self,
        job: Job,
        points: Sequence[Point],
        outcomes: Mapping[int, Outcome],
        metrics: Sequence[str],
        *,
        grid: Sequence[str],
        seconds: float = 0.0,
        resumed: int = 0,
        span: int = 0,
    ) -> None:
        self.metrics = tuple(metrics)
        self.parameters = tuple(grid)
        self.seconds = seconds
        self.resumed = resumed
        self._job = job
        self._span = span
        self._points = tuple(points)
        self._outcomes = dict(outcomes)

    # ------------------------------------------------------------------------------- tables

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row a point, in the order of the grid, by ``point``.

        The parameters, the metrics that were asked for, ``deflated_sharpe``, all other metrics
        (see `metrics.METRICS`; fractions are fractions), ``skewness``, ``kurtosis`` and number
        (``observations``) of the returns, and ``error``: empty, or why the point failed. NaN
        where a figure is not defined; points that were never run are left out.
        """
        numbers = sorted(self._outcomes)
        rows = [self._outcomes[number] for number in numbers]
        columns: dict[str, Any] = {
            name: [self._points[number][name] for number in numbers] for name in self.parameters
        }
        own = [name for name in self.metrics if name not in METRICS]
        figures = dict.fromkeys([*self.metrics, "deflated_sharpe", *METRICS, *own, *MOMENTS])
        for name in figures:
            columns[name] = np.array(
                [row.figures.get(name, math.nan) for row in rows], dtype=np.float64
            )
        columns["error"] = pd.array([row.error for row in rows], dtype="str")
        frame = pd.DataFrame(columns, index=pd.Index(numbers, name="point", dtype=np.int64))
        frame["deflated_sharpe"] = self._deflated(frame)
        return frame

    @property
    def metric(self) -> str:
        """The name of the metric that decides."""
        return self.metrics[0]

    @property
    def tried(self) -> int:
        """How many points were run: what a best one must be judged against."""
        return len(self._outcomes)

    @cached_property
    def failed(self) -> pd.DataFrame:
        """The points that raised, with their errors."""
        frame = self.frame
        return frame.loc[frame["error"] != "", [*self.parameters, "error"]]

    @property
    def simulated(self) -> bool:
        """Whether any price came from the sandbox."""
        return self._job.market.origin.simulated

    @property
    def fingerprint(self) -> str:
        """What data it was: equal for equal data."""
        return self._job.market.origin.fingerprint

    # -------------------------------------------------------------------------- the best one

    def best(self, metric: str | None = None, *, smallest: bool = False) -> pd.Series[Any]:
        """Return the row of the point with the highest value of a metric.

        The earliest of equals in the order of the grid.

        Parameters
        ----------
        metric : str, optional
            A column of `frame`; by default the one that was asked for.
        smallest : bool
            The lowest value instead, as of a volatility.

        Raises
        ------
        AlgorithmError
            No point has a value.
        """
        values = self._column(metric)
        known = values.dropna()
        if known.empty:
            errors = self.failed["error"]
            said = f"; the first error: {errors.iloc[0]}" if len(errors) else ""
            raise AlgorithmError(
                f"none of {self.tried:,} points has a value of {values.name}{said}",
                cure="look at the columns error and trades of `frame`",
            )
        at = known.idxmin() if smallest else known.idxmax()
        row: pd.Series[Any] = self.frame.loc[cast(int, at)]  # type: ignore[assignment]
        return row

    def best_point(self, metric: str | None = None, *, smallest: bool = False) -> dict[str, Value]:
        """Return the parameters of the best point: ``MyStrategy(**result.best_point())``."""
        number = cast(int, self.best(metric, smallest=smallest).name)
        return dict(self._points[number])

    def backtest(self, point: Mapping[str, Value] | int | None = None) -> BacktestResult:
        """Run one point again and return all of it: trades, account, picture.

        Parameters
        ----------
        point : mapping or int, optional
            Parameters, or a row of `frame`; by default the best one.
        """
        if point is None:
            point = self.best_point()
        elif not isinstance(point, Mapping):
            point = self._points[point]
        record = self._job.record(Task(0, self._span, point))
        return BacktestResult(record, risk_free=self._job.risk_free)

    def measure(self, metric: str, record: BacktestRun) -> float:
        """Return what one of the metrics of the sweep says of a run."""
        return self._job.measured(record).get(metric, math.nan)

    def _column(self, metric: str | None) -> pd.Series[float]:
        name = metric or self.metric
        if name not in self.frame.columns or name == "error":
            raise md.RequestError(
                f"the sweep has no metric {name!r}",
                cure="one of: " + ", ".join(self.frame.columns.drop("error")),
            )
        found: pd.Series[float] = self.frame[name]
        return found

    def _deflated(self, frame: pd.DataFrame) -> list[float]:
        """Return each point's deflated Sharpe ratio: the chance that it is more than the luck of
        having tried so many."""
        root = math.sqrt(performance.periods_a_year(self._timeframe))
        sharpes = frame["sharpe"].to_numpy() / root
        known = sharpes[np.isfinite(sharpes)]
        variance = float(known.var(ddof=1)) if len(known) > 1 else 0.0
        return [
            deflated_sharpe(
                float(sharpe), observations=count, skew=skew, kurt=kurt,
                variance=variance, trials=len(known),
            )
            for sharpe, skew, kurt, count in zip(
                sharpes, *(frame[name] for name in MOMENTS), strict=True
            )
        ]  # fmt: skip

    @property
    def _timeframe(self) -> str:
        given = self._job.given.get("timeframe", self._job.kind.timeframe)
        return str(md.Timeframe.parse(given))

    # ----------------------------------------------------------------------------- pictures

    def heatmap(
        self,
        x: str | None = None,
        y: str | None = None,
        metric: str | None = None,
        *,
        aggregate: str = "max",
        path: str | Path | None = None,
        show: bool | None = None,
    ) -> Figure:
        """Draw a metric over two parameters; with one parameter, as a line.

        Parameters
        ----------
        x, y : str, optional
            Parameters; by default the first two of the grid with several values.
        metric : str, optional
            A column of `frame`; by default the one that was asked for.
        aggregate : str
            What a cell shows where further parameters were swept: ``max``, ``median``, ``mean``
            or ``min`` of its points. A best point whose neighbours are poor is luck; the median
            shows it.
        path : str or Path, optional
            Also write one self-contained HTML file.
        show : bool, optional
            Whether to open the figure at once.

        Raises
        ------
        md.MissingDependencyError
            plotly is not installed; names the pip line.
        md.RequestError
            A parameter, a metric or an aggregate that there is not.
        """
        from algorithms.sweep_chart import heatmap

        figure = heatmap(self, x, y, metric, aggregate)
        if path is not None:
            figure.write_html(path, include_plotlyjs=True, config={"displaylogo": False})
        if show:
            figure.show()
        return figure

    @property
    def title(self) -> str:
        """What ran on what."""
        symbols = self._job.given.get("symbols", self._job.kind.symbols)
        named = ", ".join(symbols[:3]) + (f" and {len(symbols) - 3} more" if symbols[3:] else "")
        name = self._job.given.get("name") or self._job.kind.__name__
        return f"{name} on {named}, {self._timeframe} bars"

    # -------------------------------------------------------------------------------- words

    def __str__(self) -> str:
        lines = [self._heading(), self._counted(), ""]
        table = self._top()
        if len(table):
            lines.append(table.to_string(index=False))
        lines += ["", *self._notes()]
        return "\n".join(lines).rstrip()

    def __repr__(self) -> str:
        return f"<SweepResult {self.title}: {self.tried:,} points>"

    def _repr_html_(self) -> str:
        mark = f'<b style="color:#b3261e">{SIMULATED}</b> ' if self.simulated else ""
        notes = "".join(f"<div>{escape(note)}</div>" for note in self._notes())
        table = self._top().to_html(index=False, border=0, escape=True, justify="right")
        table = table.replace("<table", '<table style="text-align:right"', 1)
        return (
            '<div style="font:13px system-ui,sans-serif">'
            f"<div>{mark}<b>{escape(self.title)}</b></div>"
            f'<div style="color:#5f6b7a">{escape(self._counted())}</div>{table}{notes}</div>'
        )

    def _heading(self) -> str:
        return (f"{SIMULATED} prices: not a market's\n" if self.simulated else "") + self.title

    def _counted(self) -> str:
        parts = [f"{self.tried:,} points tried in {self.seconds:.3g} s"]
        if self.resumed:
            parts.append(f"{self.resumed:,} of them earlier")
        if self.tried < len(self._points):
            parts.append(f"{len(self._points) - self.tried:,} not run")
        if len(self.failed):
            parts.append(f"{len(self.failed):,} failed")
        return ", ".join(parts)

    def _top(self) -> pd.DataFrame:
        """Return the best points as text, best first."""
        names = list(dict.fromkeys([*self.metrics, *_SHOWN]))
        ranked = self.frame.sort_values(self.metric, ascending=False, kind="stable").head(_ROWS)
        ranked = ranked[ranked[self.metric].notna()]
        table = ranked[list(self.parameters)].astype(str)
        for name in names:
            unit = METRICS[name].unit if name in METRICS else "ratio"
            table[name] = [value_text(float(value), unit) for value in ranked[name]]
        return table

    def _notes(self) -> list[str]:
        notes = []
        found = self.frame["sharpe"].dropna()
        if len(found) > 1:
            chance = float(self.best("sharpe")["deflated_sharpe"])
            believed = "may well be luck" if chance < _LUCK else "is more than that"
            notes.append(
                f"The best Sharpe ratio of {len(found):,} tried, {found.max():.2f}, {believed}: "
                f"deflated {chance:.2f} (0.95 is usually asked for)."
            )
        for text, group in self.failed.groupby("error"):
            if len(notes) < 4:
                notes.append(f"{len(group):,} failed: {text}")
        return [*notes, *(f"warning: {text}" for text in self._job.market.origin.warnings[:5])]
