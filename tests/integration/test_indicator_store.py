"""Indicator values in PostgreSQL, written in bulk and read as its users read them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import psycopg
import pytest

from marketdata.errors import StoreUnavailableError
from marketdata.indicator_values import History, Newest
from marketdata.store import PostgresStore
from marketdata.store.indicators import PostgresIndicators
from marketdata.types import DAY, SeriesKey, Timeframe
from tests.store_examples import AAPL, MSFT, OPEN, commit_of, migrated_store, minutes

COLUMNS = ("rsi_14", "sma_200", "macd_12_26_9_hist")
DAILY = AAPL.with_timeframe(Timeframe.DAY_1)


@pytest.fixture
def store(database_url: str) -> Iterator[PostgresStore]:
    with migrated_store(database_url) as store:
        yield store


@pytest.fixture
def indicators(store: PostgresStore) -> PostgresIndicators:
    return PostgresIndicators(store.database, COLUMNS)


def newest(
    keys: Sequence[SeriesKey],
    value: float = 1.0,
    *,
    at: int = OPEN,
    revision: int = 1,
    actions_us: int = OPEN,
    version: int = 0,
) -> Newest:
    count = len(keys)
    values = np.full((count, len(COLUMNS)), value)
    values[:, 1] = np.nan  # too young
    return Newest(
        list(keys),
        np.full(count, at),
        values,
        np.full(count, revision),
        np.full(count, actions_us),
        np.full(count, version),
    )


def rows(url: str, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True, options="-c search_path=marketdata") as connection:
        cursor = connection.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else []


def test_a_record_is_a_row_a_value(indicators: PostgresIndicators, database_url: str) -> None:
    assert indicators.save(newest([AAPL], 55.5, version=0xAB)) == 1
    found = rows(
        database_url,
        'SELECT symbol, timeframe, extract(epoch FROM "timestamp")::bigint * 1000000, '
        "indicator_name, indicator_value, provider, feed, adjustment, action_version "
        "FROM market_data_indicators ORDER BY indicator_name",
    )
    rest = ("alpaca", "sip", "split", "0000000000ab")
    assert found == [
        ("AAPL", "1min", OPEN, "macd_12_26_9_hist", 55.5, *rest),
        ("AAPL", "1min", OPEN, "rsi_14", 55.5, *rest),
    ], "a value that is not there yet has no row"
    indicators.save(newest([AAPL], 55.5, revision=2))
    assert rows(database_url, "SELECT DISTINCT action_version FROM market_data_indicators") == [
        ("0",)
    ]


def test_the_columns_are_the_documented_ones(
    indicators: PostgresIndicators, database_url: str
) -> None:
    found = rows(
        database_url,
        "SELECT column_name FROM information_schema.columns WHERE table_schema = 'marketdata' "
        "AND table_name = 'market_data_indicators' ORDER BY ordinal_position",
    )
    assert [name for (name,) in found] == [
        "symbol",
        "timeframe",
        "timestamp",
        "indicator_name",
        "indicator_value",
        "provider",
        "feed",
        "adjustment",
        "action_version",
    ]


def test_invariant_14_older_never_replaces_newer(
    indicators: PostgresIndicators, database_url: str
) -> None:
    indicators.save(newest([AAPL], 5.0, revision=5, actions_us=OPEN + 5))
    for revision, actions in ((4, OPEN + 5), (5, OPEN + 4), (4, OPEN + 9)):
        assert indicators.save(newest([AAPL], 9.0, revision=revision, actions_us=actions)) == 0
    assert value(database_url) == 5.0
    assert indicators.save(newest([AAPL], 6.0, revision=6, actions_us=OPEN + 5, at=OPEN - 60)) == 1
    assert value(database_url) == 6.0, "a withdrawn bar lets the newest go back"


def value(url: str, symbol: str = "AAPL") -> float:
    ((found,),) = rows(
        url,
        "SELECT indicator_value FROM market_data_indicators "
        "WHERE symbol = %s AND timeframe = '1min' AND indicator_name = 'rsi_14'",
        symbol,
    )
    return float(found)


def test_the_questions_people_ask(
    store: PostgresStore, indicators: PostgresIndicators, database_url: str
) -> None:
    store.commit([commit_of(minutes(0, 3)), commit_of(minutes(0, 3), MSFT)])
    indicators.save(newest([AAPL], 81.0))
    indicators.save(newest([MSFT], 22.0))
    # the latest RSI of all symbols
    assert rows(
        database_url,
        "SELECT symbol, indicator_value FROM market_data_indicators "
        "WHERE indicator_name = 'rsi_14' AND timeframe = '1min' ORDER BY symbol",
    ) == [("AAPL", 81.0), ("MSFT", 22.0)]
    # what is overbought, with what is stored of it
    assert rows(
        database_url,
        'SELECT i.symbol, m.total_bars_stored, i."timestamp" <= m.latest_data_date '
        "FROM market_data_indicators AS i JOIN symbol_metadata AS m USING (symbol) "
        "WHERE i.indicator_name = 'rsi_14' AND i.indicator_value > 70",
    ) == [("AAPL", 3, True)]
    # side by side
    assert rows(
        database_url,
        "SELECT symbol, max(indicator_value) FILTER (WHERE indicator_name = 'rsi_14'), "
        "max(indicator_value) FILTER (WHERE indicator_name = 'macd_12_26_9_hist') "
        "FROM market_data_indicators GROUP BY symbol ORDER BY symbol",
    ) == [("AAPL", 81.0, 81.0), ("MSFT", 22.0, 22.0)]


def test_history_is_kept_for_the_timeframes_named(
    indicators: PostgresIndicators, database_url: str
) -> None:
    for day in range(3):
        records = newest([AAPL, DAILY], float(day), at=OPEN + day * DAY, revision=day + 1)
        indicators.save(records, kept={Timeframe.DAY_1})
    counted = (
        "SELECT timeframe, count(*), max(indicator_value) FROM market_data_indicators "
        "WHERE indicator_name = 'rsi_14' GROUP BY timeframe ORDER BY timeframe"
    )
    assert rows(database_url, counted) == [("1day", 3, 2.0), ("1min", 1, 2.0)]
    assert indicators.kept_versions([AAPL, DAILY]) == {DAILY: 0}
    assert PostgresIndicators(indicators._database, ("other",)).kept_versions([DAILY]) == {}


def history(days: Sequence[int], value: float, revision: int, version: int = 0) -> History:
    values = np.full((len(days), len(COLUMNS)), value)
    stamps = OPEN + np.array(days) * DAY
    return History(DAILY, stamps, values, revision, OPEN, version, replaces=True)


def test_a_history_begun_anew_replaces_what_was_there(
    indicators: PostgresIndicators, database_url: str
) -> None:
    none = newest([])
    indicators.save(none, [history(range(10), 1.0, revision=3)])
    indicators.save(none, [history([4, 5, 7], 2.0, revision=2)])  # older
    kept = (
        "SELECT indicator_value, count(*) FROM market_data_indicators "
        "WHERE indicator_name = 'rsi_14' GROUP BY 1 ORDER BY 1"
    )
    assert rows(database_url, kept) == [(1.0, 10)]
    indicators.save(none, [history([4, 5, 7], 2.0, revision=4, version=9)])
    assert rows(database_url, kept) == [(1.0, 4), (2.0, 3)]
    assert indicators.kept_versions([DAILY]) == {DAILY: 0}


def test_the_newest_row_comes_once_though_it_is_in_the_history_too(
    indicators: PostgresIndicators, database_url: str
) -> None:
    indicators.save(newest([DAILY], 7.0, at=OPEN + 9 * DAY), [history(range(10), 7.0, 1)])
    assert rows(
        database_url,
        'SELECT count(*), count(DISTINCT "timestamp") FROM market_data_indicators '
        "WHERE indicator_name = 'rsi_14'",
    ) == [(10, 10)]


def test_another_set_of_indicators_takes_the_place_of_the_first(
    store: PostgresStore, indicators: PostgresIndicators, database_url: str
) -> None:
    indicators.save(newest([AAPL], 1.0))
    other = PostgresIndicators(store.database, ("ema_10",))
    record = newest([AAPL], 3.0, revision=2)
    other.save(
        Newest(
            record.keys,
            record.timestamp,
            record.values[:, :1].copy(),
            record.revision,
            record.actions_us,
            record.action_version,
        )
    )
    found = rows(database_url, "SELECT indicator_name, indicator_value FROM market_data_indicators")
    assert found == [("ema_10", 3.0)]


def test_heads_of_stored_series(store: PostgresStore, indicators: PostgresIndicators) -> None:
    store.commit([commit_of(minutes(0, 3))])
    store.commit([commit_of(minutes(3, 2))])
    revision, covered = indicators.heads([MSFT, AAPL])
    assert revision.tolist() == [0, 2]
    assert covered.tolist() == [0, minutes(0, 5).end]


def test_a_writer_needs_no_more_rights_than_its_role(
    store: PostgresStore, database_url: str
) -> None:
    name = f"test_writer_{secrets.token_hex(4)}"
    rows(database_url, f"CREATE ROLE {name} LOGIN IN ROLE marketdata_writer")
    joint = "&" if "?" in database_url else "?"
    try:
        with PostgresStore(f"{database_url}{joint}options=-c%20role%3D{name}") as writer:
            own = PostgresIndicators(writer.database, COLUMNS)
            assert own.save(newest([AAPL], 4.0), [history(range(3), 1.0, 1)]) == 1
            assert own.save(newest([AAPL], 5.0, revision=2), [history([1], 1.0, 2)]) == 1
        assert value(database_url) == 5.0
    finally:
        rows(database_url, f"DROP ROLE {name}")


def test_a_lost_connection_costs_one_retry_and_stores_once(
    store: PostgresStore, indicators: PostgresIndicators, database_url: str
) -> None:
    indicators.save(newest([AAPL], 1.0))
    rows(
        database_url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    assert indicators.save(newest([AAPL], 2.0, revision=2)) == 1
    assert value(database_url) == 2.0


def test_a_database_that_is_away_is_a_typed_error() -> None:
    with PostgresStore("postgresql://nobody@127.0.0.1:1/nothing") as store:
        with pytest.raises(StoreUnavailableError) as caught:
            PostgresIndicators(store.database, COLUMNS).save(newest([AAPL]))
        assert caught.value.transient


def test_ten_thousand_series_are_one_statement(
    indicators: PostgresIndicators, database_url: str
) -> None:
    keys = [AAPL._replace(symbol=f"S{n:05}") for n in range(10_000)]
    assert indicators.save(newest(keys, 1.0)) == 10_000
    assert indicators.save(newest(keys, 2.0, revision=2)) == 10_000
    ((count, least),) = rows(
        database_url, "SELECT count(*), min(indicator_value) FROM market_data_indicators"
    )
    assert (count, least) == (20_000, 2.0)
