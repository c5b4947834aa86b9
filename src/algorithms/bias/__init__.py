"""Biases: does a strategy know in a back-test what it could not have known.

`check` runs a strategy over all data and again over less of it, and compares: see `lookahead`,
`recursion` and `surroundings` for what it looks for. It cannot see what a strategy reads beside the
bars it is given.
"""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import marketdata as md
from algorithms.algorithm import Algorithm
from algorithms.backtest import costs_of, last_moment, market_for, watching
from algorithms.bias.findings import BiasReport, Finding, Level, WarmUp
from algorithms.bias.lookahead import LookAhead, choose_cuts, differs
from algorithms.bias.recording import Decision, first_moment, recorded
from algorithms.bias.recursion import warm_up_of
from algorithms.bias.surroundings import uncovered, warnings_of
from algorithms.bias.words import moment_text, stamp
from algorithms.blotter import Costs
from algorithms.costs import Fees, Slippage
from algorithms.curves import record_of
from algorithms.errors import AlgorithmError
from algorithms.frames import Frames
from algorithms.lines import NEVER
from algorithms.loading import Moment
from algorithms.market import MarketData
from algorithms.metrics import run_trades
from algorithms.progress import Progress
from algorithms.studies import Study, studies_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["BiasReport", "Decision", "Finding", "Level", "WarmUp", "check"]

MOST_CUTS: Final = 40
FEWEST_CUTS: Final = 8
_BARS: Final = 20_000_000
"""Gone through again in all cuts together, about."""


def check(
    algorithm: Algorithm | type[Algorithm],
    data: Frames | MarketData | None = None,
    *,
    start: Moment | None = None,
    end: Moment | None = None,
    cash: float = 100_000.0,
    fees: Fees | None = None,
    slippage: Slippage | None = None,
    leverage: float = 1.0,
    client: md.Client | None = None,
    as_of: Moment | None = None,
    cuts: int | None = None,
    progress: bool | None = None,
) -> BiasReport:
    """Look for biases in a strategy's back-test.

    Parameters
    ----------
    algorithm, data, start, end, cash, fees, slippage, leverage, client, as_of, progress
        As for `backtest`.
    cuts : int, optional
        Moments after which the data is taken away and the strategy run again: 40 by default, fewer
        where the data is long. Half of them lie about the strategy's decisions.

    Returns
    -------
    BiasReport
        `BiasReport.passed` says whether a bias was found. ``print`` it, or take `to_json`.

    Raises
    ------
    AlgorithmError, MarketDataError
        As `backtest`. What the strategy raises over all data is passed on as it is; what it raises
        over less is a finding.
    """
    chosen = algorithm() if isinstance(algorithm, type) else algorithm
    chosen = watching(chosen, data)
    if cuts is not None and cuts < 1:
        raise AlgorithmError(f"{cuts} cuts", cure="ask for at least 1")
    with Progress(progress) as shown, warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", md.MarketDataWarning)
        market, since = market_for(chosen, data, start, end, client, as_of, shown)
        until = last_moment(chosen, market, end)
        costs = costs_of(fees, slippage, leverage)
        holes = [] if data is not None else uncovered(client or md, chosen, start, end)
        checking = _Checking(chosen, market, since, until, cash, costs, cuts, shown)
        notes = [str(w.message) for w in heard if issubclass(w.category, md.MarketDataWarning)]
        return checking.report(notes, holes)


