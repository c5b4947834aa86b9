"""``marketdata backfill`` and ``verify`` as their users have them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from marketdata.backfill_report import BackfillProgress
from marketdata.cli.backfill_progress import shown_progress
from marketdata.cli.output import Output
from marketdata.clock import parse_clock
from marketdata.sandbox import Sandbox
from marketdata.store import PostgresStore
from tests.command_line import CommandLine, InProcess

NOW = "2024-03-13T15:00:30-04:00"
BARS = "/v2/stocks/bars"
SINCE = ("--start", "2024-02-20")


@pytest.fixture
def vendor() -> Iterator[Sandbox]:
    with Sandbox(clock=parse_clock(NOW)) as sandbox:
        yield sandbox


@pytest.fixture
def process(tmp_path: Path, database_url: str, redis_db: str, vendor: Sandbox) -> CommandLine:
    """A command line, each command a process of its own, on a database that is ready."""
    with PostgresStore(database_url) as store:
        store.migrate()
    return CommandLine(
        tmp_path,
        database_url=database_url,
        redis_url=redis_db,
        home=str(tmp_path / "home"),
        broker="sandbox",
        alpaca_url=vendor.url,
        alpaca_trading_url=vendor.url,
        clock=NOW,
    )


@pytest.fixture
def marketdata(
    process: CommandLine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> InProcess:
    return InProcess(process, monkeypatch, capsys)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# -------------------------------------------------------------------------------------- plans


def test_a_dry_run_prints_plan_price_and_states_and_changes_nothing(
    marketdata: InProcess, vendor: Sandbox
) -> None:
    asked = ("backfill", "AAPL", "KO", *SINCE, "--dry-run")
    told = marketdata(*asked)
    assert told.code == 0
    assert "SIMULATED" in told.err
    for words in (
        "1day",
        "1min",
        "sealed",
        "never asked",
        "calls a minute",
        "are done on 2024-03-14",
    ):
        assert words in told.out
    data = marketdata(*asked, "--json")
    rows, summary = data.objects[:-1], data.summary
    assert {(r["symbol"], r["timeframe"], r["state"]) for r in rows} == {
        (s, t, "never asked") for s in ("AAPL", "KO") for t in ("1day", "1min")
    }
    assert summary["exit_code"] == 0
    assert summary["calls"] > 0
    assert summary["finished"] == "2024-03-14"
    assert len(vendor.requests) == 0
    assert marketdata("status", "--json").summary["series"] == 0


def test_a_long_plan_names_the_night_and_what_brings_it_forward(marketdata: InProcess) -> None:
    marketdata.directory.joinpath("all.txt").write_text(
        "# everything\n" + "\n".join(f"S{n:05d}" for n in range(1, 201))
    )
    told = marketdata("backfill", "--file", "all.txt", "--years", "2", "--dry-run")
    assert told.code == 0
    assert "left for later: 150 symbols" in told.out
    assert "nightly runs take 4 nights and are done on 2024-03-17; sooner with --max-symbols" in (
        told.out
    )


# --------------------------------------------------------------------------------------- runs


def test_a_run_reports_what_it_did_and_the_next_one_has_nothing_to_do(
    marketdata: InProcess, vendor: Sandbox
) -> None:
    done = marketdata("backfill", "AAPL,KO", *SINCE, "--json")
    assert done.code == 0
    assert done.summary["ended"] == "complete"
    assert done.summary["calls"] == vendor.requests.count(BARS) <= done.summary["planned_calls"]
    series = {(r["symbol"], r["timeframe"]): r for r in done.objects[:-1]}
    assert set(series) == {(s, t) for s in ("AAPL", "KO") for t in ("1day", "1min")}
    assert all(r["bars"] > 0 and r["doubt"] == "" for r in series.values())
    vendor.requests.clear()
    again = marketdata("backfill", "AAPL", "KO", *SINCE)
    assert (again.code, len(vendor.requests)) == (0, 0)
    assert "nothing to fetch" in again.err
    assert "all that was asked for is stored" in again.out
    assert marketdata("gaps", "AAPL", "KO", "-t", "1min", *SINCE).code == 0


def test_failed_symbols_are_listed_and_the_exit_code_says_so(marketdata: InProcess) -> None:
    done = marketdata("backfill", "AAPL", "NOPE1", *SINCE)
    assert done.code == 3
    assert "NOPE1 1day 1min failed, next try 2024-03-13" in done.out
    assert len([line for line in done.out.splitlines() if "NOPE1" in line]) == 1
    told = marketdata("backfill", "AAPL", "NOPE1", *SINCE, "--dry-run")
    assert "attempts 1" in told.out
    assert "nothing to fetch" in told.out
    again = marketdata("backfill", "AAPL", "NOPE1", *SINCE, "--retry-failed", "--json")
    assert (again.code, again.summary["failed_symbols"]) == (3, ["NOPE1"])
    forgotten = marketdata("backfill", "NOPE1", *SINCE, "--reset")
    assert "2 failures forgotten" in forgotten.err


def test_a_run_says_at_which_limit_it_ended_and_what_is_left(marketdata: InProcess) -> None:
    done = marketdata("backfill", "AAPL", "KO", *SINCE, "--max-symbols", "1")
    assert done.code == 0
    assert "ended at --max-symbols; left: 1 symbol" in done.out
    done = marketdata("backfill", "AAPL", "KO", *SINCE, "--max-calls", "1")
    assert done.code == 0
    assert "ended at --max-calls; left: 1 symbol" in done.out


def test_subscribed_symbols_are_the_default(marketdata: InProcess) -> None:
    nothing = marketdata("backfill")
    assert nothing.code == 2
    assert "name the symbols" in nothing.err
    marketdata("bars", "KO", "-n", "1")
    assert marketdata("backfill", "--all-subscribed").code == 2
    marketdata("subscribe", "AAPL", "-t", "1day", "--owner", "me")
    done = marketdata("backfill", "--all-subscribed", *SINCE, "--json")
    assert {(r["symbol"], r["timeframe"]) for r in done.objects[:-1]} == {("AAPL", "1day")}


@pytest.mark.parametrize(
    "wrong",
    [
        ("--until", "half past six"),
        ("--years", "2", "--start", "2024-01-01"),
        ("--years", "-1"),
        ("--timeframe", "1M"),
        ("--file", "nowhere.txt"),
        ("--start", "2025-01-01"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(marketdata: InProcess, wrong: tuple[str]) -> None:
    done = marketdata("backfill", "AAPL", *wrong)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1


def test_a_stopped_run_can_be_resumed(
    process: CommandLine, marketdata: InProcess, vendor: Sandbox
) -> None:
    held = vendor.faults.add("hold", match="1Min", nth=2)
    running = process.start("backfill", "AAPL", "KO", "--start", "2024-01-22")
    until(lambda: held.fired > 0)
    began = time.monotonic()
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=20)
    assert time.monotonic() - began < 5
    assert running.returncode == 130
    assert "stopping" in err
    assert "run the same command again" in out
    held.release()
    vendor.faults.clear()
    done = marketdata("backfill", "AAPL", "KO", "--start", "2024-01-22", "--json")
    assert (done.code, done.summary["ended"]) == (0, "complete")


def test_a_server_that_is_gone_is_one_line(marketdata: InProcess) -> None:
    done = marketdata(
        "backfill", "AAPL", MARKETDATA_DATABASE_URL="postgresql://nobody@127.0.0.1:1/x"
    )
    assert done.code == 69
    assert done.err.count("\n") == 1


# ----------------------------------------------------------------------------------- progress


def progress(done: float, seconds: float) -> BackfillProgress:
    return BackfillProgress("1min 2024-02 2 symbols", done, 7, 20_000, seconds, 1)


def test_off_a_terminal_progress_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with shown_progress(Output(), "auto") as show:
        assert show is not None
        show(progress(0.1, 1.0))
        now += 31
        show(progress(0.25, 10.0))
        show(progress(0.5, 11.0))
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        " 25%  1min 2024-02 2 symbols  20,000 bars  2,000/s  7 calls  0:30 left  1 failed\n"
    )


def test_on_a_terminal_progress_is_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output()
    out.notes = Console(file=sys.stderr, force_terminal=True, width=120, highlight=False)
    with shown_progress(out, "auto") as show:
        assert show is not None
        show(progress(0.25, 10.0))
    drawn = capsys.readouterr().err
    assert "1min 2024-02 2 symbols" in drawn
    assert "25%" in drawn
    assert "0:30 left" in drawn


def test_progress_may_be_off() -> None:
    with shown_progress(Output(), "off") as show:
        assert show is None


# ------------------------------------------------------------------------------------- verify


def test_verify_compares_and_says_what_differs(
    marketdata: InProcess, database_url: str, vendor: Sandbox
) -> None:
    import psycopg

    marketdata("backfill", "AAPL", *SINCE)
    same = marketdata("verify")
    assert same.code == 0
    assert "nothing differs" in same.out
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "UPDATE marketdata.market_data_bars SET close = close + 1 WHERE timeframe = '1day'"
            " AND timestamp = (SELECT min(timestamp) FROM marketdata.market_data_bars"
            " WHERE timeframe = '1day')"
        )
    drifted = marketdata("verify", "AAPL", "--all")
    assert drifted.code == 3
    assert "close" in drifted.out
    assert "AAPL 1day 2024-02-20 05:00: 1 changed, 0 missing here, 0 missing there" in drifted.out
    later = NOW.replace("15:00:30", "15:00:31")
    corrected = marketdata("verify", "AAPL", "--all", "--correct", "--json", MARKETDATA_CLOCK=later)
    assert (corrected.code, corrected.summary["corrected"]) == (3, 1)
    assert marketdata("verify", "--all", MARKETDATA_CLOCK=later).code == 0
    vendor.faults.add("status", status=503, times=None)
    assert marketdata("verify").code == 69


HANGS = """
import threading, time
from marketdata.cli import backfill
from marketdata.cli.output import Output

backfill._LAST_RESORT = {last_resort}
with backfill.stopped_by_signals(Output()) as stop:
    threading.Thread(target=threading.Event().wait).start()
    print("hangs", flush=True)
    while True:
        time.sleep(60)
"""


@pytest.mark.parametrize(("last_resort", "signals"), [(0.2, 1), (60, 2)])
def test_what_hangs_is_left_to_the_kernel(last_resort: float, signals: int) -> None:
    """A server that answers no more holds threads, and they the interpreter."""
    process = subprocess.Popen(
        [sys.executable, "-c", HANGS.format(last_resort=last_resort)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "hangs\n"
        process.send_signal(signal.SIGINT)
        assert "stopping" in process.stderr.readline()
        if signals == 2:
            process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    finally:
        process.kill()
        process.communicate()
