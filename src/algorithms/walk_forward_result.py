"""`WalkForwardResult`: the tests of all windows as one back-test, and what each window promised."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pandas as pd

from algorithms.hours import EXCHANGE_ZONE
from algorithms.metrics import METRICS, Figures
from algorithms.params import Value
from algorithms.rendering import SIMULATED, value_text
from algorithms.result import BacktestResult
from algorithms.run_record import BacktestRun
from algorithms.sweep_result import SweepResult
from algorithms.sweeping.windows import Window

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_COMPARED: Final = ("return", "cagr", "volatility", "sharpe", "sortino", "max_drawdown", "trades")


class Tested(NamedTuple):
    """One test: the point it was traded with (None: it was not), and the run."""

    point: Mapping[str, Value] | None
    record: BacktestRun


class WalkForwardResult:
    """What choosing parameters by the past would have brought.

    Attributes
    ----------
    sweeps : tuple of SweepResult
        Of each window.
    seconds : float
    """

    def __init__(
        self,
        windows: Sequence[Window],
        sweeps: Sequence[SweepResult],
        tests: Sequence[Tested],
        record: BacktestRun,
        *,
        risk_free: float = 0.0,
        seconds: float = 0.0,
    ) -> None:
        self.sweeps = tuple(sweeps)
        self.seconds = seconds
        self._spans = tuple(windows)
        self._tests = tuple(tests)
        self._record = record
        self._risk_free = risk_free

    # ------------------------------------------------------------------------ what it brought

    @cached_property
    def result(self) -> BacktestResult:
        """All tests one after the other, as one back-test: trades, account, metrics, picture."""
        return BacktestResult(self._record, risk_free=self._risk_free)

    @property
    def equity(self) -> pd.Series[float]:
        """The account over all tests, at each moment."""
        return self.result.equity

    @property
    def metrics(self) -> pd.Series[float]:
        """The figures of all tests together; see `BacktestResult.metrics`."""
        return self.result.metrics

    @property
    def metric(self) -> str:
        """The name of the metric that chose."""
        return self.sweeps[0].metric

    @property
    def parameters(self) -> tuple[str, ...]:
        return self.sweeps[0].parameters

    @property
    def tried(self) -> int:
        """How many runs the choices were made from, in all windows."""
        return sum(swept.tried for swept in self.sweeps)

    # ------------------------------------------------------------------------------- tables

    @cached_property
    def windows(self) -> pd.DataFrame:
        """One row a window, by ``window``.

        ``train_start, train_end, test_start, test_end`` (exchange dates; the end is the last day),
        the parameters chosen (missing where no point had a value), ``in_sample`` and
        ``out_of_sample`` of the metric that chose, and of further metrics ``NAME_in`` and
        ``NAME_out``.
        """
        rows = []
        for window, swept, tested in zip(self._spans, self.sweeps, self._tests, strict=True):
            inside = None if tested.point is None else swept.best()
            outside = self._outside(tested.record)
            row: dict[str, Any] = {
                "train_start": _date(window.train.since),
                "train_end": _date(window.train.until),
                "test_start": _date(window.test.since),
                "test_end": _date(int(tested.record.times[-1]))
                if len(tested.record.times)
                else _date(window.test.until),
            }
            for name in self.parameters:
                row[name] = None if tested.point is None else tested.point[name]
            row["in_sample"] = math.nan if inside is None else float(inside[self.metric])
            row["out_of_sample"] = outside[self.metric]
            for name in _COMPARED:
                row[f"{name}_in"] = math.nan if inside is None else float(inside[name])
                row[f"{name}_out"] = outside[name]
            rows.append(row)
        return pd.DataFrame(rows, index=pd.RangeIndex(len(rows), name="window"))

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row a window and point: `SweepResult.frame` of all windows, by (window, point)."""
        return pd.concat({n: swept.frame for n, swept in enumerate(self.sweeps)}, names=["window"])

    @cached_property
    def degradation(self) -> pd.DataFrame:
        """The mean of each figure over the windows: ``in_sample``, ``out_of_sample``, their
        ``change``. What the choice promised, and what came of it."""
        windows = self.windows
        inside = [float(windows[f"{name}_in"].mean()) for name in _COMPARED]
        outside = [float(windows[f"{name}_out"].mean()) for name in _COMPARED]
        names = list(_COMPARED)
        if self.metric not in names:
            names.insert(0, self.metric)
            inside.insert(0, float(windows["in_sample"].mean()))
            outside.insert(0, float(windows["out_of_sample"].mean()))
        frame = pd.DataFrame(
            {"in_sample": inside, "out_of_sample": outside},
            index=pd.Index(names, name="metric"),
        )
        frame["change"] = frame["out_of_sample"] - frame["in_sample"]
        return frame

    @cached_property
    def efficiency(self) -> float:
        """The annual return of the tests over that of the windows they were chosen on; NaN where
        the windows gained nothing.

        The walk-forward efficiency of Pardo (2008), *The Evaluation and Optimization of Trading
        Strategies*, 2nd ed., ch. 11, who asks for 0.5.
        """
        row: Any = self.degradation.loc["cagr"]
        inside, outside = float(row["in_sample"]), float(row["out_of_sample"])
        return outside / inside if inside > 0 else math.nan

    def _outside(self, record: BacktestRun) -> dict[str, float]:
        names = dict.fromkeys([*_COMPARED])
        figures = Figures(record, risk_free=self._risk_free)
        found = {name: float(METRICS[name].of(figures)) for name in names}
        if self.metric not in found:
            found[self.metric] = self.sweeps[0].measure(self.metric, record)
        return found

    # ----------------------------------------------------------------------------- pictures

    def plot(self, *, path: str | Path | None = None, show: bool | None = None) -> Figure:
        """Draw the account over all tests against buy and hold, and what each window promised
        beside what its test brought.

        Parameters
        ----------
        path : str or Path, optional
            Also write one self-contained HTML file.
        show : bool, optional
            Whether to open the figure at once.

        Raises
        ------
        md.MissingDependencyError
            plotly is not installed; names the pip line.
        """
        from algorithms.sweep_chart import walk_forward_chart

        figure = walk_forward_chart(self)
        if path is not None:
            figure.write_html(path, include_plotlyjs=True, config={"displaylogo": False})
        if show:
            figure.show()
        return figure

    # -------------------------------------------------------------------------------- words

    @property
    def title(self) -> str:
        """What ran on what."""
        return self.sweeps[0].title

    def __str__(self) -> str:
        mark = f"{SIMULATED} prices: not a market's\n" if self.sweeps[0].simulated else ""
        table = self._table().to_string()
        return "\n".join([mark + self.title, self._counted(), "", table, "", *self._notes()])

    def __repr__(self) -> str:
        return f"<WalkForwardResult {self.title}: {len(self._tests)} windows>"

    def _repr_html_(self) -> str:
        mark = f'<b style="color:#b3261e">{SIMULATED}</b> ' if self.sweeps[0].simulated else ""
        notes = "".join(f"<div>{escape(note)}</div>" for note in self._notes())
        table = self._table().to_html(border=0, escape=True, justify="right")
        table = table.replace("<table", '<table style="text-align:right"', 1)
        return (
            '<div style="font:13px system-ui,sans-serif">'
            f"<div>{mark}<b>{escape(self.title)}</b></div>"
            f'<div style="color:#5f6b7a">{escape(self._counted())}</div>{table}{notes}</div>'
        )

    def _counted(self) -> str:
        return f"{len(self._tests)} windows, {self.tried:,} runs to choose from"

    def _table(self) -> pd.DataFrame:
        windows = self.windows
        unit = METRICS[self.metric].unit if self.metric in METRICS else "ratio"
        table = pd.DataFrame(index=windows.index)
        table["test"] = [
            f"{first:%Y-%m-%d} to {last:%Y-%m-%d}"
            for first, last in zip(windows["test_start"], windows["test_end"], strict=True)
        ]
        for name in self.parameters:
            table[name] = ["-" if value is None else str(value) for value in windows[name]]
        for name, title in (("in_sample", f"{self.metric} before"), ("out_of_sample", "in test")):
            table[title] = [value_text(float(value), unit) for value in windows[name]]
        for name, title in (("return_in", "return before"), ("return_out", "return in test")):
            table[title] = [value_text(float(value), "return") for value in windows[name]]
        return table

    def _notes(self) -> list[str]:
        figures = self.result.figures
        notes = [
            f"All tests together: return {value_text(figures['return'], 'return')} (buy and hold "
            f"{value_text(figures['buy_and_hold_return'], 'return')}), Sharpe "
            f"{value_text(figures['sharpe'], 'ratio')}, max drawdown "
            f"{value_text(figures['max_drawdown'], 'return')}."
        ]
        if math.isfinite(self.efficiency):
            notes.append(
                f"Walk-forward efficiency {self.efficiency:.2f}: the tests' annual return over "
                "that of the windows they were chosen on (0.5 is usually asked for)."
            )
        idle = sum(tested.point is None for tested in self._tests)
        if idle:
            notes.append(f"{idle} windows were not traded: no point had a value of {self.metric}.")
        return notes


def _date(instant: int) -> pd.Timestamp:
    stamp = pd.Timestamp(instant, unit="us", tz="UTC").tz_convert(EXCHANGE_ZONE)
    return stamp.tz_localize(None).normalize()
