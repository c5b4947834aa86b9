"""Which observations replace what is stored, without a store."""

from __future__ import annotations

import numpy as np
import pytest

from marketdata.store.observed import Int32s, Observed, apply, decide
from marketdata.types import Bars, Bools, Int64s, Stage, revision_of


def observed(*entries: tuple[int, int, float, int], withdrawn: tuple[int, ...] = ()) -> Observed:
    """Bars given as (series, label, value, revision)."""
    number, timestamp, value, revision = zip(*entries, strict=True)
    values = np.repeat(np.array(value, np.float64)[None], 7, axis=0)
    gone = np.isin(np.arange(len(entries)), withdrawn)
    values[:, gone] = np.nan
    return Observed(
        np.array(number, np.int32),
        np.array(timestamp, np.int64),
        values,
        np.array(revision, np.int64),
        gone,
    )


def held(stage: Stage):
    return lambda _, timestamp: np.full(len(timestamp), int(stage), np.int64)


def never(_: Int32s, __: Int64s) -> Int64s:
    raise AssertionError("the spans' stages need not be asked")


def noted(bars: Observed, how: bool = True) -> Bools:
    return np.full(len(bars), how, np.bool_)


CLOSED, REVISED, FINAL = (revision_of(int(stage), 1_000_000) for stage in Stage)


def test_into_an_empty_store_everything_is_written():
    new = observed((1, 5, 1.0, CLOSED), (1, 6, 1.0, CLOSED), withdrawn=(1,))
    decision = decide(new, Observed.empty(), noted(new), never)
    assert decision.write.tolist() == [True, True]
    assert decision.changes.tolist() == [True, False]
    assert decision.added(new.withdrawn).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("before", "after", "values", "covered", "written"),
    [
        (CLOSED, CLOSED, (1, 2), True, False),  # the same observation again
        (CLOSED, CLOSED + 1, (1, 2), True, True),
        (CLOSED + 1, CLOSED, (1, 2), True, False),
        (CLOSED, CLOSED + 1, (1, 1), True, False),
        (CLOSED, FINAL, (1, 1), True, False),  # the span notes the stage
        (CLOSED, FINAL, (1, 1), False, True),  # no span does
        (FINAL, FINAL + 1, (1, 1), False, False),
        (REVISED + 9, FINAL, (1, 2), True, True),
        (FINAL, REVISED + 9, (1, 2), True, False),
    ],
)
def test_a_higher_revision_with_other_values_replaces(before, after, values, covered, written):
    stored = observed((1, 5, values[0], before))
    new = observed((1, 5, values[1], after))
    decision = decide(new, stored, noted(new, covered), held(Stage.CLOSED))
    assert decision.write.tolist() == [written]
    assert decision.changes.tolist() == [written and values[0] != values[1]]
    assert decision.had.tolist() == [True]
    assert decision.added(new.withdrawn).tolist() == [0]


@pytest.mark.parametrize("span", Stage)
@pytest.mark.parametrize(("revision", "stage"), [(CLOSED + 5, 1), (REVISED + 5, 2), (FINAL + 5, 3)])
def test_a_span_holds_its_bars_against_lower_stages(span: Stage, revision: int, stage: int):
    stored = observed((1, 5, 1.0, CLOSED))
    new = observed((1, 5, 2.0, revision))
    decision = decide(new, stored, noted(new), held(span))
    assert decision.write.tolist() == [stage >= span]


def test_the_spans_of_all_series_are_asked_for_at_once():
    asked = []

    def stage_at(number: Int32s, timestamp: Int64s) -> Int64s:
        asked.append((number.tolist(), timestamp.tolist()))
        return np.where(number == 2, int(Stage.FINAL), int(Stage.CLOSED)).astype(np.int64)

    stored = observed(*((n, t, 1.0, CLOSED) for n in (1, 2, 3) for t in (5, 6)))
    new = observed(*((n, t, float(t), CLOSED + 1) for n in (1, 2, 3) for t in (5, 6)))
    decision = decide(new, stored, noted(new), stage_at)
    assert decision.write.tolist() == [True, True, False, False, True, True]
    assert asked == [([1, 1, 2, 2, 3, 3], [5, 6, 5, 6, 5, 6])]


def test_withdrawals_compete_by_revision_like_bars():
    stored = observed(
        (1, 5, 1.0, FINAL), (1, 6, 1.0, FINAL + 5), (2, 5, 1.0, FINAL), withdrawn=(2,)
    )
    new = observed(
        (1, 5, 0.0, FINAL + 1),
        (1, 6, 0.0, FINAL + 1),
        (2, 5, 9.0, FINAL + 1),
        withdrawn=(0, 1),
    )
    decision = decide(new, stored, noted(new), never)
    assert decision.write.tolist() == [True, False, True]
    assert decision.added(new.withdrawn).tolist() == [-1, 0, 1]
    assert decision.had.tolist() == [True, True, False]


def test_series_are_told_apart_whatever_their_labels():
    far = 3_000_000_000_000_000  # half a life, in microseconds
    stored = observed(*((n, t, 1.0, FINAL) for n in (1, 7, 9_000) for t in (0, 1, far + 1)))
    new = observed(*((n, t, 2.0, FINAL + 1) for n in (1, 8, 9_000) for t in (0, 2, far + 1)))
    decision = decide(new, stored, noted(new), never)
    assert decision.had.tolist() == [True, False, True, *[False] * 3, True, False, True]


def test_values_that_are_absent_on_both_sides_are_equal():
    stored, new = observed((1, 5, np.nan, CLOSED)), observed((1, 5, np.nan, FINAL))
    assert not decide(new, stored, noted(new), never).write.any()


def test_the_newest_of_each_bar_is_kept_in_order():
    mixed = observed((2, 1, 1.0, 5), (1, 9, 2.0, 7), (1, 9, 3.0, 6), (1, 1, 4.0, 1), (2, 1, 5.0, 5))
    found = mixed.newest_of_each()
    assert found.number.tolist() == [1, 1, 2]
    assert found.timestamp.tolist() == [1, 9, 1]
    assert found.values[0].tolist() == [4.0, 2.0, 5.0]
    assert found.newest_of_each() is found


def test_corrections_take_their_places():
    bars = observed((1, 1, 1.0, 1), (1, 3, 3.0, 1), (2, 1, 7.0, 1))
    changes = observed((1, 2, 2.0, 9), (1, 3, 0.0, 9), (2, 1, 8.0, 9), withdrawn=(1,))
    found = apply(changes, bars).live()
    assert found.values[0].tolist() == [1.0, 2.0, 8.0]
    assert apply(Observed.empty(), bars) is bars
    assert apply(changes, Observed.empty()) is changes


def test_bars_of_one_series_in_and_out():
    bars = Bars(np.array([1, 2]), np.arange(14, dtype=np.float64).reshape(7, 2))
    one = Observed.of(3, bars, np.array([1, 1]))
    both = Observed.join([Observed.of(1, bars, np.array([1, 1])), one])
    assert both.of_series(3).bars().values.tolist() == bars.values.tolist()
    assert len(both.of_series(2)) == 0
