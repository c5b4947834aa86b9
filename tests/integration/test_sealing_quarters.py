"""Complete quarters as one chunk: joined by night and never twice; corrected, unsealed, cut and read
like any other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
from sqlalchemy import Connection

from marketdata.errors import StoreError
from marketdata.protocols import ReadRequest
from marketdata.spans import Span, intersect
from marketdata.store import chunk_table, corrections, reading
from marketdata.store.connection import driver
from marketdata.store.sealing import Moved
from marketdata.tiling import month_spans
from marketdata.types import DAY, MINUTE, Bars
from tests.sealed_examples import (
    CALENDAR,
    SealedStore,
    final_commit,
    midnight,
    session_bars,
    sessions,
    without,
)
from tests.store_examples import AAPL, assert_same_bars, migrated_store, some_bars, stored

SPAN = sessions("2023-12-20", "2024-07-10")
"""Two whole quarters, and a piece of the one before and the one after."""
BARS = session_bars(SPAN)
BEFORE = "2024-07-08"
DECEMBER = ("2023-12-20", "2023-12-25"), ("2023-12-25", "2024-01-01")
WINTER, SPRING = ("2024-01-01", "2024-04-01"), ("2024-04-01", "2024-07-01")
JULY = ("2024-07-01", "2024-07-08")
JOINED = [*DECEMBER, WINTER, SPRING, JULY]


@pytest.fixture
def empty(database_url: str) -> Iterator[SealedStore]:
    with (
        migrated_store(database_url) as store,
        psycopg.connect(database_url, autocommit=True) as plain,
    ):
        yield SealedStore(store, plain)


@pytest.fixture
def months(empty: SealedStore) -> SealedStore:
    """As a backfill leaves it: a chunk for each complete month."""
    edge = Span(SPAN.start, midnight(BEFORE) + 4 * 60 * MINUTE)
    for month in month_spans(SPAN):
        for part in intersect([month], [edge]):
            empty.store.commit([final_commit(part, bars=BARS.within(part), sealed=True)])
    rest = Span(edge.end, SPAN.end)
    empty.store.commit([final_commit(rest, bars=BARS.within(rest))])
    assert len(empty.chunks()) == 9
    return empty


@pytest.fixture
def made(months: SealedStore) -> SealedStore:
    """As the night after leaves it."""
    months.seal(BEFORE)
    assert months.chunks() == JOINED
    return months


def check(made: SealedStore, expected: Bars) -> None:
    assert_same_bars(stored(made.store, SPAN), expected)
    (holding,) = made.store.holdings(["AAPL"])
    assert holding.bar_count == len(expected)
    assert holding.row_count == made.rows()
    state = made.store.states([AAPL])[AAPL]
    assert (state.first_bar, state.last_bar) == tuple(expected.timestamp[[0, -1]].tolist())


def written(made: SealedStore) -> dict[str, Any]:
    """Who wrote each chunk, by its first day: changes whenever it is written again."""
    found = made.plain.execute(
        "SELECT (span_start AT TIME ZONE 'America/New_York')::date::text, xmin::text"
        " FROM bar_chunks"
    )
    return dict(found.fetchall())


def nothing_to_do(made: SealedStore) -> bool:
    """Whether another night writes nothing, and does not even look."""
    before = written(made)
    idle = AAPL not in made.sealer.candidates(midnight(BEFORE))
    return idle and made.seal(BEFORE) == [Moved()] and written(made) == before


# -------------------------------------------------------------------------------------- joining


def test_the_months_of_a_backfill_are_joined_by_night_and_only_once(months: SealedStore):
    others = {first: writer for first, writer in written(months).items() if first < "2024"}
    assert months.sealer.candidates(midnight(BEFORE)) == [AAPL]
    moved = months.seal(BEFORE)
    assert [step.chunks for step in moved] == [1, 1], "a transaction for each quarter"
    assert months.chunks() == JOINED
    check(months, BARS)
    assert others.items() <= written(months).items()
    assert nothing_to_do(months)


def test_a_quarter_committed_at_once_is_one_chunk(empty: SealedStore):
    span = Span(midnight(WINTER[0]), midnight(WINTER[1]))
    empty.store.commit([final_commit(span, bars=BARS.within(span), sealed=True)])
    assert empty.chunks() == [WINTER]
    assert_same_bars(stored(empty.store, SPAN), BARS.within(span))


def test_sessions_sealed_night_by_night_grow_into_the_quarter(empty: SealedStore):
    empty.store.commit([final_commit(SPAN)])
    empty.seal("2024-03-18")
    empty.seal("2024-03-19")
    march = [("2024-03-01", "2024-03-04"), ("2024-03-04", "2024-03-11")]
    growing = [*march, ("2024-03-11", "2024-03-18"), ("2024-03-18", "2024-03-19")]
    assert empty.chunks()[2:] == [
        ("2024-01-01", "2024-02-01"), ("2024-02-01", "2024-03-01"), *growing
    ]  # fmt: skip
    empty.seal("2024-03-30")
    assert len(empty.chunks()) == 2 + 2 + 5
    empty.seal("2024-04-01")
    assert empty.chunks() == [*DECEMBER, WINTER]
    empty.seal("2024-04-02")
    assert empty.chunks() == [*DECEMBER, WINTER, ("2024-04-01", "2024-04-02")]
    check(empty, BARS)


def test_a_quarter_of_extended_minutes_fits_into_one_chunk(empty: SealedStore):
    quarter = Span(midnight(WINTER[0]), midnight(WINTER[1]))
    bars = some_bars(quarter, 0, MINUTE)
    bars = bars.take(CALENDAR.mask(bars.timestamp, "extended"))
    assert len(bars) > 58_000
    for month in month_spans(quarter):
        empty.store.commit([final_commit(month, bars=bars.within(month), sealed=True)])
    empty.seal("2024-04-01")
    assert empty.chunks() == [WINTER]
    assert_same_bars(stored(empty.store, quarter), bars)
    row = empty.plain.execute("SELECT bar_count, first_bar < last_bar FROM bar_chunks").fetchone()
    assert row == (len(bars), True)


def test_quiet_months_join_without_bars(empty: SealedStore):
    """Without bars there is no chunk; what is left of its quarter is written as one, once."""
    kept = BARS.within(Span(midnight("2024-02-01"), midnight("2024-03-05")))
    for month in month_spans(Span(midnight(WINTER[0]), midnight(WINTER[1]))):
        empty.store.commit([final_commit(month, bars=kept.within(month), sealed=True)])
    assert empty.chunks() == [("2024-02-01", "2024-03-01"), ("2024-03-01", "2024-04-01")]
    empty.seal("2024-04-01")
    assert empty.chunks() == [WINTER]
    assert_same_bars(stored(empty.store, SPAN), kept)
    assert nothing_to_do(empty)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (chunk_table, "delete"),
        (chunk_table, "store"),
        (corrections, "merged"),
        (corrections, "recount"),
    ],
)
def test_joining_that_fails_at_any_write_changes_nothing(
    months: SealedStore, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
):
    changed = BARS.take(np.array([2000]))
    changed.values[:] *= 2
    months.store.commit([final_commit(Span(0, 0), bars=changed, late=DAY)])
    expected = Bars(BARS.timestamp, BARS.values.copy())
    expected.values[:, 2000] *= 2
    before = written(months)
    write: Callable[..., Any] = getattr(module, name)

    def failing(*arguments: Any) -> None:
        write(*arguments)
        raise RuntimeError("here")

    with monkeypatch.context() as patch:
        patch.setattr(module, name, failing)
        with pytest.raises(RuntimeError, match="here"):
            months.seal(BEFORE)
    assert written(months) == before
    assert months.store.holdings()[0].corrections_pending == 1
    check(months, expected)
    months.seal(BEFORE)
    assert months.chunks() == JOINED
    assert months.store.holdings()[0].corrections_pending == 0
    check(months, expected)


def test_a_damaged_month_keeps_its_quarter_from_being_joined_and_loses_nothing(
    months: SealedStore,
):
    months.spoil("2024-05-10")
    spring = [chunk for chunk in months.chunks() if SPRING[0] <= chunk[0] < SPRING[1]]
    with pytest.raises(StoreError, match="2024-05-01 to 2024-06-01 are damaged"):
        months.seal(BEFORE)
    assert months.chunks() == [*DECEMBER, WINTER, *spring, JULY]
    sound = Span(SPAN.start, midnight("2024-05-01"))
    assert_same_bars(stored(months.store, sound), BARS.within(sound))


# ------------------------------------------------------------------------------------- reading


def test_a_reader_keeps_its_moment_while_months_are_joined(months: SealedStore):
    def read_slowly(connection: Connection) -> Any:
        def read(span: Span) -> Any:
            return months.store._reader._read(
                driver(connection), [AAPL], lambda _: [ReadRequest(AAPL, span)]
            )

        read(Span(0, 1))
        months.seal(BEFORE)
        assert months.chunks() == JOINED
        return read(SPAN)

    found = months.store.database.run(read_slowly, snapshot=True, opening=reading._OPENING)
    assert len(found.chunks[0]) == 9
    assert_same_bars(reading._assembled(AAPL, found, 0), BARS)


def test_readers_see_the_same_bars_while_quarters_are_joined_and_taken_apart(
    made: SealedStore,
):
    over = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        part = Span(midnight("2024-03-20"), midnight("2024-04-10"))
        expected = {SPAN: BARS, part: BARS.within(part)}
        try:
            while not over.is_set():
                for span, bars in expected.items():
                    assert_same_bars(stored(made.store, span), bars)
        except BaseException as error:
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(3):
            made.unseal("2024-02-13", "2024-02-14")
            assert WINTER not in made.chunks()
            made.sealer.unpin()
            made.seal(BEFORE)
            assert made.chunks() == JOINED
    finally:
        over.set()
        reader.join()
    assert failures == []


@pytest.mark.parametrize(
    ("first", "after"),
    [
        ("2024-01-02", "2024-01-03"),
        ("2024-02-14", "2024-02-15"),
        ("2024-03-28", "2024-04-02"),
        ("2024-01-01", "2024-04-01"),
        ("2023-12-31", "2024-07-02"),
        ("2024-03-30", "2024-04-01"),
    ],
)
def test_any_part_of_quarters_is_read(made: SealedStore, first: str, after: str):
    for shift in (0, 9 * 60 * MINUTE + MINUTE):
        span = Span(midnight(first) + shift, midnight(after) + shift)
        assert_same_bars(stored(made.store, span), BARS.within(span))


def test_several_series_are_read_at_once(made: SealedStore):
    other = AAPL._replace(symbol="OTHR")
    span = Span(midnight("2024-01-20"), midnight("2024-05-20"))
    made.store.commit([final_commit(SPAN, other, bars=BARS, sealed=True)])
    found = made.store.read([ReadRequest(key, span) for key in (AAPL, other)])
    for key in (AAPL, other):
        assert_same_bars(found[key][1], BARS.within(span))


# ------------------------------------------------------------- corrections, unsealing, retention


def test_a_correction_writes_its_own_quarter_again(made: SealedStore):
    places = np.flatnonzero(BARS.timestamp >= midnight("2024-02-20"))[:3]
    changed = BARS.take(places[:2])
    changed.values[:] *= 2
    gone = BARS.timestamp[places[2:]]
    made.store.commit([final_commit(Span(0, 0), bars=changed, withdrawn=gone, late=DAY)])
    expected = Bars(BARS.timestamp, BARS.values.copy())
    expected.values[:, places[:2]] *= 2
    expected = without(expected, gone)
    check(made, expected)
    before = written(made)
    (moved,) = made.seal(BEFORE)
    assert (moved.chunks, moved.corrections) == (1, 3)
    after = written(made)
    assert {first for first in after if after[first] != before[first]} == {WINTER[0]}
    assert made.chunks() == JOINED
    check(made, expected)
    assert nothing_to_do(made)


def test_a_day_unsealed_keeps_its_quarter_in_months_until_it_may_be_sealed_again(
    made: SealedStore,
):
    before = written(made)
    made.unseal("2024-02-14", "2024-02-15")
    check(made, BARS)
    parts = [
        ("2024-01-01", "2024-02-01"), ("2024-02-01", "2024-02-05"), ("2024-02-05", "2024-02-12"),
        ("2024-02-12", "2024-02-14"), ("2024-02-15", "2024-02-19"), ("2024-02-19", "2024-02-26"),
        ("2024-02-26", "2024-03-01"), ("2024-03-01", "2024-04-01"),
    ]  # fmt: skip
    assert made.chunks() == [*DECEMBER, *parts, SPRING, JULY]
    assert written(made)[SPRING[0]] == before[SPRING[0]]
    assert nothing_to_do(made), "the pinned day stays"
    made.sealer.unpin()
    made.seal(BEFORE)
    assert made.chunks() == JOINED
    check(made, BARS)


def test_months_unsealed_across_quarters_come_back(made: SealedStore):
    made.unseal("2024-03-05", "2024-05-06")
    check(made, BARS)
    sealed = made.store.states([AAPL])[AAPL].sealed
    assert [(s.start, s.end) for s in sealed][:2] == [
        (midnight("2023-12-20"), midnight("2024-03-05")),
        (midnight("2024-05-06"), midnight(BEFORE)),
    ]
    made.sealer.unpin()
    made.seal(BEFORE)
    assert made.chunks() == JOINED
    check(made, BARS)


@pytest.mark.parametrize("first", ["2024-01-03", "2024-02-14", "2024-03-28"])
def test_retention_cuts_a_quarter_which_stays_until_all_of_it_is_too_old(
    made: SealedStore, first: str
):
    edge = midnight(first)
    dropped = made.retention.cut(AAPL, edge)
    kept = BARS.timestamp >= edge
    assert dropped == (~kept).sum()
    assert made.chunks() == [WINTER, SPRING, JULY]
    check(made, BARS.take(kept))
    assert nothing_to_do(made)
    assert made.retention.cut(AAPL, edge) == 0
    # what is fetched again is kept again, beside the chunk it was cut from, and joined to it
    again = Span(midnight(WINTER[0]), edge)
    bars = BARS.within(again)
    late = final_commit(again, bars=bars, late=DAY, sealed=True)
    made.store.commit([late])
    expected = BARS.within(Span(again.start, SPAN.end))
    check(made, expected)
    made.seal(BEFORE)
    assert made.chunks() == [WINTER, SPRING, JULY]
    check(made, expected)
    made.retention.cut(AAPL, midnight(WINTER[1]))
    assert made.chunks() == [SPRING, JULY]


def test_a_damaged_quarter_given_up_is_a_gap_that_can_be_filled(made: SealedStore):
    made.spoil("2024-02-14")
    with pytest.raises(StoreError, match="2024-01-01 to 2024-04-01 are damaged"):
        stored(made.store, sessions("2024-03-04", "2024-03-04"))
    winter = Span(midnight(WINTER[0]), midnight(WINTER[1]))
    assert made.retention.discard(AAPL, sessions("2024-02-14", "2024-02-14")) == [winter]
    state = made.store.states([AAPL])[AAPL]
    assert not intersect(state.coverage, [winter])
    made.store.commit([final_commit(winter, bars=BARS.within(winter), late=DAY, sealed=True)])
    assert made.chunks() == JOINED
    check(made, BARS)


def test_many_quarters_are_joined_a_transaction_each(
    empty: SealedStore, monkeypatch: pytest.MonkeyPatch
):
    """However long the history, a night holds one quarter of one series at a time."""
    span = Span(midnight("2022-01-01"), midnight("2024-01-01"))
    bars = session_bars(span)
    bars = bars.take(np.arange(0, len(bars), 50))
    for month in month_spans(span):
        empty.store.commit([final_commit(month, bars=bars.within(month), sealed=True)])
    longest: list[int] = []
    store = chunk_table.store

    def noting(raw: Any, keys: Any, chunks: Any) -> int:
        chunks = list(chunks)
        longest.append(len(chunks))
        return store(raw, keys, chunks)

    monkeypatch.setattr(chunk_table, "store", noting)
    assert [moved.chunks for moved in empty.seal("2024-01-01")] == [1] * 8
    assert longest == [1] * 8
    assert_same_bars(stored(empty.store, span), bars)
