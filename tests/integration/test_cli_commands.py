"""The command line on real servers: streams, exit codes, JSON, and what it says when things fail."""

from __future__ import annotations

import io
import json
import os
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pandas as pd
import psycopg
import pytest

from marketdata import embedded
from marketdata.clock import FixedClock, parse_clock
from marketdata.sandbox import Fault, Sandbox
from marketdata.store import PostgresStore
from tests.command_line import NOW, CommandLine, InProcess, empty, marketdata

__all__ = ["empty", "marketdata"]

NOWHERE = "postgresql://somebody:a-secret@127.0.0.1:1/x"


@pytest.fixture
def process(marketdata: InProcess) -> CommandLine:
    """The same, each command a process of its own."""
    line = CommandLine(marketdata.directory)
    line.environment = marketdata.environment
    return line


@pytest.fixture
def vendor() -> Iterator[Sandbox]:
    """A broker of this process, so that its requests can be counted and disturbed."""
    with Sandbox(clock=parse_clock(NOW)) as sandbox:
        assert isinstance(sandbox.clock, FixedClock)
        yield sandbox


# ---------------------------------------------------------------------------------- database


def test_a_database_from_nothing(empty: InProcess) -> None:
    seen = empty("status", "--json")
    assert seen.code == 78
    assert "marketdata db init" in seen.summary["problems"][0]
    before = empty("db", "status", "--json")
    assert (before.code, before.summary["version"]) == (78, 0)
    made = empty("db", "init", "--json")
    assert (made.code, made.summary["applied"][0]) == (0, 1)
    again = empty("db", "init")
    assert (again.code, again.err) == (0, "")
    assert "up to date" in again.out
    after = empty("db", "status", "--json")
    assert (after.code, after.summary["pending"]) == (0, 0)
    assert {o["state"] for o in after.objects[:-1]} == {"applied"}
    stored = empty("status", "--json")
    assert (stored.code, stored.summary["bars"], stored.summary["problems"]) == (0, 0, [])


def test_the_script_for_an_administrator_makes_the_schema(
    tmp_path: Path, database_url: str
) -> None:
    script = CommandLine(tmp_path, database_url=NOWHERE, redis_url="redis://x", schema="theirs")(
        "db", "init", "--sql"
    )
    assert (script.code, script.err) == (0, "")
    with psycopg.connect(database_url) as connection:
        connection.execute(script.out.encode())
    with PostgresStore(database_url, schema="theirs") as store:
        store.check_schema()


# -------------------------------------------------------------------------------------- bars


def test_bars_are_the_same_as_json_as_csv_and_stored(process: CommandLine, vendor: Sandbox) -> None:
    more = {"MARKETDATA_ALPACA_URL": vendor.url, "MARKETDATA_ALPACA_TRADING_URL": vendor.url}
    asked = ("bars", "AAPL,MSFT", "KO", "-t", "1min", "-n", "40")
    first = process(*asked, "--json", **more)
    assert first.code == 0
    assert len(first.objects) == 3 * 40 + 1
    assert first.summary["provenance"]["simulated"] is True
    assert "SIMULATED" in first.err
    calls = len(vendor.requests)
    assert calls > 0
    text = process(*asked, "--csv", "-", **more)
    assert len(vendor.requests) == calls
    csv = pd.read_csv(io.StringIO(text.out), float_precision="round_trip")
    rows = pd.DataFrame(first.objects[:-1])
    for column in ("open", "high", "low", "close", "volume", "vwap", "trade_count"):
        assert csv[column].tolist() == rows[column].tolist()
    assert pd.to_datetime(csv["timestamp"]).equals(pd.to_datetime(rows["timestamp"]))
    assert csv["symbol"].tolist() == rows["symbol"].tolist()


def test_files(marketdata: InProcess) -> None:
    where = marketdata.directory
    done = marketdata(
        "bars", "AAPL", "-n", "30",
        "--csv", "a.csv", "--parquet", "a.parquet", "--plot", "a.html",
    )  # fmt: skip
    assert (done.code, done.out) == (0, "")
    parquet = pd.read_parquet(where / "a.parquet")
    csv = pd.read_csv(where / "a.csv", float_precision="round_trip")
    assert len(parquet) == 30
    assert csv["vwap"].tolist() == parquet["vwap"].tolist()
    assert "SIMULATED" in (where / "a.html").read_text(encoding="utf-8")[-200_000:]
    refused = marketdata("bars", "AAPL", "-n", "3", "--csv", str(where / "no" / "a.csv"))
    assert refused.code == 2
    assert marketdata("bars", "AAPL", "--csv", "-", "--json").summary["exit_code"] == 2


