"""What every `BarStore` promises, run against each implementation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marketdata.bar_history import Trail, as_of
from marketdata.clock import to_micros
from marketdata.protocols import BarStore, Commit, ReadRequest, SeriesState
from marketdata.spans import Span, normalise, subtract
from marketdata.store import PostgresStore
from marketdata.types import (
    CLOSE,
    DAY,
    HIGH,
    LOW,
    MINUTE,
    OPEN,
    TRADE_COUNT,
    VOLUME,
    VWAP,
    Bars,
    SeriesKey,
    Stage,
    Timeframe,
)
from tests.store_examples import (
    AAPL,
    MSFT,
    OBSERVED,
    assert_same_bars,
    commit_of,
    migrated_store,
    minutes,
    some_bars,
    stored,
)


def year(number: int) -> int:
    """The first instant of a year, UTC."""
    return to_micros(datetime(number, 1, 1, tzinfo=UTC))


FEW = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
PRICES = st.floats(min_value=5e-324, max_value=1.7e308, allow_nan=False)


@pytest.fixture(params=["postgres"])
def store(request: pytest.FixtureRequest) -> Iterator[PostgresStore]:
    with migrated_store(request.getfixturevalue("database_url")) as made:
        yield made


def test_a_series_never_written_has_the_empty_state(store: BarStore):
    assert store.states([AAPL, MSFT]) == {AAPL: SeriesState(), MSFT: SeriesState()}
    state, bars = store.read([ReadRequest(AAPL, minutes(0, 10))])[AAPL]
    assert state == SeriesState()
    assert len(bars) == 0
    assert bars.values.shape == (7, 0)


def test_nothing_asked_is_nothing_answered(store: BarStore):
    assert store.states([]) == {}
    assert store.read([]) == {}
    assert store.commit([]) == {}


def test_a_plan_is_told_the_states_and_says_what_is_read_of_them(store: BarStore):
    span = minutes(0, 30)
    commit = commit_of(span)
    store.commit([commit])
    told: list[Mapping[SeriesKey, SeriesState]] = []

    def plan(states: Mapping[SeriesKey, SeriesState]) -> list[ReadRequest]:
        told.append(states)
        return [ReadRequest(key, minutes(0, 10)) for key, state in states.items() if state.coverage]

    states, bars = store.read_planned([MSFT, AAPL], plan)
    assert told == [states]
    assert states == store.states([AAPL, MSFT])
    assert bars.keys() == {AAPL}
    assert_same_bars(bars[AAPL], commit.bars.within(minutes(0, 10)))
    assert store.read_planned([AAPL], lambda _: []) == ({AAPL: states[AAPL]}, {})
    assert store.read_planned([], plan) == ({}, {})
    assert len(told) == 1


def test_a_plan_that_fails_leaves_nothing_behind(store: BarStore):
    class OwnError(Exception):
        pass

    def plan(_: object) -> list[ReadRequest]:
        raise OwnError

    for _ in range(20):  # more often than there are connections
        with pytest.raises(OwnError):
            store.read_planned([AAPL], plan)
    twice = [ReadRequest(AAPL, minutes(0, 1)), ReadRequest(AAPL, minutes(5, 6))]
    with pytest.raises(ValueError, match="one request per series"):
        store.read_planned([AAPL], lambda _: twice)
    assert store.states([AAPL]) == {AAPL: SeriesState()}


def test_the_epoch_tells_stores_apart_and_stays(store: BarStore):
    assert store.epoch == store.epoch
    assert store.epoch > 0


def test_what_was_committed_is_read_with_its_state(store: BarStore):
    span = minutes(0, 390)
    commit = commit_of(span, settled_until=span.end - MINUTE)
    assert store.commit([commit]) == {AAPL: 1}
    state, bars = store.read([ReadRequest(AAPL, span)])[AAPL]
    assert_same_bars(bars, commit.bars)
    assert state == SeriesState(
        coverage=[span],
        revision=1,
        unsettled=[Span(span.end - MINUTE, span.end)],
        first_bar=span.start,
        last_bar=span.end - MINUTE,
        fetched_us=OBSERVED,
    )
    assert store.states([AAPL]) == {AAPL: state}


def test_bars_own_their_memory_and_are_writable(store: BarStore):
    store.commit([commit_of(minutes(0, 5))])
    bars = store.read([ReadRequest(AAPL, minutes(0, 5))])[AAPL][1]
    assert bars.values.flags.c_contiguous
    assert bars.values.dtype == np.float64
    bars.values[0, 0] = 1.0
    bars.timestamp[0] = 1


@given(
    rows=st.lists(
        st.tuples(PRICES, PRICES, st.floats(0, 1.7e308), st.floats(0, 1.7e308) | st.just(np.nan)),
        min_size=1,
        max_size=20,
    )
)
@FEW
def test_invariant_26_values_come_back_bit_for_bit(store: BarStore, rows):
    span = minutes(0, len(rows))
    bars = some_bars(span)
    for i, (one, other, volume, optional) in enumerate(rows):
        bars.values[[OPEN, HIGH, LOW, CLOSE], i] = one, max(one, other), min(one, other), other
        bars.values[[VOLUME, VWAP, TRADE_COUNT], i] = volume, optional, optional
    key = AAPL._replace(symbol="EXACT")
    # later each time, so that this example replaces the one before
    when = store.states([key])[key].revision + 1
    store.commit([Commit(key, bars, span, OBSERVED + when * 1000)])
    assert_same_bars(store.read([ReadRequest(key, span)])[key][1], bars)


def test_absent_vwap_and_trade_count_stay_absent(store: BarStore):
    commit = commit_of(minutes(0, 4))
    commit.bars.values[VWAP] = np.nan
    commit.bars.values[TRADE_COUNT, 2] = np.nan
    store.commit([commit])
    assert_same_bars(store.read([ReadRequest(AAPL, minutes(0, 4))])[AAPL][1], commit.bars)


@pytest.mark.parametrize(("start", "count"), [(0, 1), (3, 4), (9, 1), (-5, 8), (8, 50), (20, 5)])
def test_reads_include_their_start_and_exclude_their_end(store: BarStore, start, count):
    whole = commit_of(minutes(0, 10))
    store.commit([whole])
    wanted = minutes(start, count)
    found = store.read([ReadRequest(AAPL, wanted)])[AAPL][1]
    assert_same_bars(found, whole.bars.within(wanted))


def test_a_read_across_months_and_years_is_in_order(store: BarStore):
    step = 7 * DAY + MINUTE
    span = Span(year(1999), year(2001))
    bars = some_bars(span, step=step)
    store.commit([Commit(AAPL, bars, span, OBSERVED)])
    assert_same_bars(store.read([ReadRequest(AAPL, span)])[AAPL][1], bars)


def test_daily_bars_since_1980_are_kept(store: BarStore):
    key = AAPL.with_timeframe(Timeframe.DAY_1)
    span = Span(year(1980), year(2024))
    bars = some_bars(span, step=DAY)
    store.commit([Commit(key, bars, span, OBSERVED)])
    assert_same_bars(store.read([ReadRequest(key, span)])[key][1], bars)


def test_invariant_07_asked_and_quiet_is_covered(store: BarStore):
    span = minutes(0, 60)
    assert store.commit([Commit(AAPL, Bars.empty(), span, OBSERVED)]) == {AAPL: 1}
    state, bars = store.read([ReadRequest(AAPL, span)])[AAPL]
    assert state == SeriesState([span], revision=1, unsettled=[span], fetched_us=OBSERVED)
    assert len(bars) == 0


@given(
    pieces=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 60)), min_size=1, max_size=12),
    calls=st.integers(1, 4),
)
@FEW
def test_coverage_merges_as_the_span_algebra_says(store: BarStore, pieces, calls):
    key = AAPL._replace(symbol="MERGE")
    before = store.states([key])[key].coverage
    commits = [Commit(key, Bars.empty(), minutes(*p), OBSERVED) for p in pieces]
    for i in range(calls):
        store.commit(commits[i::calls])
    expected = normalise([*before, *(c.covered for c in commits)])
    assert store.states([key])[key].coverage == expected


def test_invariant_13_replaying_a_commit_changes_nothing(store: BarStore):
    commit = commit_of(minutes(0, 30), settled_until=OBSERVED)
    first = store.commit([commit])
    state = store.states([AAPL])
    for _ in range(3):
        assert store.commit([commit]) == first
    later = Commit(AAPL, commit.bars, commit.covered, OBSERVED + MINUTE, OBSERVED)
    assert store.commit([later]) == first
    seen = {AAPL: replace(state[AAPL], fetched_us=OBSERVED + MINUTE)}
    assert store.states([AAPL]) == seen
    assert_same_bars(store.read([ReadRequest(AAPL, minutes(0, 30))])[AAPL][1], commit.bars)


@pytest.mark.parametrize("order", list(itertools.permutations(Stage)))
def test_invariant_14_a_lower_revision_never_replaces_a_higher_one(store: BarStore, order):
    span = minutes(0, 3)
    late_for_ever = span.end
    stages = {
        # the least settled observation is the latest one: the stage decides, not the time
        Stage.CLOSED: commit_of(span, seed=1, observed_us=OBSERVED + 2 * DAY),
        Stage.REVISED: commit_of(
            span, seed=2, observed_us=OBSERVED + DAY, settled_until=late_for_ever
        ),
        Stage.FINAL: commit_of(
            span, seed=3, settled_until=late_for_ever, final_until=late_for_ever
        ),
    }
    for stage in order:
        store.commit([stages[stage]])
    assert_same_bars(store.read([ReadRequest(AAPL, span)])[AAPL][1], stages[Stage.FINAL].bars)


def test_the_same_values_seen_again_at_a_higher_stage_are_held_fast(store: BarStore):
    span = minutes(0, 3)
    store.commit([commit_of(span, seed=1)])
    store.commit([commit_of(span, seed=1, settled_until=span.end, final_until=span.end)])
    store.commit([commit_of(span, seed=2, observed_us=OBSERVED + DAY, settled_until=span.end)])
    assert_same_bars(store.read([ReadRequest(AAPL, span)])[AAPL][1], some_bars(span, 1))


def test_within_a_stage_the_later_observation_wins_in_any_order(store: BarStore):
    span = minutes(0, 3)
    early = commit_of(span, seed=1)
    late = commit_of(span, seed=2, observed_us=OBSERVED + MINUTE)
    for key, order in ((AAPL, (early, late)), (MSFT, (late, early))):
        for commit in order:
            store.commit([Commit(key, commit.bars, span, commit.observed_us)])
        assert_same_bars(store.read([ReadRequest(key, span)])[key][1], late.bars)


def test_the_stage_is_decided_bar_by_bar(store: BarStore):
    span = minutes(0, 9)
    final, settled = minutes(0, 3).end, minutes(0, 6).end
    store.commit([commit_of(span, seed=1, settled_until=settled, final_until=final)])
    later = OBSERVED + MINUTE
    store.commit([commit_of(span, seed=2, observed_us=later, settled_until=settled)])
    found = store.read([ReadRequest(AAPL, span)])[AAPL][1]
    first, second = some_bars(span, 1), some_bars(span, 2)
    assert found.values[:, :3].tobytes() == first.values[:, :3].tobytes()
    assert found.values[:, 3:].tobytes() == second.values[:, 3:].tobytes()


def test_revisions_grow_with_bars_or_coverage_and_only_then(store: BarStore):
    inner, outer = minutes(0, 10), minutes(0, 20)
    assert store.commit([commit_of(inner)]) == {AAPL: 1}
    assert store.commit([commit_of(inner)]) == {AAPL: 1}
    assert store.commit([Commit(AAPL, Bars.empty(), outer, OBSERVED)]) == {AAPL: 2}
    assert store.commit([commit_of(inner, seed=9, observed_us=OBSERVED + MINUTE)]) == {AAPL: 3}
    assert store.states([AAPL])[AAPL].revision == 3


def test_nothing_is_settled_beyond_what_is_covered(store: BarStore):
    store.commit([commit_of(minutes(0, 10), settled_until=OBSERVED)])
    assert unsettled(store) == []
    store.commit([commit_of(minutes(10, 10))])
    assert unsettled(store) == [minutes(10, 10)]
    store.commit([commit_of(minutes(20, 5), settled_until=minutes(0, 3).end)])
    assert unsettled(store) == [minutes(10, 15)]


def test_a_later_commit_does_not_settle_what_it_jumps_over(store: BarStore):
    store.commit([commit_of(minutes(0, 10), settled_until=minutes(0, 9).end)])
    store.commit([commit_of(minutes(30, 10), settled_until=OBSERVED)])
    assert unsettled(store) == [minutes(9, 1)]
    store.commit([commit_of(minutes(9, 21), settled_until=OBSERVED)])
    assert unsettled(store) == []
    assert store.states([AAPL])[AAPL].coverage == [minutes(0, 40)]


def test_an_early_answer_that_comes_late_unsettles_nothing(store: BarStore):
    late = minutes(0, 10)
    early = minutes(5, 10)
    for key, order in ((AAPL, (late, early)), (MSFT, (early, late))):
        for span in order:
            settled = OBSERVED if span is late else minutes(0, 7).end
            store.commit([commit_of(span, key, settled_until=settled)])
        assert unsettled(store, key) == [minutes(10, 5)]


@given(
    pieces=st.lists(
        st.tuples(st.integers(0, 60), st.integers(1, 30), st.integers(0, 90) | st.none()),
        min_size=1,
        max_size=8,
    ),
    calls=st.integers(1, 3),
)
@FEW
def test_unsettled_is_what_is_covered_and_never_was_settled(store: BarStore, pieces, calls):
    numbers = range(10_000)
    key = next(
        k for n in numbers if not store.states([k := AAPL._replace(symbol=f"U{n}")])[k].coverage
    )
    commits = [
        Commit(key, Bars.empty(), minutes(start, count), OBSERVED, None if s is None else at(s))
        for start, count, s in pieces
    ]
    for i in range(calls):
        store.commit(commits[i::calls])
    covered = normalise(c.covered for c in commits)
    settled = normalise(c.covered.clip(Span(0, c.settled_until or 0)) for c in commits)
    state = store.states([key])[key]
    assert state.coverage == covered
    assert state.unsettled == subtract(covered, settled)


def at(minute: int) -> int:
    return minutes(minute, 1).start


def unsettled(store: BarStore, key: SeriesKey = AAPL) -> list[Span]:
    return store.states([key])[key].unsettled


def test_a_stored_bar_that_a_new_answer_lacks_stays(store: BarStore):
    store.commit([commit_of(minutes(0, 5))])
    store.commit([Commit(AAPL, Bars.empty(), minutes(0, 5), OBSERVED + DAY, OBSERVED, OBSERVED)])
    found = store.read([ReadRequest(AAPL, minutes(0, 5))])[AAPL][1]
    assert_same_bars(found, some_bars(minutes(0, 5)))


def test_final_is_what_is_covered_and_was_observed_late_enough(store: BarStore):
    store.commit([commit_of(minutes(0, 10), settled_until=OBSERVED, final_until=at(4))])
    assert store.states([AAPL])[AAPL].final == [minutes(0, 4)]
    store.commit([commit_of(minutes(2, 10), settled_until=OBSERVED, final_until=OBSERVED)])
    store.commit([commit_of(minutes(20, 5), settled_until=OBSERVED)])
    state = store.states([AAPL])[AAPL]
    assert state.final == [minutes(0, 12)]
    assert state.coverage == [minutes(0, 12), minutes(20, 5)]
    assert state.sealed == []


def test_a_final_span_is_held_against_earlier_stages_bar_by_bar(store: PostgresStore):
    span = minutes(0, 6)
    store.commit([commit_of(span, seed=1)])
    # seen again, equal: nothing is written, and yet the span holds
    again = commit_of(span, seed=1, settled_until=OBSERVED, final_until=at(3))
    revisions = store.commit([replace(again, observed_us=OBSERVED + DAY)])
    assert revisions == {AAPL: 1}
    store.commit([commit_of(span, seed=2, observed_us=OBSERVED + 2 * DAY, settled_until=OBSERVED)])
    found = stored(store, span)
    assert_same_bars(found.within(minutes(0, 3)), some_bars(span, 1).within(minutes(0, 3)))
    assert_same_bars(found.within(minutes(3, 3)), some_bars(span, 2).within(minutes(3, 3)))


def test_an_earlier_stage_may_add_a_bar_that_the_final_answer_lacked(store: PostgresStore):
    span = minutes(0, 3)
    lacking = some_bars(span).take(np.array([0, 2]))
    store.commit([Commit(AAPL, lacking, span, OBSERVED, OBSERVED, OBSERVED)])
    store.commit([commit_of(span, seed=5)])
    assert stored(store, span).timestamp.tolist() == some_bars(span).timestamp.tolist()
    assert_same_bars(stored(store, minutes(1, 1)), some_bars(span, 5).within(minutes(1, 1)))


def test_bars_without_a_statement_of_coverage_cover_nothing(store: PostgresStore):
    bars = some_bars(minutes(0, 5))
    commit = Commit(AAPL, bars, Span(0, 0), OBSERVED, OBSERVED, OBSERVED)
    assert store.commit([commit]) == {AAPL: 1}
    state = store.states([AAPL])[AAPL]
    assert (state.coverage, state.unsettled, state.final) == ([], [], [])
    assert (state.first_bar, state.last_bar) == (at(0), at(4))
    assert_same_bars(stored(store, minutes(0, 5)), bars)
    # no span holds these bars: their own stage does
    store.commit([commit_of(minutes(0, 5), seed=1, observed_us=OBSERVED + DAY)])
    assert_same_bars(stored(store, minutes(0, 5)), bars)


# ------------------------------------------------------------------------------ withdrawn bars


def withdrawal(labels: list[int], observed_us: int, **stages: int | None) -> Commit:
    commit = Commit(AAPL, Bars.empty(), minutes(0, 10), observed_us, **stages)  # type: ignore[arg-type]
    return replace(commit, withdrawn=np.array([at(label) for label in labels], np.int64))


@pytest.mark.parametrize(("gone", "ends"), [([4], (0, 9)), ([0, 1], (2, 9)), ([9], (0, 8))])
def test_withdrawn_bars_are_no_longer_read_or_counted(store: PostgresStore, gone, ends):
    span = minutes(0, 10)
    store.commit([commit_of(span)])
    assert store.commit([withdrawal(gone, OBSERVED + MINUTE)]) == {AAPL: 2}
    kept = ~np.isin(np.arange(10), gone)
    assert_same_bars(stored(store, span), some_bars(span).take(kept))
    state = store.states([AAPL])[AAPL]
    assert (state.first_bar, state.last_bar) == (at(ends[0]), at(ends[1]))
    assert state.coverage == [span]
    assert store.metadata(["AAPL"])[0].total_bars_stored == kept.sum()
    assert store.commit([withdrawal(gone, OBSERVED + MINUTE)]) == {AAPL: 2}, "a replay"


def test_the_last_bar_withdrawn_leaves_a_covered_series_without_bars(store: PostgresStore):
    store.commit([commit_of(minutes(0, 2))])
    store.commit([withdrawal([0, 1], OBSERVED + MINUTE)])
    state = store.states([AAPL])[AAPL]
    assert (state.first_bar, state.last_bar, state.coverage) == (None, None, [minutes(0, 10)])
    assert len(stored(store, minutes(0, 10))) == 0
    assert store.metadata(["AAPL"])[0].total_bars_stored == 0


def test_only_a_later_observation_brings_a_withdrawn_bar_back(store: PostgresStore):
    span = minutes(0, 10)
    store.commit([commit_of(span)])
    store.commit([withdrawal([3], OBSERVED + DAY, settled_until=OBSERVED)])
    for late, settled in ((MINUTE, OBSERVED), (2 * DAY, None)):
        store.commit([commit_of(span, seed=1, observed_us=OBSERVED + late, settled_until=settled)])
        assert at(3) not in stored(store, span).timestamp
    back = commit_of(span, seed=2, observed_us=OBSERVED + 2 * DAY, settled_until=OBSERVED)
    store.commit([back])
    assert_same_bars(stored(store, span), back.bars)
    assert store.metadata(["AAPL"])[0].total_bars_stored == 10


def test_a_withdrawal_known_before_the_bar_keeps_it_out(store: PostgresStore):
    store.commit([withdrawal([3], OBSERVED + MINUTE)])
    store.commit([commit_of(minutes(0, 10))])
    assert at(3) not in stored(store, minutes(0, 10)).timestamp
    assert store.metadata(["AAPL"])[0].total_bars_stored == 9


def test_a_bar_given_beside_its_own_withdrawal_stays(store: PostgresStore):
    both = replace(commit_of(minutes(0, 3)), withdrawn=np.array([at(1)], np.int64))
    store.commit([both])
    assert_same_bars(stored(store, minutes(0, 3)), both.bars)


# -------------------------------------------------------------------------------- sealed bars

SESSION = minutes(-330, 960)
"""Extended hours of 2024-01-02 in New York."""


def sealed_commit(span: Span, seed: int = 0, key: SeriesKey = AAPL, late: int = 0) -> Commit:
    """Bars of every minute of `span`, final, that may be sealed."""
    when = year(2025) + late
    commit = commit_of(span, key, seed=seed, observed_us=when, settled_until=when, final_until=when)
    return replace(commit, sealed=True)


def test_whole_final_sessions_are_sealed_at_once_and_read_like_any_others(store: PostgresStore):
    two = Span(SESSION.start, SESSION.end + DAY)
    commit = sealed_commit(two)
    assert store.commit([commit, sealed_commit(two, 1, MSFT)]) == {AAPL: 1, MSFT: 1}
    midnight = SESSION.start - 240 * MINUTE
    state, bars = store.read([ReadRequest(AAPL, two)])[AAPL]
    assert state.sealed == [Span(midnight, midnight + 2 * DAY)]
    assert (state.coverage, state.final) == ([two], [two])
    assert (state.first_bar, state.last_bar) == (two.start, two.end - MINUTE)
    assert_same_bars(bars, commit.bars)
    assert bars.values.flags.c_contiguous
    bars.values[0, 0] = bars.timestamp[0] = 1
    for start, count in ((0, 1), (-330, 5), (629, 2), (600, 400), (1000, 2000)):
        wanted = minutes(start, count)
        assert_same_bars(stored(store, wanted), commit.bars.within(wanted))
    assert store.commit([commit]) == {AAPL: 1}, "a replay"
    assert store.holdings(["AAPL"])[0].sealed_count == len(commit.bars)


def test_a_session_that_comes_in_parts_is_sealed_when_it_is_whole(store: PostgresStore):
    whole = sealed_commit(SESSION)
    parts = [Span(SESSION.start, at(0)), Span(at(0), at(200)), Span(at(200), SESSION.end)]
    for part in parts:
        assert store.states([AAPL])[AAPL].sealed == []
        store.commit([replace(whole, bars=whole.bars.within(part), covered=part)])
        assert_same_bars(stored(store, SESSION), whole.bars.within(Span(SESSION.start, part.end)))
    assert len(store.states([AAPL])[AAPL].sealed) == 1
    assert store.holdings(["AAPL"])[0].row_count == 0


def test_what_is_stored_already_is_sealed_with_it_by_revision(store: PostgresStore):
    newer, older = minutes(0, 10), minutes(20, 10)
    later = year(2026)
    final = commit_of(newer, seed=7, observed_us=later, settled_until=later, final_until=later)
    store.commit([final, commit_of(older, seed=8)])
    store.commit([sealed_commit(SESSION)])
    expected = sealed_commit(SESSION).bars
    first = int(np.searchsorted(expected.timestamp, newer.start))
    expected.values[:, first : first + 10] = final.bars.values
    assert_same_bars(stored(store, SESSION), expected)
    assert store.holdings(["AAPL"])[0].row_count == 0


def test_sealed_bars_are_corrected_and_withdrawn_by_later_final_observations(store: PostgresStore):
    store.commit([sealed_commit(SESSION)])
    expected = sealed_commit(SESSION).bars
    late = year(2025) + DAY
    early = commit_of(minutes(0, 5), seed=3, observed_us=late, settled_until=late)
    assert store.commit([early]) == {AAPL: 1}, "not final"
    older = sealed_commit(minutes(0, 5), seed=3, late=-DAY)
    assert store.commit([older]) == {AAPL: 1}, "observed before"
    assert_same_bars(stored(store, SESSION), expected)
    change = replace(
        sealed_commit(minutes(0, 5), seed=3, late=DAY),
        withdrawn=np.array([at(7), at(-330)], np.int64),
    )
    assert store.commit([change]) == {AAPL: 2}
    first = int(np.searchsorted(expected.timestamp, at(0)))
    expected.values[:, first : first + 5] = change.bars.values
    expected = expected.take(~np.isin(expected.timestamp, [at(7), at(-330)]))
    assert_same_bars(stored(store, SESSION), expected)
    assert store.states([AAPL])[AAPL].first_bar == at(-329)
    holding = store.holdings(["AAPL"])[0]
    assert (holding.sealed_count, holding.corrections_pending) == (len(expected), 7)
    # and back again
    store.commit([sealed_commit(SESSION, late=2 * DAY)])
    assert_same_bars(stored(store, SESSION), sealed_commit(SESSION).bars)


def test_daily_bars_and_bars_that_are_not_final_are_not_sealed(store: BarStore):
    daily = AAPL.with_timeframe(Timeframe.DAY_1)
    early = replace(commit_of(SESSION, MSFT, settled_until=OBSERVED), sealed=True)
    store.commit([sealed_commit(SESSION, 0, daily), early])
    for key in (daily, MSFT):
        state, bars = store.read([ReadRequest(key, SESSION)])[key]
        assert state.sealed == []
        assert len(bars) == 960


def test_rows_and_sealed_bars_of_many_series_in_one_read(store: BarStore):
    keys = [AAPL._replace(symbol=f"S{n}") for n in range(40)]
    span = Span(SESSION.start, SESSION.end + 10 * MINUTE)
    rest = Span(SESSION.end, span.end)
    store.commit(
        [
            *(sealed_commit(SESSION, n, key) for n, key in enumerate(keys) if n % 3),
            *(commit_of(rest, key, seed=n) for n, key in enumerate(keys) if n % 2),
        ]
    )
    found = store.read([ReadRequest(key, span) for key in keys])
    for n, key in enumerate(keys):
        parts = [some_bars(SESSION, n)] * bool(n % 3) + [some_bars(rest, n)] * (n % 2)
        assert_same_bars(found[key][1], Bars.concat(parts))


def test_series_never_mix(store: BarStore):
    span = minutes(0, 5)
    keys = [
        AAPL,
        AAPL._replace(feed="iex"),
        AAPL._replace(provider="sandbox"),
        AAPL.with_timeframe(Timeframe.MIN_5),
        AAPL.with_timeframe(Timeframe.DAY_1),
        MSFT,
    ]
    commits = [commit_of(span, key, seed=i) for i, key in enumerate(keys)]
    store.commit(commits)
    found = store.read([ReadRequest(key, span) for key in keys])
    for commit in commits:
        assert_same_bars(found[commit.key][1], commit.bars)
        assert found[commit.key][0].coverage == [span]


def test_different_spans_of_many_series_in_one_read(store: BarStore):
    keys = [AAPL._replace(symbol=f"S{i}") for i in range(300)]
    store.commit([commit_of(minutes(i, 3), key, seed=i) for i, key in enumerate(keys)])
    found = store.read([ReadRequest(k, minutes(i + 1, 2)) for i, k in enumerate(keys)])
    for i, key in enumerate(keys):
        assert_same_bars(found[key][1], some_bars(minutes(i, 3), i).within(minutes(i + 1, 2)))


def test_two_requests_for_one_series_are_refused(store: BarStore):
    request = ReadRequest(AAPL, minutes(0, 5))
    with pytest.raises(ValueError, match="one request per series"):
        store.read([request, request])


def test_commits_of_one_series_in_one_call_are_merged(store: BarStore):
    newer = commit_of(minutes(2, 4), seed=2, observed_us=OBSERVED + MINUTE)
    store.commit([newer, commit_of(minutes(0, 4), seed=1)])
    found = store.read([ReadRequest(AAPL, minutes(0, 6))])[AAPL]
    first = some_bars(minutes(0, 4), 1).within(minutes(0, 2))
    assert_same_bars(found[1], Bars.concat([first, newer.bars]))
    assert found[0].coverage == [minutes(0, 6)]


def test_before_commit_sees_the_new_revisions(store: BarStore):
    seen: list[dict[SeriesKey, int]] = []
    given_back = store.commit(
        [commit_of(minutes(0, 3)), commit_of(minutes(0, 3), MSFT)], lambda r: seen.append(dict(r))
    )
    assert seen == [{AAPL: 1, MSFT: 1}]
    assert given_back == {AAPL: 1, MSFT: 1}


def test_an_error_before_commit_stores_nothing(store: BarStore):
    def fail(_: object) -> None:
        raise RuntimeError("the cache is on fire")

    with pytest.raises(RuntimeError, match="on fire"):
        store.commit([commit_of(minutes(0, 3))], fail)
    assert store.states([AAPL]) == {AAPL: SeriesState()}
    assert len(store.read([ReadRequest(AAPL, minutes(0, 3))])[AAPL][1]) == 0


def test_holdings_count_each_bar_once(store: PostgresStore):
    store.commit([commit_of(minutes(0, 10))])
    store.commit([commit_of(minutes(5, 10), seed=2, observed_us=OBSERVED + MINUTE)])
    store.commit([commit_of(minutes(-5, 30), seed=3, observed_us=OBSERVED + 2 * MINUTE)])
    assert store.metadata(["AAPL"])[0].total_bars_stored == 30
    assert len(stored(store, minutes(-10, 100))) == 30


def test_the_trail_of_what_was_never_written_is_empty_and_complete(store: BarStore):
    trail = store.trail([ReadRequest(AAPL, minutes(0, 10))], OBSERVED)[AAPL]
    assert isinstance(trail, Trail)
    assert (len(trail.entries), len(trail.arrivals.first), trail.untrailed_until) == (0, 0, None)
    assert store.trail([]) == {}


def test_what_was_replaced_can_be_had_back_from_the_trail(store: BarStore):
    span = minutes(0, 10)
    first, second = commit_of(span, seed=1), commit_of(span, seed=2, observed_us=OBSERVED + MINUTE)
    store.commit([first])
    store.commit([second])
    store.commit([second, first])
    request = ReadRequest(AAPL, span)
    now = store.read([request])[AAPL][1]
    assert_same_bars(now, second.bars)
    for moment, expected in ((OBSERVED, first), (OBSERVED + MINUTE, second)):
        trail = store.trail([request], moment)[AAPL]
        assert_same_bars(as_of(now, trail.entries, moment), expected.bars)
    assert len(store.trail([request])[AAPL].entries) == 10
    assert len(store.trail([request], OBSERVED + MINUTE)[AAPL].entries) == 0