class _Checking:
    def __init__(
        self,
        algorithm: Algorithm,
        market: MarketData,
        since: int,
        until: int,
        cash: float,
        costs: Costs,
        cuts: int | None,
        shown: Progress,
    ) -> None:
        if cash <= 0:
            raise AlgorithmError(f"cash of {cash:g}", cure="begin with more than 0")
        self._algorithm = algorithm
        self._market = market
        self._until = until
        self._cash, self._costs = cash, costs
        self._wanted = cuts
        self._shown = shown
        self._studies = studies_of(algorithm)
        self._first = first_moment(algorithm, market, since, costs)

    def report(self, notes: Sequence[str], holes: Sequence[Finding]) -> BiasReport:
        began = time.perf_counter()
        algorithm, market = self._algorithm, self._market
        engine, times = self._run(market)
        if not len(times):
            raise AlgorithmError(
                "the strategy never has all its indicators in this window",
                cure="start earlier, or end later",
            )
        record = record_of(engine, times, self._cash, time.perf_counter() - began, {})
        findings = self._repeated(engine.decisions)
        last = max(int(s.closes[s.size - 1]) for s in market.series.values() if s.size)
        cuts = choose_cuts(times, engine.decisions, last, self._count(len(times)))
        ahead = LookAhead(
            algorithm, market, self._studies, self._first, engine.decisions,
            cash=self._cash, costs=self._costs, orders=not findings,
        )  # fmt: skip
        findings += ahead.over(self._shown.over(cuts, "checking"))
        leaking = {f.what for f in findings}
        rows, unsettled = warm_up_of(algorithm, market, self._studies, leaking)
        findings += unsettled
        said = [*market.origin.warnings, *notes]
        findings += holes
        findings += warnings_of(algorithm, market, record, run_trades(record), said)
        findings.sort(key=lambda f: f.level is Level.WARNING)
        return BiasReport(
            algorithm=algorithm.name,
            params=dict(algorithm.params),
            symbols=tuple(algorithm.symbols),
            timeframe=record.timeframe,
            start=stamp(int(times[0])),
            end=stamp(int(times[-1])),
            moments=len(times),
            decisions=len(engine.decisions),
            cuts=len(cuts),
            findings=tuple(findings),
            warm_up=tuple(rows),
            simulated=market.origin.simulated,
            fingerprint=market.origin.fingerprint,
        )

    def _run(self, market: MarketData) -> tuple[Any, Any]:
        return recorded(
            self._algorithm, market, self._first, self._until, cash=self._cash, costs=self._costs
        )

    def _count(self, moments: int) -> int:
        wanted = self._wanted
        if wanted is None:
            wanted = _BARS // max(1, self._market.bars)
            wanted = min(MOST_CUTS, max(FEWEST_CUTS, wanted))
        return min(wanted, moments)

    def _repeated(self, decisions: Sequence[Decision]) -> list[Finding]:
        """Run once more over the same data: everything must be the same."""
        copy = self._market.until(NEVER - 1)
        found = [self._unsteady(study, copy) for study in self._studies]
        findings = [finding for finding in found if finding is not None]
        again, _ = self._run(copy)
        for one, other in _paired(decisions, again.decisions):
            if one != other:
                at = min(d.time for d in (one, other) if d is not None)
                text = (
                    f"two runs over the same data differ: at {moment_text(at)} the first decided "
                    f"{one or 'nothing'}, the second {other or 'nothing'}"
                )
                cure = (
                    "keep what must last in self (set in on_start) or self.state, not in globals or "
                    "the class; draw random numbers from a generator with a seed of its own"
                )
                findings.append(Finding(Level.BIAS, "state", "orders", text, cure))
                break
        return findings

    def _unsteady(self, study: Study, copy: MarketData) -> Finding | None:
        for symbol in self._algorithm.symbols:
            one, other = self._market.of(symbol, study.timeframe), copy.of(symbol, study.timeframe)
            epoch = one.epoch(NEVER - 1)
            pairs = zip(
                study.aliases,
                self._market.studies.values(study, one, epoch),
                copy.studies.values(study, other, epoch),
                strict=True,
            )
            for alias, first, second in pairs:
                moved = differs(first[: one.size], second[: one.size])
                if moved.any():
                    at = int(np.flatnonzero(moved)[0])
                    text = (
                        f"computed twice from the same bars it differs: {symbol}, "
                        f"{moment_text(int(one.closes[at]))}, {first[at]:.6g} and {second[at]:.6g}"
                    )
                    cure = "compute it from the bars and the parameters alone"
                    return Finding(Level.BIAS, "state", alias, text, cure)
        return None


def _paired(
    one: Sequence[Decision], other: Sequence[Decision]
) -> list[tuple[Decision | None, Decision | None]]:
    length = max(len(one), len(other))
    padded = [[*d, *[None] * (length - len(d))] for d in (one, other)]
    return list(zip(*padded, strict=True))