def test_a_table_is_plain_off_a_terminal(process: CommandLine, marketdata: InProcess) -> None:
    done = process("bars", "AAPL", "-t", "1min", "-n", "25")
    assert done.code == 0
    assert "\x1b" not in done.out + done.err
    lines = done.out.splitlines()
    assert lines[0] == "SIMULATED AAPL 1min"
    assert "the last 20 of 25 rows" in lines[-1]
    assert len(lines) == 1 + 2 + 20 + 1
    everything = marketdata("bars", "AAPL", "-t", "1min", "-n", "25", "--all")
    assert len(everything.out.splitlines()) == 1 + 2 + 25
    matrix = marketdata("bars", "AAPL", "KO", "-n", "2", "--field", "close", "--json")
    assert set(matrix.objects[0]) == {"timestamp", "AAPL", "KO"}


def test_gaps_that_no_read_can_fill_are_listed_and_are_no_failure(
    marketdata: InProcess, vendor: Sandbox
) -> None:
    old = ("gaps", "KO", "-t", "1min", "--start", "2023-01-03", "--end", "2023-01-05")
    yahoo = {"MARKETDATA_BROKER": "yahoo", "MARKETDATA_YAHOO_URL": vendor.url}
    done = marketdata(*old, "--json", **yahoo)
    assert (done.code, done.summary["gaps"], done.summary["symbols"]) == (0, 1, [])
    assert [o["state"] for o in done.objects[:-1]] == ["unavailable"]
    told = marketdata(*old, **yahoo)
    assert (told.code, told.err.strip()) == (0, "all that the broker still gives is stored")


def test_gaps_and_plans_before_and_after_a_read(marketdata: InProcess) -> None:
    window = ("KO", "-t", "1min", "--period", "2d")
    plan = marketdata("explain", *window, "--json")
    assert (plan.code, plan.summary["calls"]) == (0, 1)
    assert plan.objects[0]["tier"] == "broker"
    torn = marketdata("gaps", *window, "--json")
    assert (torn.code, torn.summary["symbols"]) == (3, ["KO"])
    assert marketdata("bars", *window).code == 0
    whole = marketdata("gaps", *window)
    assert (whole.code, whole.err) == (0, "")
    assert "no gaps" in whole.out
    assert marketdata("explain", *window, "--json").summary["calls"] == 0
    held = marketdata("status", "--json")
    (series,) = held.objects[:-1]
    assert (series["timeframe"], series["symbols"], series["with_gaps"]) == ("1min", 1, 0)
    assert held.summary["filled_from"] == "nothing yet", "simulated bars leave no mark"


def test_symbols_left_out_are_listed(process: CommandLine) -> None:
    done = process("bars", "KO", "NOPEX", "-n", "2", "--missing", "skip", "--json")
    assert (done.code, done.summary["provenance"]["missing"]) == (3, "NOPEX")
    warnings = [line for line in done.err.splitlines() if line.startswith("warning:")]
    assert warnings == ["warning: left out unknown symbols: NOPEX"]


# ------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("bars APPL", 3, "AAPL"),
        ("bars KO APPL MSFF", 3, "MSFT"),
        ("bars KO -t 1M", 2, "1month"),
        ("bars KO --limit 0", 2, "limit"),
        ("bars KO --start 2024-01-02T00:00:00", 2, "-05:00"),
        ("bars KO --start 2024-02-02 --end 2024-01-02", 2, "after end"),
        ("bars KO'-- -n 3", 2, "not a US equity"),
        ("bars KO --adjustment total", 2, "dividend"),
        ("bars KO --field price", 2, "close"),
        ("bars", 2, "SYMBOLS"),
        ("nonsense", 2, "nonsense"),
        ("bars KO --broker nobody", 78, "yahoo"),
        ("bars KO --clock tomorrow", 78, "replay:"),
        (f"bars KO --database-url {NOWHERE}", 69, "PostgreSQL"),
    ],
)
def test_errors_are_one_line_with_the_cure(
    marketdata: InProcess, arguments: str, code: int, said: str
) -> None:
    done = marketdata(*arguments.split())
    assert done.code == code
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert said in done.err
    assert "a-secret" not in done.err


