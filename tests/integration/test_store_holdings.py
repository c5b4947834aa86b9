"""What people and monitoring ask the database: fast, and from `series`, never by counting bars."""

from __future__ import annotations

import psycopg
import pytest

from marketdata.clock import from_micros
from marketdata.store import PostgresStore
from marketdata.types import Timeframe
from tests.store_examples import AAPL, MSFT, OBSERVED, commit_of, migrated_store, minutes

MONITORING = {
    "count by symbol": "SELECT symbol, total_bars_stored FROM symbol_metadata ORDER BY symbol",
    "freshness": "SELECT symbol, now() - latest_data_date, last_fetched_at FROM symbol_metadata "
    "ORDER BY latest_data_date LIMIT 20",
    "top symbols": "SELECT symbol, total_bars_stored FROM symbol_metadata "
    "ORDER BY total_bars_stored DESC LIMIT 10",
    "one symbol": "SELECT * FROM symbol_metadata WHERE symbol = 'AAPL'",
    "fragmented series": "SELECT symbol, timeframe FROM market_data_holdings WHERE covered_ranges > 1",
    "unsettled series": "SELECT symbol, timeframe, unsettled_from FROM market_data_holdings "
    "WHERE unsettled_ranges > 0",
}


@pytest.fixture
def store(database_url: str):
    with migrated_store(database_url) as made:
        yield made


def test_metadata_sums_over_a_symbols_series(store: PostgresStore):
    daily = AAPL.with_timeframe(Timeframe.DAY_1)
    store.commit([commit_of(minutes(0, 10)), commit_of(minutes(-60, 2), daily)])
    store.name_symbol("AAPL", "Apple")
    store.name_symbol("AAPL", "Apple Inc.")
    (row,) = store.metadata(["AAPL", "MSFT"])
    assert row.symbol == "AAPL"
    assert row.name == "Apple Inc."
    assert row.earliest_data_date == from_micros(minutes(-60, 1).start)
    assert row.latest_data_date == from_micros(minutes(9, 1).start)
    assert row.total_bars_stored == 12
    assert row.last_fetched_at == from_micros(OBSERVED)


def test_holdings_show_rows_and_coverage_of_each_series(store: PostgresStore):
    store.commit([commit_of(minutes(0, 10), settled_until=minutes(0, 7).end)])
    store.commit([commit_of(minutes(20, 10))])
    store.commit([commit_of(minutes(0, 1), MSFT, settled_until=OBSERVED)])
    first, second = store.holdings()
    assert (first.key, first.row_count, first.covered_ranges) == (AAPL, 20, 2)
    assert (first.unsettled_ranges, first.unsettled_from) == (2, from_micros(minutes(7, 1).start))
    assert (second.unsettled_ranges, second.unsettled_from) == (0, None)
    assert first.covered_from == from_micros(minutes(0, 1).start)
    assert first.covered_to == from_micros(minutes(29, 1).end)
    assert first.rows_to == from_micros(minutes(29, 1).start)
    assert second.key == MSFT
    assert store.holdings(["MSFT"]) == [second]
    assert store.known_symbols() == ["AAPL", "MSFT"]
    assert store.series(["MSFT"]) == [MSFT]


def test_status_counts_and_measures(store: PostgresStore):
    empty = store.status()
    assert (empty.bars, empty.series, empty.symbols, empty.last_fetched_at) == (0, 0, 0, None)
    store.commit([commit_of(minutes(0, 1000)), commit_of(minutes(0, 10), MSFT)])
    status = store.status()
    assert (status.bars, status.series, status.symbols) == (1010, 2, 2)
    assert status.last_fetched_at == from_micros(OBSERVED)
    assert status.server_version_number >= 140000
    assert empty.bar_bytes < status.bar_bytes < status.database_bytes
    assert not status.read_only


def test_the_first_writer_decides_what_the_database_holds(store: PostgresStore):
    assert store.recorded() is None
    assert store.adopt("alpaca", "sip") == ("alpaca", "sip")
    assert store.adopt("yahoo", "yahoo") == ("alpaca", "sip")
    assert store.recorded() == ("alpaca", "sip")


@pytest.fixture(scope="module")
def monitored(postgres_url: str):
    """10,000 symbols of two series and a million bars, as far as `series` knows."""
    name = "test_monitoring"
    with psycopg.connect(postgres_url, autocommit=True) as server:
        server.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        server.execute(f"CREATE DATABASE {name}")
        url = psycopg.conninfo.make_conninfo(postgres_url, dbname=name)
        with PostgresStore(url) as store:
            store.migrate()
        with psycopg.connect(url) as connection:
            connection.execute("SET search_path = marketdata")
            connection.execute(
                "INSERT INTO series SELECT 'alpaca', 'sip', 'S' || i, t, '{[2024-01-01,2025-01-01)}', 1,"
                " '{[2024-12-31,2025-01-01)}', '2024-01-01', '2025-01-01', i, '2025-01-01'"
                " FROM generate_series(1, 10000) AS i, unnest(ARRAY['1min', '1day']) AS t"
            )
            connection.commit()
            yield connection
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("question", MONITORING)
def test_monitoring_queries_never_touch_the_bars(monitored, question: str):
    (plan,) = monitored.execute(f"EXPLAIN (ANALYZE, FORMAT json) {MONITORING[question]}").fetchone()
    assert "market_data_bars" not in str(plan)
    assert plan[0]["Execution Time"] < 250


def test_the_newest_bars_of_a_symbol_come_from_the_key_alone(
    store: PostgresStore, database_url: str
):
    store.commit([commit_of(minutes(0, 5000)), commit_of(minutes(0, 5000), MSFT)])
    with psycopg.connect(database_url) as connection:
        connection.execute("SET search_path = marketdata")
        connection.execute("ANALYZE market_data_bars")
        plan = connection.execute(
            "EXPLAIN (FORMAT json) SELECT * FROM market_data_bars WHERE symbol = 'AAPL' "
            "AND timeframe = '1min' ORDER BY \"timestamp\" DESC LIMIT 500"
        ).fetchall()
    assert "Index Scan" in str(plan)
    assert "'Sort'" not in str(plan)
