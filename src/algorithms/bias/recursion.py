"""Recursion: does a value still move when there are more bars before it.

An exponential average remembers every bar there ever was, a little. Over how many bars that wears
off decides whether a strategy sees the same live, with the bars it begins with, as in a back-test
with years before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from algorithms.algorithm import Algorithm
from algorithms.bias.findings import Finding, Level, WarmUp
from algorithms.bias.lookahead import typical
from algorithms.lines import NEVER, Floats
from algorithms.market import MarketData
from algorithms.series import Series
from algorithms.studies import ALL, Study, StudyBook

LENGTHS: Final = (50, 100, 250, 500, 1000, 2500)
SETTLED: Final = 1e-6
"""Relative: less than the last digit of a price."""
_POINTS: Final = 5
_SYMBOLS: Final = 3


def warm_up_of(
    algorithm: Algorithm, market: MarketData, studies: Sequence[Study], skip: set[str]
) -> tuple[list[WarmUp], list[Finding]]:
    """Return a table row for each indicator, and what is wrong with its look-back.

    Parameters
    ----------
    skip : set of str
        Indicators that look ahead: what they do with fewer bars says nothing more.
    """
    rows: list[WarmUp] = []
    findings: list[Finding] = []
    for study in studies:
        if study.aliases[0] in skip:
            continue
        declared = None if study.needs >= ALL else study.needs
        lengths = sorted({*LENGTHS, *(() if declared is None else (declared,))})
        # What all bars give, not what the engine's block of bars does.
        book = StudyBook(market.hours, whole=True)
        moves: dict[str, dict[int, float]] = {alias: {} for alias in study.aliases}
        for symbol in list(algorithm.symbols)[:_SYMBOLS]:
            series = market.of(symbol, study.timeframe)
            for length in lengths:
                for alias, moved in _moves(study, series, book, length).items():
                    held = moves[alias].get(length)
                    moves[alias][length] = moved if held is None else _worse(held, moved)
        for alias, by_length in moves.items():
            if by_length:
                row = WarmUp(alias, study.timeframe, declared, by_length, _settled(by_length))
                rows.append(row)
                findings += _judged(row, own=study.function is not None)
    return rows, findings


def _moves(study: Study, series: Series, book: StudyBook, length: int) -> dict[str, float]:
    """Return, by output, how far values with `length` bars before them are from the full ones."""
    size = series.size
    # Compared where the full value has at least twice the bars: else there is nothing to see.
    low = 2 * (length + 1)
    if size <= low:
        return {}
    epoch = series.epoch(int(series.closes[size - 1]))
    full = book.values(study, series, epoch)
    points = np.unique(np.linspace(low, size - 1, _POINTS).astype(int)).tolist()
    found: dict[str, list[float]] = {alias: [] for alias in study.aliases}
    for at in points:
        part = _part(series, at - length, at + 1)
        try:
            values = StudyBook(book.hours, whole=True).values(study, part, part.epoch(NEVER))
        except Exception:
            # An own function that cannot do with so few bars has no value yet.
            values = [np.full(part.size, np.nan)] * len(study.aliases)
        for alias, short, whole in zip(study.aliases, values, full, strict=True):
            found[alias].append(_distance(float(short[part.size - 1]), whole[:size], at))
    return {alias: _worst(moved) for alias, moved in found.items()}


def _part(series: Series, first: int, end: int) -> Series:
    """Return some bars of a series, scaled as all of it is."""
    columns = series.columns(series.epoch(int(series.closes[series.size - 1])))
    return Series(
        series.symbol,
        series.timeframe,
        series.labels[first:end].copy(),
        series.closes[first:end].copy(),
        np.ascontiguousarray(columns[:, first:end]),
    )


def _distance(value: float, whole: Floats, at: int) -> float:
    target = float(whole[at])
    if np.isnan(target):
        return 0.0
    if np.isnan(value):
        return np.nan
    moved = abs(value - target)
    return moved / max(abs(target), typical(whole), 1e-300)


def _worst(moved: list[float]) -> float:
    return float("nan") if any(np.isnan(m) for m in moved) else max(moved)


def _worse(one: float, other: float) -> float:
    return _worst([one, other])


def _settled(moves: dict[int, float]) -> int | None:
    """Return the length from which on nothing moves."""
    found = None
    for length in sorted(moves, reverse=True):
        if not moves[length] < SETTLED:
            break
        found = length
    return found


def _judged(row: WarmUp, *, own: bool) -> list[Finding]:
    facts = {"declared": row.declared, "settled": row.settled}
    if row.declared is not None:
        moved = row.moves.get(row.declared, 0.0)
        if moved < SETTLED:
            return []
        by = "has no value" if np.isnan(moved) else f"moves by {moved:.2%}"
        enough = f"{row.settled} bars" if row.settled else "more bars than there are"
        text = (
            f"with the {row.declared} bars before it that are declared, its value {by} from the "
            f"one with all bars; it settles with {enough}"
        )
        cure = f"declare what it needs: (function, {row.settled or max(row.moves)})"
        level = Level.BIAS if own else Level.WARNING
        return [Finding(level, "warm-up", row.indicator, text, cure, facts)]
    if row.settled is not None or not row.moves:
        return []
    longest = max(row.moves)
    moved = row.moves[longest]
    if np.isnan(moved):
        return []
    text = (
        f"with {longest:,} bars before it, its value still moves by {moved:.2%} from the one with "
        "all bars: it depends on where the data begins"
    )
    cure = "use its changes rather than its level, or a window of fixed length"
    return [Finding(Level.WARNING, "warm-up", row.indicator, text, cure, facts)]
