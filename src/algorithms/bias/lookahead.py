"""Look-ahead: what a strategy saw and did up to a moment must not change when all later data is
taken away.

The strategy runs over all data once, and again over data that ends at each of a number of moments:
those at which it decided something, the ones just before, and others spread over the run, at no
regular distance, since a bar of a longer timeframe gives itself away only inside of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

import marketdata as md
from algorithms.algorithm import Algorithm
from algorithms.bias.findings import Finding, Level
from algorithms.bias.recording import Decision, recorded
from algorithms.bias.words import iso, moment_text, number_text
from algorithms.blotter import Costs
from algorithms.lines import Bools, Floats, Int64s
from algorithms.market import MarketData
from algorithms.studies import Study

TOLERANCE: Final = 1e-9
"""Relative: what vectorised sums of another length may differ by."""
_GOLDEN: Final = 0.618033988749895
_WHOLE: Final = 0.8
"""Share of all values that move where an indicator is scaled or fitted on the whole sample."""
_STEADY: Final = 0.8
"""Share of cuts at which equally many values move where an indicator looks a fixed way ahead."""


def choose_cuts(times: Int64s, decisions: Sequence[Decision], last: int, count: int) -> list[int]:
    """Return moments to cut at, ascending: half of them about decisions, half spread.

    Parameters
    ----------
    last : int
        The newest close there is: a cut there would take nothing away.
    """
    times = times[times < last]
    if not len(times):
        return []
    chosen: set[int] = set()
    decided = np.unique([decision.time for decision in decisions]).astype(np.int64)
    decided = decided[np.isin(decided, times)]
    wanted = max(1, count // 4)
    for at in np.unique(np.linspace(0, len(decided) - 1, wanted).astype(int)).tolist():
        if not len(decided):
            break
        place = int(np.searchsorted(times, decided[at]))
        chosen.update(times[max(0, place - 1) : place + 1].tolist())
    step = 0
    while len(chosen) < min(count, len(times)) and step < 4 * count:
        step += 1
        chosen.add(int(times[int((step * _GOLDEN) % 1.0 * len(times))]))
    return sorted(chosen)


@dataclass
class Moves:
    """How one indicator moved: of all symbols and cuts, the clearest case and the counts."""

    alias: str
    timeframe: str
    symbols: set[str] = field(default_factory=set)
    cuts: set[int] = field(default_factory=set)
    reaches: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    clearest: dict[str, Any] | None = None

    def add(
        self, symbol: str, cut: int, closes: Int64s, with_later: Floats, without: Floats
    ) -> None:
        """Compare the values up to a cut."""
        moved = differs(with_later, without)
        places = np.flatnonzero(moved)
        if not len(places):
            return
        self.symbols.add(symbol)
        self.cuts.add(cut)
        self.reaches.append(len(without) - int(places[0]))
        self.lengths.append(int(np.isfinite(with_later).sum()))
        at = int(places[-1])
        scale = max(abs(with_later[at]), typical(with_later), 1e-300)
        by = abs(with_later[at] - without[at]) / scale
        found = {
            "symbol": symbol,
            "at": int(closes[at]),
            "cut": cut,
            "with_later": float(with_later[at]),
            "without_later": float(without[at]),
            "change": float(by),
        }
        # A number that was not there at all says more than any difference.
        clear = np.inf if np.isnan(by) else by
        held = self.clearest
        if held is None or clear > held["clear"]:
            self.clearest = {**found, "clear": clear}


def typical(values: Floats) -> float:
    """Return the median size of values; 0 where there are none."""
    finite = np.abs(values[np.isfinite(values)])
    return float(np.median(finite)) if len(finite) else 0.0


def differs(one: Floats, other: Floats) -> Bools:
    """Return where two arrays differ by more than rounding; NaN equals NaN."""
    with np.errstate(invalid="ignore"):
        scale = np.maximum(np.maximum(np.abs(one), np.abs(other)), typical(one))
        near = np.abs(one - other) <= TOLERANCE * scale
    same = near | (one == other) | (np.isnan(one) & np.isnan(other))
    return np.asarray(~same, np.bool_)


class LookAhead:
    """Compares one run over all data with runs over less of it.

    Parameters
    ----------
    algorithm : Algorithm
    market : MarketData
    studies : sequence of Study
        The strategy's.
    first : int
        The first moment of the run.
    decisions : sequence of Decision
        Of the run over all data.
    orders : bool
        Whether decisions can be compared: not where two equal runs differ already.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        market: MarketData,
        studies: Sequence[Study],
        first: int,
        decisions: Sequence[Decision],
        *,
        cash: float,
        costs: Costs,
        orders: bool = True,
    ) -> None:
        self._algorithm = algorithm
        self._market = market
        self._studies = studies
        self._first = first
        self._decisions = list(decisions)
        self._cash, self._costs = cash, costs
        self._orders = orders
        self._moves: dict[tuple[str, str], Moves] = {}
        self._broken: list[tuple[int, Exception]] = []
        self._changed: list[tuple[int, Decision | None, Decision | None]] = []
        self._cuts = 0

    def over(self, cuts: Iterable[int]) -> list[Finding]:
        """Cut at each of these moments; return what moved."""
        for cut in cuts:
            self._cuts += 1
            try:
                self._at(cut)
            except Exception as error:
                self._broken.append((cut, error))
        return [*self._indicators(), *self._decided(), *self._raised()]

    def _at(self, cut: int) -> None:
        market = self._market.until(cut)
        for study in self._studies:
            for symbol in self._algorithm.symbols:
                series, shorter = (m.of(symbol, study.timeframe) for m in (self._market, market))
                if not shorter.size:
                    continue
                epoch = series.epoch(cut)
                all_values = self._market.studies.values(study, series, epoch)
                fewer = market.studies.values(study, shorter, epoch)
                for alias, one, other in zip(study.aliases, all_values, fewer, strict=True):
                    moves = self._moves.setdefault(
                        (alias, study.timeframe), Moves(alias, study.timeframe)
                    )
                    size = shorter.size
                    moves.add(symbol, cut, shorter.closes[:size], one[:size], other[:size])
        if self._orders:
            engine, _ = recorded(
                self._algorithm, market, self._first, cut, cash=self._cash, costs=self._costs
            )
            before = [d for d in self._decisions if d.time <= cut]
            after = engine.decisions
            for at in range(max(len(before), len(after))):
                was = before[at] if at < len(before) else None
                now = after[at] if at < len(after) else None
                if was != now:
                    self._changed.append((cut, was, now))
                    break

    # ----------------------------------------------------------------------------- findings

    def _indicators(self) -> list[Finding]:
        found = []
        for moves in self._moves.values():
            case = moves.clearest
            if case is None:
                continue
            case.pop("clear")
            diagnosis, cure = _diagnosis(moves, self._cuts)
            others = len(moves.symbols) - 1
            also = f" (and {others} other symbol{'s' * (others > 1)})" if others else ""
            text = (
                f"{case['symbol']}{also}, {moment_text(case['at'])}: "
                f"{number_text(case['with_later'])} with later data, "
                f"{number_text(case['without_later'])} with the data there was at "
                f"{moment_text(case['cut'])}; moved at {len(moves.cuts)} of {self._cuts} moments. "
                f"{diagnosis}"
            )
            facts = {
                **case, "at": iso(case["at"]), "cut": iso(case["cut"]),
                "timeframe": moves.timeframe, "cuts_moved": len(moves.cuts),
                "bars_moved": max(moves.reaches), "symbols_moved": len(moves.symbols),
            }  # fmt: skip
            found.append(Finding(Level.BIAS, "look-ahead", moves.alias, text, cure, facts))
        return found

    def _decided(self) -> list[Finding]:
        if not self._changed:
            return []
        cut, one, other = min(self._changed, key=_when)
        at = min(d.time for d in (one, other) if d is not None)
        moved = [f for f in self._moves.values() if f.clearest is not None]
        text = (
            f"{moment_text(at)}: {one or 'nothing'} with later data, {other or 'nothing'} with the "
            f"data there was at {moment_text(cut)}; moved at {len(self._changed)} of "
            f"{self._cuts} moments"
        )
        cure = (
            "the indicators above explain it"
            if moved
            else "no indicator moved: look for what on_bar knows beside its context"
        )
        facts = {
            "at": iso(at),
            "cut": iso(cut),
            "with_later": None if one is None else one._asdict(),
            "without_later": None if other is None else other._asdict(),
            "cuts_moved": len(self._changed),
        }
        return [Finding(Level.BIAS, "look-ahead", "orders", text, cure, facts)]

    def _raised(self) -> list[Finding]:
        if not self._broken:
            return []
        cut, error = self._broken[0]
        text = (
            f"without what is later than {moment_text(cut)} it raises {type(error).__name__}: "
            f"{error}; so at {len(self._broken)} of {self._cuts} moments"
        )
        cure = "compute from the bars that are given, however few they are"
        facts = {"cut": iso(cut), "error": type(error).__name__, "cuts_moved": len(self._broken)}
        return [Finding(Level.BIAS, "look-ahead", "data", text, cure, facts)]