def test_a_misspelt_variable_is_refused_with_the_nearest_name(marketdata: InProcess) -> None:
    done = marketdata("bars", "KO", "--json", MARKETDATA_BROKR="yahoo")
    assert done.code == 78
    assert "MARKETDATA_BROKER" in done.err
    assert done.summary["error"]["type"] == "ConfigurationError"
    assert done.summary["exit_code"] == 78


def test_debug_shows_the_traceback(process: CommandLine) -> None:
    assert "Traceback" in process("bars", "APPL", "--debug").err
    assert "Traceback" in process("bars", "APPL", MARKETDATA_LOG="debug").err


def test_without_redis_bars_are_printed_all_the_same(marketdata: InProcess) -> None:
    done = marketdata("bars", "KO", "-n", "3", "--json", "--redis-url", "redis://127.0.0.1:1")
    assert (done.code, done.summary["rows"]) == (0, 3)
    assert "reads go on without it" in done.err


def test_a_broker_that_is_down(marketdata: InProcess, vendor: Sandbox) -> None:
    vendor.faults.add(Fault("status", "/v2/stocks/bars", status=401, times=None))
    refused = marketdata("bars", "KO", MARKETDATA_ALPACA_URL=vendor.url)
    assert refused.code == 78
    vendor.stop()
    gone = marketdata("bars", "KO", "--timeout", "3", MARKETDATA_ALPACA_URL=vendor.url)
    assert gone.code == 69


def test_ctrl_c_in_the_middle(process: CommandLine, vendor: Sandbox) -> None:
    vendor.faults.add(Fault("stall", "/v2/stocks/bars", times=None))
    running = process.start("bars", "KO", MARKETDATA_ALPACA_URL=vendor.url)
    _until(lambda: vendor.requests.count("/v2/stocks/bars") > 0)
    began = time.monotonic()
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=20)
    assert running.returncode == 130
    assert time.monotonic() - began < 10
    assert (out, err) == ("", "interrupted\n")


def test_a_reader_that_has_had_enough(process: CommandLine) -> None:
    running = process.start("bars", "AAPL", "-t", "1min", "--period", "5d", "--json")
    assert running.stdout is not None
    assert running.stderr is not None
    assert json.loads(running.stdout.readline())["symbol"] == "AAPL"
    running.stdout.close()
    assert "Traceback" not in running.stderr.read()
    running.stderr.close()
    assert running.wait(timeout=20) == 0


# ------------------------------------------------------------------ doctor, config, servers


def test_doctor_on_a_healthy_stack(marketdata: InProcess, vendor: Sandbox) -> None:
    done = marketdata("doctor", "--json", MARKETDATA_ALPACA_URL=vendor.url)
    found = {o["check"]: o for o in done.objects[:-1]}
    assert done.code == 0
    named = {"release", "settings", "home", "PostgreSQL", "schema", "rights", "Redis", "broker"}
    assert named | {"clock", "keys", "calls", "calendar"} <= set(found)
    assert found["PostgreSQL"]["state"] == "ok"
    assert "sandbox" in found["broker"]["found"]
    assert "real time" in found["keys"]["found"]


def test_doctor_learns_that_recent_data_is_not_given(
    marketdata: InProcess,
) -> None:
    with Sandbox(clock=parse_clock(NOW), entitled_sip=False) as free:
        done = marketdata("doctor", "--json", MARKETDATA_ALPACA_URL=free.url)
    found = {o["check"]: o for o in done.objects[:-1]}
    assert done.code == 0
    assert "16 minutes late" in found["keys"]["found"]


