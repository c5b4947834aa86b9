"""The trail of revisions in PostgreSQL: kept with the commit that changes something, and cut with it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest

from marketdata.bar_history import Trail, as_of, observed_us
from marketdata.drift import DriftCount
from marketdata.protocols import Commit, ReadRequest
from marketdata.spans import Span
from marketdata.store import PostgresStore
from marketdata.types import (
    CLOSE,
    DAY,
    HOUR,
    MINUTE,
    REVISION_STAGE,
    SECOND,
    VOLUME,
    Bars,
    SeriesKey,
    Timeframe,
)
from tests.sealed_examples import (
    OBSERVED_LATE,
    SealedStore,
    final_commit,
    midnight,
    session_bars,
    sessions,
)
from tests.sealed_examples import without as without_labels
from tests.store_examples import AAPL, MSFT, assert_same_bars, migrated_store, minutes, some_bars

SPAN = minutes(0, 60)
SEEN = SPAN.end + 3 * SECOND
LATER = SPAN.end + 2 * HOUR
EVENING = SPAN.end + 12 * HOUR
NIGHT = EVENING + DAY


@pytest.fixture
def made(database_url: str) -> Iterator[SealedStore]:
    with (
        migrated_store(database_url) as store,
        psycopg.connect(database_url, autocommit=True) as plain,
    ):
        yield SealedStore(store, plain)


def seen(bars: Bars, at: int, *, stage: int = 1, key: SeriesKey = AAPL, **more: Any) -> Commit:
    settled = None if stage == 1 else SPAN.end
    return Commit(key, bars, SPAN, at, settled, SPAN.end if stage == 3 else None, **more)


def changed(bars: Bars, *places: int, by: float = 0.25, row: int = CLOSE) -> Bars:
    values = bars.values.copy()
    values[row, list(places)] += by
    return Bars(bars.timestamp, values)


def live(bars: Bars, until: int = SPAN.end, key: SeriesKey = AAPL) -> list[Commit]:
    """Commits as a daemon makes them, if not every minute."""
    parts = [Span(at, at + 5 * MINUTE) for at in range(SPAN.start, until, 5 * MINUTE)]
    return [Commit(key, bars.within(part), part, part.end + 3 * SECOND) for part in parts]


def without(bars: Bars, *places: int) -> Bars:
    return without_labels(bars, bars.timestamp[list(places)])


def trail_of(store: PostgresStore, key: SeriesKey = AAPL, span: Span = SPAN) -> Trail:
    return store.trail([ReadRequest(key, span)])[key]


def known_at(store: PostgresStore, moment: int, key: SeriesKey = AAPL, span: Span = SPAN) -> Bars:
    request = ReadRequest(key, span)
    bars = store.read([request])[key][1]
    return as_of(bars, store.trail([request], moment)[key].entries, moment)


def written(made: SealedStore) -> list[Any]:
    tables = ("bar_revisions", "bar_arrivals", "drift_counters")
    return [
        made.plain.execute(f"SELECT t::text FROM marketdata.{table} AS t ORDER BY 1").fetchall()
        for table in tables
    ]


def test_old_and_new_values_are_kept_and_every_moment_can_be_read_again(made: SealedStore):
    first = some_bars(SPAN)
    second = changed(first, 3, 4)
    third = changed(second, 4, by=1.0, row=VOLUME)
    made.store.commit([seen(first, SEEN)])
    made.store.commit([seen(second, LATER, stage=2)])
    made.store.commit([seen(third, EVENING, stage=3)])
    found = trail_of(made.store).entries
    assert found.timestamp.tolist() == [first.timestamp[p] for p in (3, 4, 4)]
    assert (observed_us(found.new_revision) == [LATER, LATER, EVENING]).all()
    assert (observed_us(found.old_revision) == [SEEN, SEEN, LATER]).all()
    assert (found.new_revision // REVISION_STAGE).tolist() == [2, 2, 3]
    assert found.old_stage.tolist() == [1, 1, 2]
    np.testing.assert_array_equal(found.old_values[:, 2], second.values[:, 4])
    np.testing.assert_array_equal(found.new_values[:, 2], third.values[:, 4])
    assert not found.old_absent.any()
    assert not found.new_absent.any()
    for moment, expected in (
        (SPAN.start, first), (SEEN, first), (LATER - 1000, first),
        (LATER, second), (EVENING - 1000, second), (EVENING, third), (NIGHT, third),
    ):  # fmt: skip
        assert_same_bars(known_at(made.store, moment), expected)


def test_a_replay_writes_nothing(made: SealedStore):
    first = some_bars(SPAN)
    commits = [seen(first, SEEN), seen(changed(first, 3), LATER, stage=2)]
    commits.append(seen(without(first, 9), EVENING, stage=3, withdrawn=first.timestamp[[9]]))
    for commit in commits:
        made.store.commit([commit])
    before = written(made)
    assert len(before[0]) == 3
    for commit in [*commits, *commits[::-1]]:
        made.store.commit([commit])
    assert written(made) == before


def test_what_does_not_differ_leaves_no_trace(made: SealedStore):
    first = some_bars(SPAN)
    made.store.commit(live(first))
    for at, stage in ((LATER, 2), (EVENING, 3), (NIGHT, 3)):
        made.store.commit([seen(first, at, stage=stage)])
    assert written(made) == [[], [], []]
    assert trail_of(made.store).untrailed_until is None


def test_withdrawn_bars_are_in_the_trail_and_so_is_their_return(made: SealedStore):
    first = some_bars(SPAN)
    made.store.commit([seen(first, SEEN)])
    gone = first.timestamp[[7]]
    made.store.commit([seen(without(first, 7), EVENING, stage=3, withdrawn=gone)])
    made.store.commit([seen(changed(first, 7), NIGHT, stage=3)])
    found = trail_of(made.store).entries
    assert found.timestamp.tolist() == gone.tolist() * 2
    assert found.old_absent.tolist() == [False, True]
    assert found.new_absent.tolist() == [True, False]
    assert_same_bars(known_at(made.store, LATER), first)
    assert_same_bars(known_at(made.store, EVENING), without(first, 7))
    assert_same_bars(known_at(made.store, NIGHT), changed(first, 7))
    tombs = made.store.past.tombstones("alpaca", "sip", None, SPAN)
    assert tombs == []
    made.store.commit([seen(without(first, 7), NIGHT + DAY, stage=3, withdrawn=gone)])
    (tomb,) = made.store.past.tombstones("alpaca", "sip", ["AAPL"], SPAN)
    assert (tomb.key, tomb.label, tomb.observed_us) == (AAPL, gone[0], NIGHT + DAY)


def test_a_bar_that_appears_where_an_answer_had_none_was_not_known_before(made: SealedStore):
    whole = some_bars(SPAN)
    made.store.commit(live(without(whole, 5)))
    made.store.commit([seen(whole, LATER, stage=2)])
    found = trail_of(made.store)
    assert found.entries.timestamp.tolist() == [whole.timestamp[5]]
    assert found.entries.old_absent.tolist() == [True]
    assert found.entries.old_revision.tolist() == [0]
    assert len(found.arrivals.first) == 0
    assert_same_bars(known_at(made.store, SEEN), without(whole, 5))
    assert_same_bars(known_at(made.store, LATER), whole)


def test_what_is_first_observed_late_is_an_arrival_and_known_from_its_close(made: SealedStore):
    bars = some_bars(SPAN)
    early = Span(SPAN.start, SPAN.start + 20 * MINUTE)
    made.store.commit(live(bars, early.end))
    made.store.commit([seen(bars, NIGHT, stage=3)])
    found = trail_of(made.store)
    assert len(found.entries) == 0
    rows = zip(found.arrivals.first, found.arrivals.last, found.arrivals.observed, strict=True)
    assert list(rows) == [(early.end, bars.timestamp[-1], NIGHT)]
    assert found.arrivals.count(bars.timestamp) == 40
    assert_same_bars(known_at(made.store, SPAN.start), bars)
    later = made.store.trail([ReadRequest(AAPL, SPAN)], NIGHT)[AAPL]
    assert len(later.arrivals.first) == 0


def test_bars_of_a_provider_that_is_late_itself_are_no_arrivals(made: SealedStore):
    bars, delay = some_bars(SPAN), 16 * MINUTE
    for label in bars.timestamp.tolist():
        span = Span(label, label + MINUTE)
        observed = span.end + delay + 30 * SECOND
        made.store.commit([Commit(AAPL, bars.within(span), span, observed, delay=delay)])
    assert len(trail_of(made.store).arrivals.first) == 0


def test_stretches_that_came_late_end_where_a_bar_was_known_already(made: SealedStore):
    bars = some_bars(SPAN)
    part = minutes(30, 1)
    made.store.commit([Commit(AAPL, bars.within(part), Span(0, 0), part.end)])
    made.store.commit([seen(bars, NIGHT, stage=3), seen(some_bars(SPAN), NIGHT, key=MSFT)])
    found = trail_of(made.store).arrivals
    at = bars.timestamp
    assert found.first.tolist() == [at[0], at[31]]
    assert found.last.tolist() == [at[29], at[-1]]
    other = trail_of(made.store, MSFT).arrivals
    assert (other.first.tolist(), other.last.tolist()) == ([at[0]], [at[-1]])


@pytest.mark.parametrize("kept", [(), ("MSFT",)])
def test_without_a_trail_a_series_remembers_up_to_when_it_changed(database_url: str, kept):
    with migrated_store(database_url, trail=kept) as store:
        first = some_bars(SPAN)
        both = [AAPL, MSFT]
        store.commit([seen(first, SEEN, key=key) for key in both])
        assert trail_of(store).untrailed_until is None
        store.commit([seen(changed(first, 3), LATER, stage=2, key=key) for key in both])
        found = trail_of(store)
        assert len(found.entries) == 0
        assert found.untrailed_until == LATER
        assert not found.complete_since(SEEN)
        assert found.complete_since(LATER)
        other = trail_of(store, MSFT)
        assert len(other.entries) == len(kept)
        assert other.complete_since(SEEN) == bool(kept)
        counts = {(c.stage, c.field): c.bars for c in store.past.counts()}
        assert counts == {("closed->revised", "bars"): 2, ("closed->revised", "close"): 2}


def test_drift_is_counted_by_stage_and_field(made: SealedStore):
    first = some_bars(SPAN)
    made.store.commit([seen(first, SEEN), seen(first, SEEN, key=MSFT)])
    second = changed(first, 3, 4)
    made.store.commit([seen(second, LATER, stage=2)])
    third = changed(without(second, 9), 4, row=VOLUME)
    gone = first.timestamp[[9]]
    made.store.commit([seen(third, EVENING, stage=3, withdrawn=gone)])
    made.store.commit([seen(changed(second, 11), NIGHT, stage=3), seen(first, NIGHT, key=MSFT)])
    found = {(c.stage, c.field): (c.bars, c.largest) for c in made.store.past.counts()}
    share = float((0.25 / np.abs(first.values[CLOSE, [3, 4]])).max())
    bars, largest = found["closed->revised", "close"]
    assert bars == 2
    assert largest == pytest.approx(share)
    assert found["closed->revised", "bars"] == (2, 0.0)
    assert found["revised->final", "bars"] == (2, 0.0)
    assert found["revised->final", "volume"][0] == 1
    assert found["revised->final", "withdrawn"] == (1, 0.0)
    assert found["final->verified", "bars"] == (3, 0.0)
    assert found["final->verified", "returned"] == (1, 0.0)
    assert found["final->verified", "close"][0] == 1
    assert found["final->verified", "volume"][0] == 1
    assert {c[:3] for c in made.store.past.counts()} == {("alpaca", "sip", "1min")}
    assert isinstance(made.store.past.counts()[0], DriftCount)


def test_sealed_bars_keep_their_trail_through_sealing_and_unsealing(made: SealedStore):
    days = sessions("2024-01-02", "2024-01-06")
    bars = session_bars(days)
    made.store.commit([final_commit(days)])
    made.seal("2024-01-08")
    assert made.rows() == 0
    corrected = changed(without(bars, 5), 100, 300)
    made.store.commit([
        Commit(
            AAPL, corrected, days, OBSERVED_LATE + HOUR, OBSERVED_LATE, OBSERVED_LATE,
            withdrawn=bars.timestamp[[5]],
        )
    ])  # fmt: skip
    entries = trail_of(made.store, span=days).entries
    assert len(entries) == 3
    assert entries.new_absent.sum() == 1

    def check() -> None:
        assert_same_bars(known_at(made.store, OBSERVED_LATE, span=days), bars)
        assert_same_bars(known_at(made.store, OBSERVED_LATE + HOUR, span=days), corrected)

    check()
    made.seal("2024-01-08")
    check()
    list(made.sealer.unseal(AAPL, days))
    assert made.rows() == len(corrected)
    check()
    made.sealer.unpin()
    made.seal("2024-01-08")
    check()


def test_retention_cuts_the_trail_with_the_bars(made: SealedStore):
    days = sessions("2024-01-02", "2024-01-06")
    bars = session_bars(days)
    made.store.commit([final_commit(days)])
    far = len(bars) - 10
    made.store.commit(
        [
            Commit(
                AAPL,
                changed(bars, 100, far),
                days,
                OBSERVED_LATE + HOUR,
                OBSERVED_LATE,
                OBSERVED_LATE,
            )
        ]
    )
    assert len(trail_of(made.store, span=days).entries) == 2
    made.retention.cut(AAPL, midnight("2024-01-04"))
    left = trail_of(made.store, span=days)
    assert left.entries.timestamp.tolist() == [bars.timestamp[far]]
    assert left.complete_since(OBSERVED_LATE)


def test_entries_of_many_series_come_back_apart(made: SealedStore):
    keys = [AAPL, MSFT, AAPL.with_timeframe(Timeframe.HOUR_1)]
    first = some_bars(SPAN)
    made.store.commit([seen(first, SEEN, key=key) for key in keys[:2]])
    made.store.commit([
        seen(changed(first, place + 1, place + 2), LATER, stage=2, key=key)
        for place, key in enumerate(keys[:2])
    ])  # fmt: skip
    part = Span(int(first.timestamp[2]), int(first.timestamp[3]))
    found = made.store.trail(
        [ReadRequest(AAPL, SPAN), ReadRequest(MSFT, part), ReadRequest(keys[2], SPAN)]
    )
    assert found[AAPL].entries.timestamp.tolist() == first.timestamp[[1, 2]].tolist()
    assert found[MSFT].entries.timestamp.tolist() == [first.timestamp[2]]
    assert len(found[keys[2]].entries) == 0
    assert made.store.trail([]) == {}


def test_the_view_for_people_says_the_same(made: SealedStore):
    first = some_bars(SPAN)
    made.store.commit([seen(first, SEEN)])
    made.store.commit([seen(changed(first, 3), LATER, stage=2)])
    row = made.plain.execute(
        "SELECT symbol, state_from, state_to, extract(epoch FROM observed_to) * 1000000,"
        " close_from, close_to, withdrawn FROM marketdata.bar_trail"
    ).fetchone()
    assert row is not None
    close = first.values[CLOSE, 3]
    assert row == ("AAPL", "closed", "revised", LATER, close, close + 0.25, False)


def test_the_trail_is_part_of_the_commit(made: SealedStore):
    first = some_bars(SPAN)
    made.store.commit([seen(first, SEEN)])
    before = written(made)

    def fails(_: object) -> None:
        raise RuntimeError(secrets.token_hex(4))

    with pytest.raises(RuntimeError):
        made.store.commit([seen(changed(first, 3), LATER, stage=2)], before_commit=fails)
    assert written(made) == before
    assert_same_bars(known_at(made.store, NIGHT), first)