def _when(change: tuple[int, Decision | None, Decision | None]) -> tuple[int, int]:
    cut, one, other = change
    return min(d.time for d in (one, other) if d is not None), cut


def _diagnosis(moves: Moves, cuts: int) -> tuple[str, str]:
    """Return what kind of look-ahead the pattern of moved values speaks for, and its cure."""
    reaches = np.array(moves.reaches)
    whole = np.median(reaches / np.maximum(moves.lengths, 1)) >= _WHOLE
    if whole and reaches.max() > 2:
        return (
            "Nearly all its values move: it is scaled or fitted on the whole sample.",
            "use a trailing or an expanding window: rolling(n) or expanding(), not mean() of all",
        )
    longest = int(reaches.max())
    steady = np.mean(reaches == longest) >= _STEADY and len(moves.cuts) >= _STEADY * cuts
    if longest > 1 and not steady:
        longer = "1hour" if md.Timeframe.parse(moves.timeframe).intraday else "1week"
        return (
            f"It moves inside a period of up to {longest} bars and is still at its end: a longer "
            "bar is used before it has closed.",
            f'take closed bars: "sma_20@{longer}" in indicators, or timeframes and '
            f'ctx[symbol, "{longer}"]',
        )
    bars = "value moves" if longest == 1 else f"{longest} values move"
    ahead = "1 bar" if longest == 1 else f"{longest} bars"
    return (
        f"Its newest {bars}: it looks {ahead} ahead.",
        f"use trailing windows (center=False) and shifts above 0; or shift it by {longest}",
    )
