"""``marketdata up`` on real servers, a sandbox and a replayed clock."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psycopg
import pytest

from marketdata.client import connect
from marketdata.clock import parse_clock
from marketdata.jobs import NIGHTLY
from marketdata.sandbox import Fault
from marketdata.store import PostgresStore
from tests.command_line import CommandLine
from tests.daemons import DaemonProcess, Daemons, make_daemons, until
from tests.redis_process import RedisProcess
from tests.replayed_market import SECRET, Market, in_process, make_market, nowhere

__all__ = ["in_process", "make_daemons", "make_market", "nowhere"]

NEAR_CLOSE = "replay:2024-03-14T15:50:00-04:00@60"


@pytest.fixture
def market(make_market: Callable[[str], Market]) -> Market:
    return make_market(NEAR_CLOSE)


def later(daemon: DaemonProcess, seconds: float) -> bool:
    """Whether the daemon has seen market time pass `seconds` since 1970."""
    return daemon.metric("marketdata_market_time_seconds") > seconds


def cycles(daemon: DaemonProcess) -> float:
    return daemon.metric("marketdata_cycle_seconds_count")


# -------------------------------------------------------------------------------------- a day


def test_a_daemon_keeps_what_is_subscribed_fresh(market: Market):
    market.subscribe("AAPL", "MSFT")
    market.subscribe("AAPL", "SPY", timeframe="1day")
    daemon = market.daemons.up(
        "--log-format",
        "logfmt",
        database_url=market.settings["database_url"].replace("@", f":{SECRET}@", 1),
    )
    until(lambda: daemon.get("readyz") == (200, '{"ready":true,"role":"leader"}'))
    until(lambda: cycles(daemon) >= 5, 60)
    assert daemon.get("livez")[0] == 200
    assert daemon.metric("marketdata_leader") == 1
    until(lambda: daemon.metric("marketdata_subscriptions") == 4)
    until(lambda: daemon.metric("marketdata_series_stale") == 0)
    assert daemon.metric('marketdata_job_runs_total{job="cycle",outcome="done"}') >= 5
    assert daemon.metric("marketdata_broker_requests_total") == len(market.sandbox.requests)
    told = daemon.told("health")
    assert told["role"] == "leader"
    assert told["simulated"] is True
    assert told["jobs"]["cycle"]["outcome"] in ("done", "running")
    assert {f["subject"] for f in told["findings"]} <= {"skipped"}
    status = market.command("status")
    assert f"/{daemon.pid} leads since" in status.out
    assert "2 x 1day, 2 x 1min" in status.out

    code, took = daemon.end(signal.SIGTERM)
    assert code == 0
    assert took < 25
    look = market.figures()
    assert look.leader is None, "the lease is given back"
    assert not [h for h in look.leases.values() if h.live]
    assert look.runs["cycle"].outcome in ("done", "stopped")
    log = daemon.log.read_text()
    assert "event=leading" in log
    assert SECRET not in log
    assert all(line.startswith("timestamp=") for line in log.splitlines()), log
    with connect(**market.settings) as client:
        client.get_bars(["AAPL", "MSFT"], "1min", limit=100)
        assert client.stats()["series_from_broker"] == 0, "all was there"


def test_the_hour_that_repeats_has_one_night(make_market: Callable[[str], Market]):
    """Two hours around the change to winter time, in six seconds; two daemons."""
    market = make_market("replay:2024-11-03T00:58:00-04:00@1200")
    market.subscribe("AAPL")
    pair = [market.daemons.quick(6.0, backfill_years=0.02) for _ in range(2)]
    end = parse_clock("2024-11-03T02:10:00-05:00").now_us() / 1e6
    for daemon in pair:
        until(partial(later, daemon, end), 60)
    until(lambda: [o for _, o, _ in market.runs(*NIGHTLY)][3:] == ["done"])
    night = [("backfill", "done", "2024-11-03"), ("seal", "done", "2024-11-03"),
             ("retention", "done", "2024-11-03"), ("verify", "done", "2024-11-03")]  # fmt: skip
    assert market.runs(*NIGHTLY) == night
    assert market.runs("cycle") != [], "who comes to lead acts at once"
    assert sum(daemon.metric("marketdata_leader_elections_total") for daemon in pair) == 1


# ---------------------------------------------------------------------------- start and end


def test_sigterm_ends_a_cycle_that_hangs_on_the_broker(market: Market):
    """What it has begun rolls back; the next daemon finds it undone."""
    market.subscribe("AAPL")
    market.sandbox.faults.add(Fault("stall", "/v2/stocks/bars", times=None))
    daemon = market.daemons.quick()
    until(lambda: len(market.sandbox.requests) > 0)
    code, took = daemon.end()
    assert code == 0
    assert took < 12
    assert market.runs("cycle") == [("cycle", None, None)]
    assert not [h for h in market.figures().leases.values() if h.live], "nobody has to wait"
    market.sandbox.faults.clear()
    assert market.command("run", "cycle").code == 0
    assert market.runs("cycle")[:2] == [("cycle", "lost", None), ("cycle", "done", None)]


def test_ctrl_c_ends_it_and_json_logs_are_json(market: Market):
    daemon = market.daemons.up("--log-format", "json")
    until(daemon.leads)
    code, took = daemon.end(signal.SIGINT)
    assert code == 130
    assert took < 10
    lines = daemon.log.read_text().splitlines()
    assert lines.pop() == "interrupted", "for who pressed it"
    events = [json.loads(line) for line in lines]
    assert "leading" in {e["event"] for e in events}
    assert all({"timestamp", "level", "event"} <= set(e) for e in events)


def test_while_its_servers_are_away_it_waits(
    make_daemons: Callable[..., Daemons], nowhere: dict[str, str]
):
    daemon = make_daemons(**nowhere).up("--wait", "60")
    until(lambda: daemon.get("readyz")[0] == 503)
    assert "waiting for its servers" in daemon.get("readyz")[1]
    assert daemon.get("livez")[0] == 200
    assert daemon.get("metrics")[0] == 200
    code, took = daemon.end()
    assert code == 0
    assert took < 5
    assert SECRET not in daemon.log.read_text()


def test_without_servers_it_fails_in_the_end(
    in_process: Callable[..., CommandLine], nowhere: dict[str, str]
):
    began = time.monotonic()
    done = in_process(**nowhere)("up", "--wait", "1", "--json")
    assert done.code == 69
    assert 0.5 < time.monotonic() - began < 10
    assert done.summary["error"]["type"] == "StoreUnavailableError"
    assert SECRET not in done.err


def test_without_redis_it_does_not_start(
    in_process: Callable[..., CommandLine], nowhere: dict[str, str], database_url: str
):
    with PostgresStore(database_url) as store:
        store.migrate()
    done = in_process(**{**nowhere, "database_url": database_url})("up", "--wait", "1")
    assert done.code == 69
    assert "Redis" in done.err


def test_redis_gone_while_it_works_makes_it_slower(
    make_daemons: Callable[..., Daemons], database_url: str
):
    with PostgresStore(database_url) as store:
        store.migrate()
    with RedisProcess() as server:
        settings = {"database_url": database_url, "redis_url": server.url, "broker": "none"}
        daemon = make_daemons(**settings).quick()
        until(daemon.is_ready)
        until(lambda: daemon.metric("marketdata_server_up") == 2)
        server.stop()
        until(lambda: daemon.metric('marketdata_server_up{server="redis"}') == 0)
        assert daemon.is_ready()
        assert daemon.metric('marketdata_server_up{server="postgres"}') == 1
        assert daemon.end()[0] == 0


def test_a_newer_schema_and_a_taken_port_need_a_hand(
    in_process: Callable[..., CommandLine],
    nowhere: dict[str, str],
    database_url: str,
    redis_db: str,
):
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute("CREATE SCHEMA marketdata")
        admin.execute(
            "CREATE TABLE marketdata.schema_migrations (number int, name text, checksum text)"
        )
        admin.execute("INSERT INTO marketdata.schema_migrations VALUES (999, 'x', 'y')")
    newer = in_process(**{**nowhere, "database_url": database_url, "redis_url": redis_db})
    assert newer("up", "--wait", "60").code == 78
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = in_process(**{**nowhere, "listen": address})("up")
    assert done.code == 78
    assert "MARKETDATA_LISTEN" in done.err


def test_the_embedded_servers_stay_for_as_long_as_the_daemon(
    make_daemons: Callable[..., Daemons], used_home: Callable[[], Path]
):
    from marketdata import embedded

    home = used_home()
    daemon = make_daemons(home=home, broker="none").up()
    until(daemon.is_ready, 60)
    assert daemon.pid in embedded.status(home).users
    assert daemon.end()[0] == 0
    until(lambda: not embedded.status(home).running)


def test_marketdata_down_ends_the_daemon_too(
    make_daemons: Callable[..., Daemons], used_home: Callable[[], Path]
):
    from marketdata import embedded

    home = used_home()
    daemon = make_daemons(home=home, broker="none").quick()
    until(daemon.leads, 60)
    assert embedded.down(home)
    assert daemon.process.wait(30) == 69
    assert not embedded.status(home).running


def test_who_may_only_read_cannot_be_a_daemon(
    in_process: Callable[..., CommandLine],
    nowhere: dict[str, str],
    database_url: str,
    redis_db: str,
):
    with PostgresStore(database_url) as store:
        store.migrate()
    joint = "&" if "?" in database_url else "?"
    reader = f"{database_url}{joint}options=-c%20role%3Dmarketdata_reader"
    done = in_process(**{**nowhere, "database_url": reader, "redis_url": redis_db})("up")
    assert done.code == 69
    assert "marketdata_writer" in done.err
