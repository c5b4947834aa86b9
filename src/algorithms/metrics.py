"""The figures of a run, by name, each computed only when it is asked for. Pure.

Annual figures rest on one value a session (the last of each exchange day, 252 a year), also where
the run has minutes: returns of minutes are far from independent, and nights would be missing.
Weekly and monthly bars count 52 and 12 a year. Drawdowns and exposure look at every moment.
Formulas and their sources stand with the functions of `performance` and `trade_statistics`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import numpy as np

import marketdata as md
from algorithms import performance as perf
from algorithms.run_record import BacktestRun, Floats, Instants
from algorithms.trade_statistics import TradeStatistics
from algorithms.trades import Trade, trades_of

Unit = Literal["return", "fraction", "ratio", "money", "count", "days"]
"""A return is a fraction that is read with its sign."""


def metrics_of(
    run: BacktestRun,
    which: str | Iterable[str] | None = None,
    *,
    risk_free: float = 0.0,
    trades: Sequence[Trade] | None = None,
) -> dict[str, float]:
    """Return figures of a run by name, in the order of `METRICS` or of `which`.

    Parameters
    ----------
    which : str or iterable of str, optional
        Names of `METRICS`; all by default. Only what these need is computed.
    risk_free : float
        Annual rate, as a fraction: Sharpe, Sortino and alpha count from it.
    trades : sequence of Trade, optional
        Of this run, where they are known already.

    Raises
    ------
    md.RequestError
        A name that is no metric; the cure names the nearest.
    """
    figures = Figures(run, risk_free=risk_free, trades=trades)
    if which is None:
        return {name: metric.of(figures) for name, metric in METRICS.items()}
    names = (which,) if isinstance(which, str) else which
    return {name: metric_named(name).of(figures) for name in names}


class Figures:
    """One run, and what its metrics have in common: computed once, when first needed."""

    def __init__(
        self,
        run: BacktestRun,
        *,
        risk_free: float = 0.0,
        trades: Sequence[Trade] | None = None,
    ) -> None:
        self.run = run
        self.risk_free = risk_free
        self.periods = perf.periods_a_year(run.timeframe)
        self._trades = trades

    @cached_property
    def statistics(self) -> TradeStatistics:
        return TradeStatistics(run_trades(self.run) if self._trades is None else self._trades)

    @cached_property
    def account(self) -> CurveFigures:
        return CurveFigures(self, self.run.equity, self.run.cash)

    @cached_property
    def benchmark(self) -> CurveFigures:
        return CurveFigures(self, self.run.buy_and_hold, None)

    @cached_property
    def ends(self) -> Instants | None:
        return perf.session_ends(self.run.times, self.run.timeframe)

    @cached_property
    def years(self) -> float:
        times = self.run.times
        return float(times[-1] - times[0]) / perf.YEAR if len(times) else math.nan

    @cached_property
    def both_returns(self) -> tuple[Floats, Floats]:
        """The returns of account and benchmark, of the sessions that have both."""
        ours, theirs = self.account.returns, self.benchmark.all_returns
        there = np.isfinite(theirs)
        return (ours, theirs) if there.all() else (ours[there], theirs[there])

    def traded_value(self) -> float:
        return math.fsum(abs(f.quantity * f.price) for f in self.run.fills)

    def fees(self) -> float:
        return math.fsum(f.fee for f in self.run.fills)

    def dividends(self) -> float:
        """Cash distributions received, less those paid on short positions."""
        return math.fsum(a.cash for a in self.run.actions if not a.paid_out)

    def turnover(self) -> float:
        """How often a year the account was turned over: half of what was traded, bought and sold
        alike, over the mean equity and the years.

        The turnover rate of SEC Form N-1A, item 13, which takes the lesser of purchases and sales.
        """
        held = perf.mean(self.run.equity)
        if not self.years > 0 or not held > 0:
            return math.nan
        return self.traded_value() / 2 / held / self.years

    def exposure(self) -> float:
        """The share of moments after which something was held."""
        held = np.zeros(len(self.run.times), np.bool_)
        for shares in self.run.positions.values():
            held |= shares != 0
        return float(np.count_nonzero(held)) / len(held) if len(held) else math.nan

    def gross_exposure(self) -> float:
        """The mean of what was held, long and short alike, over the equity."""
        equity = self.run.equity
        if not len(equity) or not equity.min() > 0:
            return math.nan
        return perf.mean(gross_value(self.run) / equity)


class CurveFigures:
    """What both curves, the account's and buy-and-hold's, are asked."""

    def __init__(self, figures: Figures, values: Floats, cash: float | None) -> None:
        self._figures = figures
        self._values = values
        self._cash = cash

    @cached_property
    def values(self) -> Floats:
        """Every moment's value; without the moments before a benchmark could be had."""
        if self._cash is not None or not len(self._values) or not np.isnan(self._values.sum()):
            return self._values
        there: Floats = self._values[np.isfinite(self._values)]
        return there

    @cached_property
    def all_returns(self) -> Floats:
        """Of each session, NaN where there is none."""
        return perf.returns_of(perf.session_values(self._values, self._figures.ends))

    @cached_property
    def returns(self) -> Floats:
        if self.values is self._values:
            return self.all_returns
        there: Floats = self.all_returns[np.isfinite(self.all_returns)]
        return there

    @cached_property
    def total_return(self) -> float:
        if not len(self.values):
            return math.nan
        first = float(self.values[0]) if self._cash is None else self._cash
        return perf.growth(first, float(self.values[-1]))

    @cached_property
    def cagr(self) -> float:
        if not len(self.returns):
            return math.nan
        return perf.cagr(self.total_return, self._figures.years)

    @cached_property
    def drawdown(self) -> Floats:
        return perf.drawdown(self.values)

    @cached_property
    def max_drawdown(self) -> float:
        return float(self.drawdown.min()) if len(self.drawdown) else math.nan

    @cached_property
    def spells(self) -> tuple[Floats, Floats]:
        return perf.drawdown_spells(self.drawdown, self._figures.run.times)

    def volatility(self) -> float:
        return perf.volatility(self.returns, self._figures.periods)

    def sharpe(self) -> float:
        return perf.sharpe(self.returns, self._figures.periods, self._figures.risk_free)

    def sortino(self) -> float:
        return perf.sortino(self.returns, self._figures.periods, self._figures.risk_free)

    def longest(self) -> float:
        if math.isnan(self.max_drawdown):
            return math.nan
        lengths = self.spells[1]
        return float(lengths.max()) if len(lengths) else 0.0