def test_doctor_goes_on_after_a_failure(marketdata: InProcess) -> None:
    done = marketdata("doctor", "--json", "--database-url", NOWHERE)
    found = {o["check"]: o for o in done.objects[:-1]}
    assert done.code == 69
    assert done.summary["failed"] == ["PostgreSQL"]
    assert {"Redis", "broker", "calendar"} <= set(found)
    assert "a-secret" not in done.out + done.err
    wrong = marketdata("doctor", "--json", MARKETDATA_TIMEOUT="-1")
    assert (wrong.code, wrong.summary["failed"]) == (78, ["settings"])
    empty = marketdata("doctor", "--json", MARKETDATA_SCHEMA="elsewhere")
    (schema,) = [o for o in empty.objects[:-1] if o["state"] == "failed"]
    assert (empty.code, schema["fix"]) == (78, "run: marketdata db init")


def test_doctor_starts_nothing(tmp_path: Path) -> None:
    command = CommandLine(tmp_path, home=str(tmp_path / "home"), broker="none")
    done = command("doctor", "--json")
    found = {o["check"]: o["found"] for o in done.objects[:-1]}
    assert done.code == 0
    assert "not running" in found["PostgreSQL"]
    assert "not running" in found["Redis"]
    assert not (tmp_path / "home").exists()
    nothing = command("status", "--json")
    assert (nothing.code, nothing.summary["bars"]) == (0, 0)
    assert command("down", "--json").summary["stopped"] == []
    assert not (tmp_path / "home").exists()


def test_an_embedded_database_nobody_has_read_from_is_well(
    tmp_path: Path, new_home: Callable[..., Path]
) -> None:
    home = new_home()
    command = CommandLine(tmp_path, home=str(home), broker="none")
    with embedded.acquire(home):
        checked = command("doctor", "--json")
        seen = command("status", "--json")
        assert command("down", "--json").summary["stopped"] == ["redis", "postgres"]
    found = {o["check"]: o for o in checked.objects[:-1]}
    assert (checked.code, seen.code) == (0, 0)
    assert "first use" in found["schema"]["found"]
    assert found["Redis"]["state"] == "ok"
    assert str(os.getpid()) in seen.summary["embedded"]
    assert "nothing yet" in seen.summary["stored"]


def test_config_masks_secrets_and_names_sources(marketdata: InProcess) -> None:
    keys = {"APCA_API_KEY_ID": "PK-OPEN", "APCA_API_SECRET_KEY": "a-secret"}
    done = marketdata("config", "--json", "--database-url", NOWHERE, **keys)
    rows = {o["name"]: o for o in done.objects[:-1]}
    assert done.code == 0
    assert "a-secret" not in done.out
    assert rows["MARKETDATA_DATABASE_URL"]["source"] == "keyword"
    assert rows["MARKETDATA_CLOCK"] == {
        "name": "MARKETDATA_CLOCK",
        "value": NOW,
        "source": "environment",
    }
    assert rows["MARKETDATA_FEED"]["source"] == "default"


def test_sandbox_serves_until_ctrl_c(tmp_path: Path) -> None:
    process = CommandLine(tmp_path).start(
        "sandbox", "--port", "0", "--clock", NOW, "--rate-limit", "2", "--json"
    )
    try:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        assert said["environment"]["MARKETDATA_CLOCK"] == NOW
        with urllib.request.urlopen(f"{said['url']}/_sandbox/", timeout=10) as answer:
            about = json.load(answer)
        assert about["simulated"] is True
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "SIMULATED" in err
    assert "Traceback" not in err


def test_sandbox_on_a_port_that_is_taken(tmp_path: Path, vendor: Sandbox) -> None:
    port = str(urlsplit(vendor.url).port)
    done = CommandLine(tmp_path)("sandbox", "--port", port)
    assert done.code == 78
    assert "--port" in done.err


def test_a_user_without_rights_is_named(marketdata: InProcess, database_url: str) -> None:
    name = f"reader_{os.getpid()}"
    parts = urlsplit(database_url)
    theirs = urlunsplit(parts._replace(netloc=f"{name}:x@{parts.netloc.rpartition('@')[2]}"))
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'x' IN ROLE marketdata_reader")
        try:
            done = marketdata("doctor", "--json", "--database-url", theirs)
        finally:
            connection.execute(f"DROP ROLE {name}")
    rights = next(o for o in done.objects if o.get("check") == "rights")
    assert done.code == 78
    assert "write" in rights["found"]
    assert "marketdata_writer" in rights["fix"]


def _until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
