"""From the commits of one call to one batch: series by series in key order, bars in columns. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from marketdata.protocols import Commit
from marketdata.spans import Span, normalise
from marketdata.store.observed import Int32s, Observed, newest_order
from marketdata.types import COLUMNS, Bools, Int64s, SeriesKey, Stage, revision_of

_NOTHING: Final = np.iinfo(np.int64).min


@dataclass(frozen=True, slots=True)
class Batch:
    """All commits of one call; lists are by series, in the order of `keys`."""

    keys: list[SeriesKey]
    covered: list[Sequence[Span]]
    settled: list[Sequence[Span]]
    """The part of `covered` observed after the provider's own early corrections."""
    final: list[Sequence[Span]]
    """The part of `covered` observed after the provider's correction period."""
    observed: Int64s
    delays: Int64s
    """After how long a bar can be had at all."""
    sealing: dict[int, list[Span]]
    """By number, counted from 1: what commits cover whose bars may be sealed at once."""
    new: Observed
    """Bars and withdrawals of all series."""
    noted: Bools
    """Which of them lie in what their own commit covers, so that the spans hold their stage."""


def batch_of(commits: Sequence[Commit]) -> Batch:
    """Return the batch of commits; of a bar given twice it holds the highest revision."""
    by_key: dict[SeriesKey, list[Commit]] = {}
    for commit in commits:
        by_key.setdefault(commit.key, []).append(commit)
    keys = sorted(by_key)
    ordered = [(number, c) for number, key in enumerate(keys, start=1) for c in by_key[key]]
    new, noted = _observed(ordered)
    order = newest_order(new.number, new.timestamp, new.revision)
    if order is not None:
        new, noted = new.take(order), noted[order]
    spans = _Spans()
    of = [spans.of(by_key[key]) for key in keys]
    sealing: dict[int, list[Span]] = {}
    for number, commit in ordered:
        if commit.sealed and commit.key.timeframe.intraday and not commit.covered.empty:
            sealing.setdefault(number, []).append(commit.covered)
    return Batch(
        keys=keys,
        covered=[each[0] for each in of],
        settled=[each[1] for each in of],
        final=[each[2] for each in of],
        observed=np.array([max(c.observed_us for c in by_key[key]) for key in keys], np.int64),
        delays=np.array([max(c.delay for c in by_key[key]) for key in keys], np.int64),
        sealing=sealing,
        new=new,
        noted=noted,
    )


def _observed(ordered: Sequence[tuple[int, Commit]]) -> tuple[Observed, Bools]:
    """Return all bars and withdrawals, as they were given, and which their commits cover."""
    parts = []
    filled = [(number, commit) for number, commit in ordered if len(commit.bars)]
    if filled:
        counts = np.array([len(commit.bars) for _, commit in filled])
        bars = Observed(
            np.repeat(np.array([number for number, _ in filled], np.int32), counts),
            np.concatenate([commit.bars.timestamp for _, commit in filled]),
            np.concatenate([commit.bars.values for _, commit in filled], axis=1),
            np.empty(int(counts.sum()), np.int64),
            np.zeros(int(counts.sum()), np.bool_),
        )
        parts.append(_revised(bars, [commit for _, commit in filled], counts))
    for number, commit in ordered:
        if commit.withdrawn is not None and len(commit.withdrawn):
            labels = np.setdiff1d(commit.withdrawn, commit.bars.timestamp)
            if len(labels):
                gone = _withdrawals(number, labels)
                parts.append(_revised(gone, [commit], np.array([len(labels)])))
    noted = np.concatenate([np.zeros(0, np.bool_), *(part[1] for part in parts)])
    return Observed.join([part[0] for part in parts]), noted


def _revised(bars: Observed, commits: Sequence[Commit], counts: Int64s) -> tuple[Observed, Bools]:
    """Give bars, which commits hold `counts` of, their revisions; say which they cover."""

    def each(values: Sequence[int]) -> Int64s:
        return np.asarray(np.repeat(np.array(values, np.int64), counts), np.int64)

    at = bars.timestamp
    stage: Int64s = np.full(len(at), int(Stage.CLOSED), np.int64)
    settled = each([_NOTHING if c.settled_until is None else c.settled_until for c in commits])
    final = each([_NOTHING if c.final_until is None else c.final_until for c in commits])
    stage[at < settled] = Stage.REVISED
    stage[at < final] = Stage.FINAL
    bars.revision[:] = revision_of(stage, 0) + each([c.observed_us for c in commits]) // 1000
    starts, ends = each([c.covered.start for c in commits]), each([c.covered.end for c in commits])
    return bars, np.asarray((at >= starts) & (at < ends), np.bool_)


def _withdrawals(number: int, labels: Int64s) -> Observed:
    count = len(labels)
    numbers: Int32s = np.full(count, number, np.int32)
    values = np.full((len(COLUMNS), count), np.nan)
    return Observed(numbers, labels, values, np.empty(count, np.int64), np.ones(count, np.bool_))


_Three = tuple[Sequence[Span], Sequence[Span], Sequence[Span]]


class _Spans:
    """Covered, settled and final spans; the commits of one minute all share them."""

    def __init__(self) -> None:
        self._known: dict[tuple[Span, int | None, int | None], _Three] = {}

    def of(self, commits: Sequence[Commit]) -> _Three:
        found = [self._of_one(commit) for commit in commits]
        if len(found) == 1:
            return found[0]
        covered, settled, final = (
            normalise(span for each in found for span in each[place]) for place in range(3)
        )
        return covered, settled, final

    def _of_one(self, commit: Commit) -> _Three:
        key = commit.covered, commit.settled_until, commit.final_until
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = (
                normalise([commit.covered]),
                normalise([_before(commit.covered, commit.settled_until)]),
                normalise([_before(commit.covered, commit.final_until)]),
            )
        return found


def _before(covered: Span, until: int | None) -> Span:
    """Return the part of a span that lies before `until`."""
    return Span(0, 0) if until is None else Span(covered.start, min(until, covered.end))
