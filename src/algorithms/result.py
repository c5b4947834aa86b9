"""`BacktestResult`: what a run gives back, worked out from its record when it is first asked for."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from algorithms import performance, rendering, run_frames
from algorithms.metrics import METRICS, metrics_of, run_trades
from algorithms.run_record import BacktestRun, Floats
from algorithms.trades import Trade

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


class BacktestResult:
    """A finished run: its trades, its account over time, and its figures.

    Printed it is a table, in a notebook a table with a picture. All times are aware, UTC; a moment
    is the close of a bar. Frames are made once and are yours to copy, not to change.

    Parameters
    ----------
    run : BacktestRun
        The record.
    risk_free : float
        Annual rate, as a fraction: Sharpe, Sortino and alpha count from it.
    """

    def __init__(self, run: BacktestRun, *, risk_free: float = 0.0) -> None:
        self.run = run
        self.risk_free = risk_free

    # ------------------------------------------------------------------------------- tables

    @cached_property
    def trades(self) -> pd.DataFrame:
        """One row a trade, FIFO: closed ones by exit, then open ones at the last close.

        Columns ``symbol, quantity, entry_time, exit_time, entry_price, exit_price, pnl, return,
        fees, dividends, holding, closed, entry_tag, exit_tag``; see `Trade`. ``return`` is `pnl`
        over the entry's value, ``holding`` a timedelta; both times of an open trade's end are NaT.
        """
        return run_frames.trades_frame(self.trade_list)

    @cached_property
    def orders(self) -> pd.DataFrame:
        """One row an order as it ended, by ``order_id``, in the order they were given."""
        return run_frames.orders_frame(self.run.orders)

    @cached_property
    def fills(self) -> pd.DataFrame:
        """One row a fill: ``timestamp, symbol, quantity, price, fee, order_id, tag``."""
        return run_frames.fills_frame(self.run.fills)

    @cached_property
    def actions(self) -> pd.DataFrame:
        """Corporate actions as they were applied: ``timestamp, symbol, kind, cash, ratio, ...``."""
        return run_frames.actions_frame(self.run.actions)

    # ------------------------------------------------------------------------------- curves

    @cached_property
    def equity(self) -> pd.Series[float]:
        """The account's value after each moment."""
        return run_frames.curve(self.run.equity, self.run.times, "equity")

    @cached_property
    def cash(self) -> pd.Series[float]:
        """The account's cash after each moment."""
        return run_frames.curve(self.run.cash_curve, self.run.times, "cash")

    @cached_property
    def buy_and_hold(self) -> pd.Series[float]:
        """The same cash spread evenly over the symbols and held."""
        return run_frames.curve(self.run.buy_and_hold, self.run.times, "buy_and_hold")

    @cached_property
    def drawdown(self) -> pd.Series[float]:
        """How far the account is below its highest value before: 0 or less, -0.1 is 10 %."""
        below = performance.drawdown(self.run.equity)
        return run_frames.curve(below, self.run.times, "drawdown")

    @cached_property
    def positions(self) -> pd.DataFrame:
        """Shares held after each moment, one column a symbol."""
        return self._by_symbol(self.run.positions)

    @cached_property
    def closes(self) -> pd.DataFrame:
        """The last raw close known at each moment, one column a symbol; NaN before the first."""
        return self._by_symbol(self.run.closes)

    @cached_property
    def monthly_returns(self) -> pd.DataFrame:
        """The account's return of each month, years down, Jan to Dec across; NaN outside."""
        found = performance.monthly_returns(self.run.times, self.run.equity)
        years = sorted({year for year, _ in found})
        table = np.full((len(years), 12), np.nan)
        for (year, month), value in found.items():
            table[years.index(year), month - 1] = value
        return pd.DataFrame(
            table,
            index=pd.Index(years, name="year", dtype=np.int64),
            columns=pd.Index(performance.MONTHS, name="month"),
        )

    # ------------------------------------------------------------------------------ figures

    @cached_property
    def metrics(self) -> pd.Series[float]:
        """All figures by name, those of buy and hold at the end; see `metrics.METRICS`.

        Fractions are fractions (0.01 is 1 %), money is money, NaN is not defined.
        """
        return pd.Series(self.figures, dtype=np.float64, name=self.name)

    @cached_property
    def benchmark(self) -> pd.Series[float]:
        """The figures of buy and hold alone, by the names the strategy's have."""
        prefix = "buy_and_hold_"
        found = {n.removeprefix(prefix): v for n, v in self.figures.items() if n.startswith(prefix)}
        return pd.Series(found, dtype=np.float64, name="buy_and_hold")

    @property
    def fingerprint(self) -> str:
        """What data it was: equal for equal data."""
        return self.run.fingerprint

    @property
    def name(self) -> str:
        """The algorithm's; of simulated prices it says so."""
        return f"{self.run.algorithm} (SIMULATED)" if self.run.simulated else self.run.algorithm

    def compare(self, *others: BacktestResult | BacktestRun) -> pd.DataFrame:
        """Return the figures of several results beside each other, one column each.

        Columns bear the algorithms' names; where these are equal, the parameters that differ.
        """
        results = [self, *(o if isinstance(o, BacktestResult) else type(self)(o) for o in others)]
        names = _distinct([r.name for r in results], [dict(r.run.params) for r in results])
        return pd.DataFrame(
            {name: r.metrics.to_numpy() for name, r in zip(names, results, strict=True)},
            index=pd.Index(METRICS, name="metric"),
        )

    # ----------------------------------------------------------------------------- pictures

    def plot(
        self,
        *,
        symbols: str | list[str] | None = None,
        log: bool = False,
        path: str | Path | None = None,
        show: bool | None = None,
    ) -> Figure:
        """Draw the account against buy and hold, its drawdown, its exposure, and its trades.

        Parameters
        ----------
        symbols : str or list of str, optional
            Whose prices and trades to draw, one at a time by a menu; by default the eight most
            traded.
        log : bool
            Whether money starts on a logarithmic scale; a button switches.
        path : str or Path, optional
            Also write one self-contained HTML file.
        show : bool, optional
            Whether to open the figure at once.

        Raises
        ------
        md.MissingDependencyError
            plotly is not installed; names the pip line.
        md.RequestError
            A symbol that the run does not have.
        """
        from algorithms.chart import chart

        figure = chart(self, symbols=symbols, log=log)
        if path is not None:
            figure.write_html(path, include_plotlyjs=True, config={"displaylogo": False})
        if show:
            figure.show()
        return figure

    def report(self, path: str | Path) -> Path:
        """Write one HTML file that needs no network, and return its path.

        Figures, picture, returns by month, all trades, parameters, costs and data. An existing
        file is replaced.

        Raises
        ------
        md.MissingDependencyError
            plotly is not installed; names the pip line.
        """
        from algorithms.report import write_report

        return write_report(self, Path(path))

    def __str__(self) -> str:
        return rendering.text_table(self.run, self.figures)

    def __repr__(self) -> str:
        return f"<BacktestResult {rendering.heading(self.run)}: {rendering.span_text(self.run)}>"

    def _repr_html_(self) -> str:
        return rendering.html_summary(self.run, self.figures)

    def __getstate__(self) -> dict[str, Any]:
        return {"run": self.run, "risk_free": self.risk_free}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __copy__(self) -> Self:
        return type(self)(self.run, risk_free=self.risk_free)

    # -------------------------------------------------------------------------- made once

    @cached_property
    def trade_list(self) -> list[Trade]:
        """The trades as `Trade` tuples."""
        return run_trades(self.run)

    @cached_property
    def figures(self) -> dict[str, float]:
        """`metrics` as a dict."""
        return metrics_of(self.run, risk_free=self.risk_free, trades=self.trade_list)

    def _by_symbol(self, arrays: dict[str, Floats]) -> pd.DataFrame:
        columns = {symbol: arrays[symbol] for symbol in self.run.symbols if symbol in arrays}
        frame = pd.DataFrame(columns, index=run_frames.timestamps(self.run.times))
        return frame.astype(np.float64).rename_axis(columns="symbol")


def _distinct(names: list[str], params: list[dict[str, object]]) -> list[str]:
    """Return one name each: with the parameters that differ, and a number where nothing does."""
    if len(set(names)) == len(names):
        return names
    keys = [k for k in params[0] if len({repr(p.get(k)) for p in params}) > 1]
    told = [
        f"{name} ({given})" if (given := ", ".join(f"{k}={p.get(k)}" for k in keys)) else name
        for name, p in zip(names, params, strict=True)
    ]
    return [t if told.count(t) == 1 else f"{t} #{n + 1}" for n, t in enumerate(told)]
