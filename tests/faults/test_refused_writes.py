"""PostgreSQL takes no writes: nothing is claimed meanwhile, it is said, and nothing is missing later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import psycopg
import pytest

import marketdata as md
from marketdata.cycle_report import CycleReport
from marketdata.errors import StoreError, StoreReadOnlyError
from marketdata.types import CLOSE
from tests.cycles import Ward, assert_same_bars, of_market
from tests.stack import Stack, runtime, same, span

SYMBOLS = ["AAPL", "MSFT"]
HOT: dict[str, Any] = {"symbols": "AAPL", "timeframe": "1min", "limit": 500}


@contextmanager
def read_only(url: str) -> Iterator[None]:
    name = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
    setting = f"ALTER DATABASE {name} SET default_transaction_read_only"
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("SET default_transaction_read_only = off")
        admin.execute(f"{setting} = on")
        end_sessions(admin)
        yield
        admin.execute(f"{setting} = off")
        end_sessions(admin)


def end_sessions(admin: psycopg.Connection) -> None:
    admin.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


@contextmanager
def disk_full(url: str) -> Iterator[None]:
    """Every row of bars is refused with what PostgreSQL says when it cannot extend a file."""
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("SET search_path = marketdata")
        admin.execute(
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$"
        )
        for (table,) in admin.execute(
            "SELECT inhrelid::regclass::text FROM pg_inherits "
            "WHERE inhparent = 'market_data_bars_intraday'::regclass"
        ).fetchall():
            admin.execute(
                f"CREATE TRIGGER full_disk BEFORE INSERT ON {table} "
                "FOR EACH ROW EXECUTE FUNCTION full_disk()"
            )
        yield
        admin.execute("DROP FUNCTION full_disk CASCADE")


@pytest.mark.parametrize("fault", [read_only, disk_full])
def test_fault_18_cycles_claim_nothing_and_then_miss_nothing(
    stack: Stack, fault: Callable[[str], AbstractContextManager[None]]
) -> None:
    ward = Ward(stack, SYMBOLS)
    ward.cycle()
    before = {s: ward.state(s).coverage for s in SYMBOLS}
    asked = span("2024-03-14T10:00-04:00", "2024-03-14T15:06-04:00")
    with fault(stack.settings["database_url"]):
        for minute in range(1, 4):
            with pytest.raises(StoreError) as caught:
                raise_what_failed(ward.cycle(f"2024-03-14T15:{minute:02}:30-04:00"))
            assert isinstance(caught.value, StoreReadOnlyError), "an alarm, and what to do"
            assert caught.value.cure
            assert ward.told == [], "nobody is told of bars that are not stored"
            assert {s: ward.state(s).coverage for s in SYMBOLS} == before
    report = ward.cycle("2024-03-14T15:06:30-04:00")
    assert not report.failed
    for symbol in SYMBOLS:
        expected = of_market(stack.sandbox.source, symbol, asked)
        assert_same_bars(ward.stored(symbol, asked), expected)
        frame = stack.client.get_bars(symbol, "1min", start="2024-03-14T10:00-04:00")
        assert frame["close"].tolist() == expected.values[CLOSE].tolist()


def raise_what_failed(report: CycleReport) -> None:
    """Raise what a cycle reports, where it has not raised itself."""
    for failure in report.failed:
        raise getattr(md, failure.error)(str(failure), cure="as told")


def test_fault_18_a_partition_dropped_by_hand_is_made_again(stack: Stack) -> None:
    """What was in it is gone, and verified away; nothing new is lost, and nothing raises."""
    stack.client.get_bars(**HOT)
    with psycopg.connect(stack.settings["database_url"], autocommit=True) as admin:
        admin.execute("DROP TABLE marketdata.market_data_bars_2024_03")
    stack.set_time("2024-03-14T15:05:30-04:00")
    stack.flush_redis()
    stack.client.get_bars(**HOT)
    asked = span("2024-03-14T15:00-04:00", "2024-03-14T15:05-04:00")
    expected = of_market(stack.sandbox.source, "AAPL", asked)
    found = stack.client.get_bars("AAPL", "1min", start="2024-03-14T15:00-04:00")
    assert found["close"].tolist() == expected.values[CLOSE].tolist()


def test_fault_18_reads_go_on_without_writes(stack: Stack) -> None:
    kept = stack.client.get_bars(**HOT)
    with read_only(stack.settings["database_url"]):
        same(stack.client.get_bars(**HOT), kept)
        with pytest.raises(StoreReadOnlyError):
            stack.client.get_bars("MSFT", "1min", limit=5)
        assert stack.client.coverage("MSFT", "1min") == []
    assert len(stack.client.get_bars("MSFT", "1min", limit=5)) == 5
    assert runtime(stack.client).store.holdings(["MSFT"])[0].bar_count >= 5
