"""``marketdata run`` and ``status``, and the counters that processes add up."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from marketdata.cli.daemon import JOB_NAMES
from marketdata.client import connect
from marketdata.jobs import JOBS, NIGHTLY
from marketdata.leadership import ProcessLeases
from marketdata.schedule import Tick
from marketdata.store.leases import PostgresLeases
from tests.daemons import make_daemons
from tests.replayed_market import Market, in_process, make_market

__all__ = ["in_process", "make_daemons", "make_market"]


def test_every_job_is_a_command_and_every_nightly_job_is_one():
    assert set(JOB_NAMES) == set(JOBS)
    assert set(NIGHTLY) < set(JOBS)
    assert {t.value for t in Tick} - {"nightly"} < set(JOBS)


@pytest.mark.parametrize("job", JOB_NAMES)
def test_each_job_runs_by_hand(job: str, make_market: Callable[[str], Market]):
    market = make_market("2024-03-14T16:30:00-04:00")
    market.subscribe("AAPL")
    done = market.command("run", job, "--json", MARKETDATA_BACKFILL_YEARS="0.02")
    assert done.code == 0, done.err
    assert done.summary["job"] == job
    assert done.summary["outcome"] == "done"
    assert isinstance(done.summary["summary"], dict)
    assert market.runs(job) == [(job, "done", None)]
    if job == "cycle":
        assert done.summary["summary"]["bars"] > 400
        text = market.command("run", job)
        assert text.out.startswith("cycle done in ")


def test_a_job_that_runs_elsewhere_is_busy(make_market: Callable[[str], Market]):
    market = make_market("2024-03-14T16:30:00-04:00")
    elsewhere = ProcessLeases(PostgresLeases(market.settings["database_url"]))
    with closing(elsewhere), elsewhere.holding("job:cycle"):
        done = market.command("run", "cycle", "--json")
        assert done.code == 75
        assert done.summary["outcome"] == "busy"
        assert elsewhere.holder in done.summary["holder"]
        assert "since 2" in done.err
    assert market.command("run", "cycle").code == 0


def test_a_job_that_fails_says_so_in_its_exit_code(make_market: Callable[[str], Market]):
    market = make_market("2024-03-14T16:30:00-04:00")
    market.subscribe("AAPL")
    market.sandbox.stop()
    done = market.command("run", "cycle", "--json")
    assert done.code == 3
    assert done.summary["failed"]
    checked = market.command("status", "--check")
    assert checked.code == 1
    assert checked.out.startswith("WARNING - ")
    assert "cycle finished with 1 failure" in checked.out
    gone = market.command("status", "--check", MARKETDATA_DATABASE_URL="postgresql://127.0.0.1:9/x")
    assert gone.code == 2
    assert gone.out.startswith("CRITICAL - ")
    assert market.command("run", "nonsense").code == 2


def test_status_of_a_store_that_is_well(make_market: Callable[[str], Market]):
    market = make_market("2024-03-16T12:00:00-04:00")  # a Saturday
    market.subscribe("AAPL")
    assert market.command("run", "cycle").code == 0
    checked = market.command("status", "--check")
    assert (checked.code, checked.out) == (0, "OK - all is well\n")
    shown = market.command("status", COLUMNS="80")
    assert shown.code == 0
    assert "…" not in shown.out, "nothing is cut off on a narrow terminal"
    assert "all stored" in shown.out
    assert "about " in shown.out
    assert "cycle" in shown.out
    told = market.command("status", "--json").summary["daemon_report"]
    assert told["jobs"]["cycle"]["outcome"] == "done"
    assert told["forecast_bytes"] > 1e6


# ------------------------------------------------------------------------ counters of readers


def read_in_child(settings: dict[str, Any]) -> None:
    with connect(**settings) as client:
        client.get_bars("AAPL", "1min", limit=10)


def test_what_readers_read_is_added_up(make_market: Callable[[str], Market]):
    market = make_market("2024-03-14T16:30:00-04:00")
    with connect(**market.settings) as client:
        for _ in range(3):
            client.get_bars(["AAPL", "MSFT"], "1min", limit=10)
        pid = os.fork()
        if pid == 0:
            # What it has inherited is its parent's to tell.
            code = 1
            try:
                client.get_bars("AAPL", "1min", limit=10)
                client.close()
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
    process = multiprocessing.get_context("spawn").Process(
        target=read_in_child, args=(market.settings,)
    )
    process.start()
    process.join(60)
    totals = market.figures().counters
    assert totals["reads"] == 5
    assert totals["series_from_broker"] == 2
    assert totals["series_from_redis"] + totals.get("series_from_postgres", 0) == 6


def test_a_process_that_closes_nothing_is_counted_at_its_exit(
    make_market: Callable[[str], Market],
):

    market = make_market("2024-03-14T16:30:00-04:00")
    code = "import marketdata as md; md.get_bars('AAPL', '1min', limit=5)"
    subprocess.run(
        [sys.executable, "-c", code],
        env=market.command.environment,
        cwd=market.command.directory,
        check=True,
        capture_output=True,
    )
    assert market.figures().counters["reads"] == 1