def run_trades(run: BacktestRun) -> list[Trade]:
    """Return the trades of a run, open ones at the last close."""
    last = {s: float(closes[-1]) for s, closes in run.closes.items() if len(closes)}
    return trades_of(run.fills, actions=run.actions, last_prices=last)


def gross_value(run: BacktestRun) -> Floats:
    """Return what was held after each moment, long and short alike, in money."""
    total = np.zeros(len(run.times))
    for symbol, shares in run.positions.items():
        value = np.abs(shares * run.closes[symbol])
        total += value if shares.all() else np.where(shares != 0, value, 0.0)
    return total


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure: how it is read and what it is measured in."""

    label: str
    unit: Unit
    of: Callable[[Figures], float]
    benchmark: bool = False
    """Whether it is of, or against, buy and hold."""


def metric_named(name: str) -> Metric:
    found = METRICS.get(name)
    if found is None:
        near = difflib.get_close_matches(str(name), METRICS, n=3, cutoff=0.4)
        raise md.RequestError(
            f"there is no metric {name!r}",
            cure=f"did you mean {' or '.join(near)}?" if near else f"one of: {', '.join(METRICS)}",
        )
    return found


METRICS: Final[dict[str, Metric]] = {
    "return": Metric("Return", "return", lambda f: f.account.total_return),
    "cagr": Metric("CAGR", "return", lambda f: f.account.cagr),
    "volatility": Metric("Volatility", "fraction", lambda f: f.account.volatility()),
    "sharpe": Metric("Sharpe ratio", "ratio", lambda f: f.account.sharpe()),
    "sortino": Metric("Sortino ratio", "ratio", lambda f: f.account.sortino()),
    "calmar": Metric(
        "Calmar ratio", "ratio", lambda f: perf.calmar(f.account.cagr, f.account.max_drawdown)
    ),
    "max_drawdown": Metric("Max drawdown", "return", lambda f: f.account.max_drawdown),
    "max_drawdown_days": Metric("Longest drawdown", "days", lambda f: f.account.longest()),
    "average_drawdown": Metric(
        "Average drawdown", "return", lambda f: perf.mean(f.account.spells[0])
    ),
    "average_drawdown_days": Metric(
        "Average length", "days", lambda f: perf.mean(f.account.spells[1])
    ),
    "exposure": Metric("Time in the market", "fraction", Figures.exposure),
    "gross_exposure": Metric("Average exposure", "fraction", Figures.gross_exposure),
    "turnover": Metric("Turnover a year", "ratio", Figures.turnover),
    "final_equity": Metric(
        "Final equity",
        "money",
        lambda f: float(f.run.equity[-1]) if len(f.run.equity) else math.nan,
    ),
    "fees": Metric("Fees", "money", Figures.fees),
    "dividends": Metric("Dividends", "money", Figures.dividends),
    "trades": Metric("Trades", "count", lambda f: float(f.statistics.count)),
    "open_trades": Metric("Still open", "count", lambda f: float(f.statistics.open_count)),
    "hit_rate": Metric("Hit rate", "fraction", lambda f: f.statistics.hit_rate()),
    "profit_factor": Metric("Profit factor", "ratio", lambda f: f.statistics.profit_factor()),
    "expectancy": Metric("Expectancy a trade", "money", lambda f: f.statistics.expectancy()),
    "average_win": Metric("Average win", "money", lambda f: f.statistics.average_win()),
    "average_loss": Metric("Average loss", "money", lambda f: f.statistics.average_loss()),
    "average_trade": Metric("Average trade", "return", lambda f: f.statistics.average_return()),
    "best_trade": Metric("Best trade", "return", lambda f: f.statistics.best()),
    "worst_trade": Metric("Worst trade", "return", lambda f: f.statistics.worst()),
    "average_holding_days": Metric(
        "Average holding", "days", lambda f: f.statistics.average_days()
    ),
    "sqn": Metric("SQN", "ratio", lambda f: f.statistics.sqn()),
    "buy_and_hold_return": Metric("Return", "return", lambda f: f.benchmark.total_return, True),
    "buy_and_hold_cagr": Metric("CAGR", "return", lambda f: f.benchmark.cagr, True),
    "buy_and_hold_volatility": Metric(
        "Volatility", "fraction", lambda f: f.benchmark.volatility(), True
    ),
    "buy_and_hold_sharpe": Metric("Sharpe ratio", "ratio", lambda f: f.benchmark.sharpe(), True),
    "buy_and_hold_max_drawdown": Metric(
        "Max drawdown", "return", lambda f: f.benchmark.max_drawdown, True
    ),
    "alpha": Metric(
        "Alpha", "return", lambda f: perf.alpha(*f.both_returns, f.periods, f.risk_free), True
    ),
    "beta": Metric("Beta", "ratio", lambda f: perf.beta(*f.both_returns), True),
    "correlation": Metric(
        "Correlation", "ratio", lambda f: perf.correlation(*f.both_returns), True
    ),
}
"""Every metric by name, in the order of all tables. Fractions are fractions: 0.01 is 1 %."""
