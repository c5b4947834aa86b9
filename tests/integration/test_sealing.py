"""Settled sessions as chunks: read like rows through corrections, withdrawals, sealing and unsealing."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from datetime import date
from typing import Any

import numpy as np
import psycopg
import pytest
from sqlalchemy import Connection

from marketdata.clock import from_micros
from marketdata.errors import StoreError
from marketdata.protocols import Commit, ReadRequest
from marketdata.spans import Span
from marketdata.store import PostgresStore, reading
from marketdata.store.connection import driver
from marketdata.store.sealing import Sealer
from marketdata.types import DAY, MINUTE, Bars, Timeframe
from tests.embedded_users import until
from tests.sealed_examples import (
    CALENDAR,
    OBSERVED_LATE,
    SealedStore,
    final_commit,
    midnight,
    session_bars,
    sessions,
    without,
)
from tests.store_examples import AAPL, MSFT, assert_same_bars, migrated_store, stored

JANUARY = sessions("2024-01-02", "2024-02-09")
"""A month from its first session on, and more than a week of the next."""


@pytest.fixture
def made(database_url: str) -> Iterator[SealedStore]:
    with (
        migrated_store(database_url) as store,
        psycopg.connect(database_url, autocommit=True) as plain,
    ):
        yield SealedStore(store, plain)


def check(made: SealedStore, expected: Bars, span: Span = JANUARY) -> None:
    assert_same_bars(stored(made.store, span), expected.within(span))
    holding = made.store.holdings(["AAPL"])[0]
    assert holding.bar_count == len(expected)
    assert holding.row_count == made.rows()


def test_sealing_keeps_every_bar_and_moves_it_from_rows_to_chunks(made: SealedStore):
    made.store.commit([final_commit(JANUARY)])
    bars = session_bars(JANUARY)
    before = made.store.states([AAPL])[AAPL]
    made.seal("2024-02-08")
    check(made, bars)
    kept = bars.timestamp >= midnight("2024-02-08")
    assert made.rows() == kept.sum()
    holding = made.store.holdings()[0]
    assert holding.sealed_count == (~kept).sum()
    assert (holding.rows_from, holding.rows_to) == (
        from_micros(int(bars.timestamp[kept][0])),
        from_micros(int(bars.timestamp[-1])),
    )
    state = made.store.states([AAPL])[AAPL]
    assert state.sealed == [Span(midnight("2024-01-02"), midnight("2024-02-08"))]
    assert (state.revision, state.coverage, state.first_bar, state.last_bar) == (
        before.revision, before.coverage, before.first_bar, before.last_bar,
    )  # fmt: skip
    for start, count in ((0, 1), (600, 45_000), (-10_000, 20_000)):
        first = JANUARY.start + start * MINUTE
        part = Span(first, first + count * MINUTE)
        assert_same_bars(stored(made.store, part), bars.within(part))


def test_chunks_are_weeks_and_a_month_once_it_is_whole(made: SealedStore):
    span = sessions("2023-12-29", "2024-02-09")
    made.store.commit([final_commit(span)])
    made.seal("2024-01-10")
    weeks = [("2024-01-01", "2024-01-08"), ("2024-01-08", "2024-01-10")]
    assert made.chunks() == [("2023-12-29", "2024-01-01"), *weeks]
    for day in ("2024-01-11", "2024-01-12"):
        made.seal(day)
    assert made.chunks()[2:] == [
        ("2024-01-08", "2024-01-10"), ("2024-01-10", "2024-01-11"), ("2024-01-11", "2024-01-12"),
    ]  # fmt: skip
    made.seal("2024-01-15")
    assert made.chunks()[1:] == [("2024-01-01", "2024-01-08"), ("2024-01-08", "2024-01-15")]
    made.seal("2024-02-01")
    assert made.chunks() == [("2023-12-29", "2024-01-01"), ("2024-01-01", "2024-02-01")]
    assert_same_bars(stored(made.store, span), session_bars(span))


def test_only_whole_final_sessions_are_sealed(made: SealedStore):
    made.store.commit([final_commit(sessions("2024-01-02", "2024-01-03"))])
    morning = Span(
        midnight("2024-01-04") + 4 * 60 * MINUTE, midnight("2024-01-04") + 9 * 60 * MINUTE
    )
    settled = sessions("2024-01-05", "2024-01-05")
    late = OBSERVED_LATE
    made.store.commit(
        [final_commit(morning), Commit(AAPL, session_bars(settled), settled, late, late)]
    )
    made.seal("2024-02-01")
    assert made.store.states([AAPL])[AAPL].sealed == [
        Span(midnight("2024-01-02"), midnight("2024-01-04"))
    ]
    assert made.seal("2024-02-01")[0].bars == 0, "nothing is left to do"


def test_a_sealed_session_then_a_correction_a_withdrawal_a_read_a_seal_and_a_read(
    made: SealedStore,
):
    made.store.commit([final_commit(JANUARY)])
    made.seal("2024-02-08")
    bars = session_bars(JANUARY)

    changed = Bars(bars.timestamp[100:103].copy(), bars.values[:, 100:103] + 1)
    made.store.commit([final_commit(Span(0, 0), bars=changed, late=DAY)])
    bars.values[:, 100:103] += 1
    check(made, bars)
    assert made.store.holdings()[0].corrections_pending == 3

    gone = bars.timestamp[[0, 50, 101]]
    nothing = Bars.empty()
    made.store.commit([final_commit(Span(0, 0), bars=nothing, withdrawn=gone, late=2 * DAY)])
    bars = without(bars, gone)
    check(made, bars)

    assert sum(moved.corrections for moved in made.seal("2024-02-08")) == 5
    assert made.store.holdings()[0].corrections_pending == 0
    check(made, bars)

    again = session_bars(JANUARY).take(np.array([0, 50, 101]))
    made.store.commit([final_commit(Span(0, 0), bars=again, late=DAY)])
    check(made, bars)  # observed before the withdrawal, which is remembered
    made.store.commit([final_commit(Span(0, 0), bars=again, late=3 * DAY)])
    bars = Bars(
        np.concatenate([bars.timestamp, again.timestamp]),
        np.concatenate([bars.values, again.values], axis=1),
    )
    bars = bars.take(np.argsort(bars.timestamp))
    check(made, bars)
    made.seal("2024-02-08")
    check(made, bars)


def test_a_bar_that_comes_late_into_a_quiet_sealed_day(made: SealedStore):
    made.store.commit([final_commit(JANUARY, bars=Bars.empty())])
    made.seal("2024-02-08")
    assert made.chunks() == []
    late = session_bars(sessions("2024-01-10", "2024-01-10")).take(np.array([3]))
    made.store.commit([final_commit(Span(0, 0), bars=late, late=DAY)])
    check(made, late)
    made.seal("2024-02-08")
    check(made, late)
    assert len(made.chunks()) == 1
    assert made.rows() == 0


# ------------------------------------------------------------------------------------ unsealing


def test_unsealed_days_are_rows_and_stay_so_until_they_may_be_sealed_again(made: SealedStore):
    made.store.commit([final_commit(JANUARY)])
    made.seal("2024-02-08")
    bars = session_bars(JANUARY)
    made.unseal("2024-01-10", "2024-01-12")
    check(made, bars)
    two_days = bars.within(Span(midnight("2024-01-10"), midnight("2024-01-12")))
    later = bars.timestamp >= midnight("2024-02-08")
    assert made.rows() == len(two_days) + later.sum()
    made.seal("2024-02-08")
    assert made.rows() == len(two_days) + later.sum()
    assert made.sealer.candidates(midnight("2024-02-08")) in ([], [AAPL])
    assert made.sealer.unpin(["MSFT"]) == 0
    assert made.sealer.unpin(["AAPL"]) == 1
    made.seal("2024-02-08")
    assert made.rows() == later.sum()
    check(made, bars)


def test_unsealing_applies_corrections_and_remembers_withdrawals(made: SealedStore):
    made.store.commit([final_commit(JANUARY)])
    made.seal("2024-02-08")
    bars = session_bars(JANUARY)
    day = Span(midnight("2024-01-10"), midnight("2024-01-11"))
    own = bars.within(day)
    changed = Bars(own.timestamp[:2].copy(), own.values[:, :2] * 2)
    gone = own.timestamp[5:6].copy()
    made.store.commit([final_commit(Span(0, 0), bars=changed, withdrawn=gone, late=DAY)])
    made.unseal("2024-01-10", "2024-01-11")
    own.values[:, :2] *= 2
    bars = without(bars, gone)
    check(made, bars)
    made.store.commit([final_commit(day, bars=session_bars(JANUARY).within(day))])
    check(made, bars)


# ---------------------------------------------------------------------------- open transactions


def test_a_reader_keeps_its_moment_while_bars_are_sealed_and_the_month_is_to_be_dropped(
    made: SealedStore,
):
    december = sessions("2023-12-04", "2023-12-08")
    made.store.commit([final_commit(december)])
    bars = session_bars(december)
    outcomes: list[bool] = []

    def read_slowly(connection: Connection) -> Any:
        def read(span: Span) -> Any:
            return made.store._reader._read(
                driver(connection), [AAPL], lambda _: [ReadRequest(AAPL, span)]
            )

        found = read(Span(0, 1))
        made.seal("2023-12-09")
        outcomes.append(made.retention.drop_if_empty(date(2023, 12, 1)))
        assert_same_bars(stored(made.store, december), bars)  # others see the chunks
        return found, read(december)

    _, found = made.store.database.run(read_slowly, snapshot=True, opening=reading._OPENING)
    assert_same_bars(reading._assembled(AAPL, found, 0), bars)
    assert found.sealed == {}
    assert outcomes == [False]
    assert made.retention.drop_if_empty(date(2023, 12, 1))
    assert made.retention.months() == []
    assert_same_bars(stored(made.store, december), bars)


def test_a_partition_is_made_and_dropped_while_a_reader_holds_a_transaction_open(
    made: SealedStore, database_url: str
):
    made.store.commit([final_commit(sessions("2024-01-02", "2024-01-05"))])
    with psycopg.connect(database_url) as reader:
        reader.execute("SELECT count(*) FROM marketdata.market_data_bars")
        began = time.monotonic()
        made.store.commit([final_commit(sessions("2024-02-05", "2024-02-06"))])
        made.seal("2024-02-10")
        # it has read these months: they stay for now, and nobody queues behind the attempt
        assert not made.retention.drop_if_empty(date(2024, 1, 1))
        assert len(stored(made.store, JANUARY)) == 6 * 96
        assert time.monotonic() - began < 15
        reader.rollback()
        reader.execute("SELECT count(*) FROM marketdata.series")
        assert made.retention.drop_if_empty(date(2024, 1, 1)), "open, but elsewhere"
    assert made.retention.drop_if_empty(date(2024, 2, 1))
    assert made.retention.months() == []
    # and a month that was dropped is made again
    late = final_commit(sessions("2024-01-08", "2024-01-08"))
    made.store.commit([late])
    assert made.retention.months() == [date(2024, 1, 1)]


def test_a_month_with_rows_is_not_dropped(made: SealedStore):
    made.store.commit([final_commit(JANUARY)])
    made.seal("2024-01-20")
    assert not made.retention.drop_if_empty(date(2024, 1, 1))
    assert not made.retention.drop_if_empty(date(2023, 1, 1)), "never made"
    check(made, session_bars(JANUARY))


def test_a_member_of_the_writers_role_seals_unseals_and_drops(made: SealedStore, database_url: str):
    made.store.commit([final_commit(JANUARY)])
    role = f"test_sealer_{secrets.token_hex(4)}"
    made.plain.execute(f"CREATE ROLE {role} IN ROLE marketdata_writer")
    try:
        url = psycopg.conninfo.make_conninfo(database_url, options=f"-c role={role}")
        with PostgresStore(url, application_name=role) as store:
            plain = SealedStore(store, made.plain)
            plain.seal("2024-02-10")
            plain.unseal("2024-01-10", "2024-01-11")
            plain.sealer.unpin()
            plain.seal("2024-02-10")
            assert plain.retention.drop_if_empty(date(2024, 1, 1))
            plain.retention.cut(AAPL, midnight("2024-01-20"))
            assert_same_bars(
                stored(store, JANUARY),
                session_bars(JANUARY).within(Span(midnight("2024-01-20"), JANUARY.end)),
            )
    finally:
        # a session that is ending still owns its temporary table
        assert until(lambda: not sessions_called(made, role))
        made.plain.execute(f"DROP ROLE {role}")


def sessions_called(made: SealedStore, name: str) -> int:
    found = "SELECT FROM pg_stat_activity WHERE application_name = %s"
    return made.plain.execute(found, (name,)).rowcount


def test_writers_sealers_and_readers_at_once(made: SealedStore, database_url: str):
    week = sessions("2024-01-08", "2024-01-12")
    keys = [AAPL, MSFT]
    made.store.commit([final_commit(week, key) for key in keys])
    failures: list[BaseException] = []
    over = threading.Event()
    rounds = 6

    def guarded(work: Any) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def write(order: list[Any]) -> None:
        for version in range(1, rounds + 1):
            made.store.commit(
                [final_commit(week, k, seed=version, late=version * MINUTE) for k in order]
            )

    def seal_and_unseal() -> None:
        sealer = Sealer(made.store.database)
        while not over.is_set():
            for key in keys:
                list(sealer.seal(key, midnight("2024-01-13")))
                list(sealer.unseal(key, week))
                sealer.unpin()

    def read() -> None:
        labels = session_bars(week).timestamp.tolist()
        versions = {session_bars(week, seed).values.tobytes() for seed in range(rounds + 1)}
        while not over.is_set():
            for _, bars in made.store.read([ReadRequest(k, week) for k in keys]).values():
                assert bars.timestamp.tolist() == labels
                assert bars.values.tobytes() in versions

    others = [guarded(seal_and_unseal), guarded(read)]
    writers = [guarded(lambda: write(keys)), guarded(lambda: write(keys[::-1]))]
    for thread in writers:
        thread.join()
    over.set()
    for thread in others:
        thread.join()
    assert failures == []
    for key in keys:
        assert_same_bars(stored(made.store, week, key), session_bars(week, rounds))


# --------------------------------------------------------------------------------------- damage


def test_a_damaged_chunk_is_an_error_that_names_it_and_its_cure(made: SealedStore):
    made.store.commit([final_commit(JANUARY, sealed=True)])
    made.spoil("2024-01-10")
    with pytest.raises(StoreError, match=r"AAPL 1min .* 2024-01-08 to 2024-01-15") as caught:
        stored(made.store, JANUARY)
    assert "marketdata db unseal AAPL --timeframe 1min --start 2024-01-08" in str(caught.value)
    assert "marketdata backfill AAPL" in str(caught.value)
    assert not caught.value.transient
    sound = Span(midnight("2024-01-15"), JANUARY.end)
    assert_same_bars(stored(made.store, sound), session_bars(JANUARY).within(sound))
    assert_same_bars(stored(made.store, JANUARY, MSFT), Bars.empty())
    bars = session_bars(JANUARY)
    for span in (sessions("2024-01-09", "2024-01-09"),):
        with pytest.raises(StoreError, match="are damaged"):
            made.store.commit([final_commit(span, seed=3, late=DAY)])
    with pytest.raises(StoreError, match="are damaged"):
        made.unseal("2024-01-09", "2024-01-10")
    assert made.store.states([AAPL])[AAPL].coverage == [JANUARY]
    assert made.store.holdings()[0].bar_count == len(bars)


def test_a_chunk_of_other_bars_is_damage_too(made: SealedStore):
    made.store.commit([final_commit(JANUARY, sealed=True)])
    made.plain.execute(
        "UPDATE bar_chunks AS c SET data = o.data FROM bar_chunks AS o"
        " WHERE c.span_start = to_timestamp(%s / 1e6) AND o.span_start = to_timestamp(%s / 1e6)",
        (midnight("2024-01-08"), midnight("2024-01-15")),
    )
    with pytest.raises(StoreError, match="2024-01-08 to 2024-01-15 are damaged"):
        stored(made.store, JANUARY)
    with pytest.raises(StoreError, match="2024-01-08 to 2024-01-15 are damaged"):
        stored(made.store, sessions("2024-01-09", "2024-01-09"))


def test_a_damaged_chunk_given_up_is_a_gap_that_can_be_filled(made: SealedStore):
    commit = final_commit(JANUARY, sealed=True)
    made.store.commit([commit])
    made.spoil("2024-01-10")
    floors: list[dict[Any, int]] = []
    week = Span(midnight("2024-01-08"), midnight("2024-01-15"))
    note = lambda revisions: floors.append(dict(revisions))  # noqa: E731
    assert made.retention.discard(AAPL, JANUARY, note) == [week]
    assert floors == [{AAPL: 2}]
    state = made.store.states([AAPL])[AAPL]
    assert state.coverage == [Span(JANUARY.start, week.start), Span(week.end, JANUARY.end)]
    bars = session_bars(JANUARY)
    check(made, without(bars, bars.within(week).timestamp))
    assert made.retention.discard(AAPL, JANUARY) == []
    made.store.commit([commit])
    check(made, bars)
    assert made.store.states([AAPL])[AAPL].coverage == [JANUARY]


# ---------------------------------------------------------------------------------- candidates


def test_candidates_are_the_series_with_something_to_do(made: SealedStore):
    span = sessions("2024-01-08", "2024-01-12")
    daily = AAPL.with_timeframe(Timeframe.DAY_1)
    late = OBSERVED_LATE
    made.store.commit(
        [
            final_commit(span),
            final_commit(span, daily, bars=Bars.empty()),
            Commit(MSFT, session_bars(span), span, late, late),
        ]
    )
    sealer = made.sealer
    assert sealer.candidates(midnight("2024-01-08")) == []
    assert sealer.candidates(midnight("2024-01-09")) == [AAPL]
    assert sealer.candidates(midnight("2024-01-09"), ["MSFT"]) == []
    made.seal("2024-01-09")
    assert sealer.candidates(midnight("2024-01-09")) == []
    change = session_bars(span, 3).take(np.array([0]))
    made.store.commit([final_commit(Span(0, 0), bars=change, late=DAY)])
    assert sealer.candidates(midnight("2024-01-09")) == [AAPL]


def test_the_night_the_clocks_change(made: SealedStore):
    span = sessions("2024-03-07", "2024-03-13")
    made.store.commit([final_commit(span)])
    made.seal("2024-03-13")
    assert_same_bars(stored(made.store, span), session_bars(span))
    summer = CALENDAR.midnight_of(date(2024, 3, 11)) - CALENDAR.midnight_of(date(2024, 3, 10))
    assert summer == DAY - 60 * MINUTE
    assert made.chunks() == [("2024-03-07", "2024-03-11"), ("2024-03-11", "2024-03-13")]
