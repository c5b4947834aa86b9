"""``marketdata export``: the bars that a read gives, whole files or none, gaps named."""

from __future__ import annotations

import csv
import io
import signal
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from marketdata.calendars import EXCHANGE, calendar_for
from marketdata.clock import parse_clock
from marketdata.corporate_actions import ActionKind, CorporateAction
from marketdata.errors import RequestError
from marketdata.files import write_bars
from marketdata.spans import Span
from marketdata.store import PostgresStore
from marketdata.types import COLUMNS, DAY, MINUTE, Bars, SeriesKey, Timeframe
from tests.command_line import CommandLine, InProcess
from tests.own_bars import NOW, commit_bars, marketdata, session_bars, stored
from tests.stack import Stack

__all__ = ["marketdata"]

AAPL = SeriesKey("mine", "mine", "AAPL", Timeframe.MIN_1)


@pytest.fixture
def store(database_url: str, marketdata: InProcess) -> Iterator[PostgresStore]:
    """The store, whose database is about the provider ``mine``."""
    with PostgresStore(database_url) as opened:
        opened.adopt("mine", "mine")
        yield opened


def frame_of(bars: Bars) -> pd.DataFrame:
    return pd.DataFrame(
        bars.values.T,
        index=pd.DatetimeIndex(bars.timestamp.astype("M8[us]"), name="timestamp").tz_localize(
            "UTC"
        ),
        columns=list(COLUMNS),
    )


def read_back(path: Path) -> pd.DataFrame:
    """Return a Parquet file as pandas has it, its symbols as text."""
    frame = pd.read_parquet(path)
    assert isinstance(frame["symbol"].dtype, pd.CategoricalDtype)
    frame["symbol"] = frame["symbol"].astype(str)
    return frame


def hidden(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.rglob(".*") if p.name != ".pytest_cache")


# ----------------------------------------------------------------------------------- contents


def test_parquet_holds_exactly_what_is_stored(
    marketdata: InProcess, store: PostgresStore, tmp_path: Path
) -> None:
    bars = session_bars()
    bars.values[5, 10] = np.nan
    commit_bars(store, AAPL, bars)
    commit_bars(store, AAPL._replace(symbol="MSFT"), session_bars(seed=2))
    done = marketdata("export", "MSFT", "AAPL", "-t", "1min", "--to", "out/a.parquet", "--json")
    assert (done.code, done.summary["rows"], done.summary["symbols"]) == (0, 780, 2)
    frame = read_back(tmp_path / "out" / "a.parquet")
    assert list(frame.columns) == ["symbol", "timestamp", *COLUMNS]
    assert str(frame["timestamp"].dtype) == "datetime64[us, UTC]"
    own = frame[frame["symbol"] == "AAPL"]
    assert own["timestamp"].astype("int64").tolist() == bars.timestamp.tolist()
    assert own[list(COLUMNS)].to_numpy().T.tobytes() == bars.values.tobytes()
    facts = pq.read_schema(tmp_path / "out" / "a.parquet").metadata
    assert facts[b"marketdata.provider"] == b"mine"
    assert hidden(tmp_path) == []


def test_csv_reads_back_to_the_same_floats(
    marketdata: InProcess, store: PostgresStore, tmp_path: Path
) -> None:
    bars = session_bars(count=50)
    bars.values[:5, 0] = [0.1 + 0.2, 1e15, 5e-3, 1 / 3, 1e-7]
    bars.values[5:, 3] = np.nan
    commit_bars(store, AAPL, bars)
    assert marketdata("export", "AAPL", "-t", "1min", "--to", "a.csv").code == 0
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["timestamp"] == "2024-03-12T13:30:00Z"
    assert rows[3]["vwap"] == ""
    read = [[float(r[c] or "nan") for r in rows] for c in COLUMNS]
    assert np.array(read).tobytes() == bars.values.tobytes()
    shown = marketdata("export", "AAPL", "-t", "1min", "--to", "-")
    assert shown.out == (tmp_path / "a.csv").read_text()


def test_a_directory_has_a_file_for_each_symbol_and_imports_again(
    marketdata: InProcess, store: PostgresStore, tmp_path: Path
) -> None:
    for symbol in ("AAPL", "BRK.B"):
        commit_bars(store, AAPL._replace(symbol=symbol), session_bars(seed=len(symbol)))
    for kind in ("parquet", "csv"):
        to = f"{kind}/"
        done = marketdata("export", "--all", "-t", "1min", "--to", to, "--format", kind)
        assert done.code == 0
        assert (tmp_path / kind / "symbol=BRK.B" / f"bars.{kind}").is_file()
        back = marketdata(
            *("import", kind, "-t", "1min", "--basis", "raw", "--provider", kind),
            *("--covers", "2024-03-12:2024-03-13"),
        )
        assert back.code == 0, back.err
        for symbol in ("AAPL", "BRK.B"):
            _, ours = stored(store, symbol, provider="mine")
            _, theirs = stored(store, symbol, provider=kind)
            assert theirs.timestamp.tolist() == ours.timestamp.tolist()
            assert theirs.values.tobytes() == ours.values.tobytes()
    whole = pa.dataset.dataset(tmp_path / "parquet", partitioning="hive").to_table()
    assert sorted(set(whole["symbol"].to_pylist())) == ["AAPL", "BRK.B"]


def test_other_timeframes_are_those_of_a_read(
    make_stack: Callable[..., Stack], marketdata: InProcess, tmp_path: Path
) -> None:
    stack = make_stack(at=NOW)
    servers = _servers(stack)
    for timeframe, start in (
        ("5min", "2023-12-20"),
        ("1hour", "2023-12-20"),
        ("1week", "2022-06-01"),
    ):
        asked: dict[str, Any] = {"start": start, "session": "extended"}
        frame = stack.client.get_bars("AAPL", timeframe, **asked)
        stack.forget_calls()
        to = f"{timeframe}.parquet"
        command = ("export", "AAPL", "-t", timeframe, "--start", start, "--to", to)
        assert marketdata(*command, **servers).code == 0
        assert stack.calls() == 0
        found = read_back(tmp_path / to).set_index("timestamp")[list(COLUMNS)]
        pd.testing.assert_frame_equal(found, frame, check_freq=False, check_exact=True)


@pytest.mark.parametrize("adjustment", ["split", "dividend", "all"])
@pytest.mark.parametrize("timeframe", ["1week", "1hour"])
def test_adjusted_prices_are_those_of_a_read(
    make_stack: Callable[..., Stack],
    marketdata: InProcess,
    tmp_path: Path,
    adjustment: str,
    timeframe: str,
) -> None:
    stack = make_stack(at=NOW)
    stack.sandbox.source.add_split("AAPL", date(2024, 2, 7), 4.0)  # type: ignore[attr-defined]
    servers = _servers(stack)
    start = "2023-11-01" if timeframe == "1week" else "2024-02-05"
    asked: dict[str, Any] = {"start": start, "adjustment": adjustment}
    command = ("export", "AAPL", "-t", timeframe, "--start", start, "--adjustment", adjustment)
    stack.client.get_bars("MSFT", "1day", start="2023-11-01")
    refused = marketdata(*command, "--to", "no.parquet", **servers)
    assert refused.code == 3
    assert "the corporate actions of AAPL" in refused.err
    done = marketdata(*command, "--to", "a.parquet", "--fetch", **servers)
    assert done.code == 0, done.err
    frame = stack.client.get_bars("AAPL", timeframe, session="extended", **asked)
    found = read_back(tmp_path / "a.parquet").set_index("timestamp")[list(COLUMNS)]
    # Weeks are adjusted before or after they are made of days: a matter of the last digit.
    pd.testing.assert_frame_equal(found, frame, check_freq=False, rtol=1e-14)
    assert marketdata(*command, "--to", "b.parquet", **servers).code == 0  # now they are known


def _servers(stack: Stack) -> dict[str, str]:
    return {
        "MARKETDATA_BROKER": "sandbox",
        "MARKETDATA_ALPACA_URL": stack.sandbox.url,
        "MARKETDATA_ALPACA_TRADING_URL": stack.sandbox.url,
    }


# --------------------------------------------------------------------------------------- gaps


def test_gaps_are_named_and_bars_that_reach_into_them_left_out(
    marketdata: InProcess, store: PostgresStore, tmp_path: Path
) -> None:
    bars = session_bars()
    start, end = int(bars.timestamp[0]), int(bars.timestamp[-1]) + MINUTE
    hole = Span(start + 62 * MINUTE, start + 64 * MINUTE)
    left = bars.within(Span(start, hole.start))
    right = bars.within(Span(hole.end, end))
    for part, covered in ((left, Span(start, hole.start)), (right, Span(hole.end, end))):
        commit_bars(store, AAPL, part, covered)
    done = marketdata("export", "AAPL", "-t", "1min", "--to", "1.csv", "--json")
    assert done.code == 3
    (gap,) = done.objects[:-1]
    assert gap == {
        "symbol": "AAPL",
        "gap_start": "2024-03-12T14:32:00+00:00",
        "gap_end": "2024-03-12T14:34:00+00:00",
    }
    assert done.summary["rows"] == 388
    done = marketdata("export", "AAPL", "-t", "5min", "--to", "5.csv", "--json")
    assert (done.code, done.summary["rows"]) == (3, 77)  # 10:30 would lack two of its minutes
    assert "14:30:00Z" not in (tmp_path / "5.csv").read_text()


def test_a_span_asked_for_is_covered_or_not(
    marketdata: InProcess, store: PostgresStore, tmp_path: Path
) -> None:
    bars = session_bars()
    day = calendar_for(EXCHANGE, parse_clock(NOW).now_us()).midnight_of(date(2024, 3, 12))
    commit_bars(store, AAPL, bars, Span(day, day + DAY))
    command = ("export", "AAPL", "MSFT", "-t", "1min", "--start", "2024-03-12", "--end")
    done = marketdata(*command, "2024-03-13", "--to", "a.csv", "--json")
    assert (done.code, done.summary["gaps"]) == (3, ["MSFT"])
    done = marketdata(*command[:2], *command[3:], "2024-03-13", "--to", "b.csv")
    assert (done.code, done.out) == (0, "")
    done = marketdata(*command[:2], *command[3:], "2024-03-14", "--to", "c.csv")
    assert done.code == 3
    assert "1 of 1 symbols have gaps" in done.err


def test_fetching_fills_them_first(
    make_stack: Callable[..., Stack], marketdata: InProcess, tmp_path: Path
) -> None:
    stack = make_stack(at=NOW)
    servers = _servers(stack)
    command = ("export", "AAPL", "NOSUCH", "-t", "1min", "--start", "2024-03-12", "--to")
    done = marketdata(*command, "a.parquet", **servers)
    assert done.code == 3
    assert stack.calls() == 0
    done = marketdata(*command, "b.parquet", "--fetch", "--json", **servers)
    assert done.code == 3  # one of them does not exist, which fails no other
    assert list(done.summary["failed"]) == ["NOSUCH"]
    assert done.summary["gaps"] == []
    frame = stack.client.get_bars("AAPL", "1min", start="2024-03-12", session="extended")
    found = read_back(tmp_path / "b.parquet").set_index("timestamp")[list(COLUMNS)]
    pd.testing.assert_frame_equal(found, frame, check_freq=False, check_exact=True)
    regular = marketdata(
        *("export", "AAPL", "-t", "1min", "--start", "2024-03-12", "--session", "regular"),
        *("--to", "c.parquet", "--json"),
        **servers,
    )
    assert regular.summary["rows"] == 780


def test_bars_without_coverage_are_exported_and_their_time_named(
    marketdata: InProcess, store: PostgresStore
) -> None:
    bars = session_bars(count=20)
    nothing = Span(int(bars.timestamp[0]), int(bars.timestamp[0]))
    commit_bars(store, AAPL, bars, nothing)
    done = marketdata("export", "AAPL", "-t", "1min", "--to", "a.csv", "--json")
    assert (done.code, done.summary["rows"], done.summary["gaps"]) == (3, 20, ["AAPL"])


def test_bars_of_another_provider_are_asked_for_by_name(
    marketdata: InProcess, store: PostgresStore, tmp_path: Path
) -> None:
    other = SeriesKey("vendor", "x", "AAPL", Timeframe.MIN_1)
    commit_bars(store, other, session_bars(seed=9))
    split = CorporateAction("AAPL", ActionKind.SPLIT, 1, new=2.0, old=1.0)
    store.record("vendor", {"AAPL": [split]}, Span(0, 2**51), 1)
    assert marketdata("export", "AAPL", "-t", "1min", "--to", "a.csv").code == 3
    command = ("export", "AAPL", "-t", "1hour", "--provider", "vendor", "--to", "b.csv")
    done = marketdata(*command, "--adjustment", "split", "--json")
    assert (done.code, done.summary["rows"]) == (0, 7)
    commit_bars(store, other._replace(feed="y"), session_bars(seed=8))
    refused = marketdata(*command, "--force")
    assert refused.code == 2
    assert "the feeds x, y" in refused.err
    assert marketdata(*command, "--force", "--feed", "y").code == 0
    assert marketdata("export", "AAPL", "--provider", "nobody", "--to", "c.csv").code == 2


# -------------------------------------------------------------------------------- whole or not


def test_nothing_is_replaced_unasked(
    marketdata: InProcess, store: PostgresStore, tmp_path: Path
) -> None:
    commit_bars(store, AAPL, session_bars(count=5))
    (tmp_path / "a.csv").write_text("mine")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine").write_text("mine")
    for to in ("a.csv", "d/"):
        command = ("export", "AAPL", "-t", "1min", "--to", to, "--format", "csv")
        refused = marketdata(*command)
        assert refused.code == 2
        assert "--force" in refused.err
        assert marketdata(*command, "--force").code == 0
    assert (tmp_path / "a.csv").read_text().startswith("symbol,timestamp")
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["symbol=AAPL"]
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("partitioned", [False, True])
@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ValueError])
def test_an_interrupted_export_leaves_nothing_and_what_was_there(
    tmp_path: Path, partitioned: bool, interruption: type[BaseException]
) -> None:
    path = tmp_path / "bars"
    for before in (False, True):
        if before and partitioned:
            path.mkdir()
            (path / "mine").write_text("mine")
        elif before:
            path.write_text("mine")
        with pytest.raises(interruption):
            _interrupted(path, partitioned, interruption)
        assert hidden(tmp_path) == []
        assert path.exists() == before
    kept = path / "mine" if partitioned else path
    assert kept.read_text() == "mine"


def _interrupted(path: Path, partitioned: bool, interruption: type[BaseException]) -> None:
    with write_bars(path, "parquet", {}, partitioned=partitioned, replace=True) as file:
        file.write("AAPL", session_bars(count=5))
        raise interruption


def test_somebody_elses_file_made_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "bars.csv"
    with pytest.raises(RequestError, match="is there already"), write_bars(path, "csv", {}):
        path.write_text("theirs")
    assert path.read_text() == "theirs"
    assert hidden(tmp_path) == []


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_no_file(
    marketdata: InProcess,
    store: PostgresStore,
    database_url: str,
    tmp_path: Path,
    sent: signal.Signals,
    code: int,
) -> None:
    commit_bars(store, AAPL, session_bars(count=5))
    line = CommandLine(marketdata.directory)
    line.environment = marketdata.environment
    with psycopg.connect(database_url) as other:
        other.execute("LOCK TABLE marketdata.series IN ACCESS EXCLUSIVE MODE")
        process = line.start("export", "AAPL", "-t", "1min", "--to", "a.parquet")
        until = time.monotonic() + 60
        while not hidden(tmp_path) and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(sent)
        _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert hidden(tmp_path) == []
    assert not (tmp_path / "a.parquet").exists()


def test_a_place_that_cannot_be_written_to_is_said(
    marketdata: InProcess, store: PostgresStore, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    done = marketdata("export", "AAPL", "-t", "1min", "--to", "file/a.csv")
    assert done.code == 2
    assert "cannot write file/a.csv" in done.err


# ----------------------------------------------------------------------------- wrong arguments


WRONG: Final = [
    (("AAPL",), "Missing option '--to'"),
    (("--to", "a.csv"), "no symbols given"),
    (("AAPL", "--all", "--to", "a.csv"), "both symbols and --all"),
    (("--all", "--to", "a.csv"), "nothing of mine/mine is stored"),
    (("not one", "--to", "a.csv"), "2 symbols"),
    (("AAPL", "--to", "a"), "does not say its format"),
    (("AAPL", "--to", "a", "--format", "xls"), "no format is called 'xls'"),
    (("AAPL", "--to", "-", "--format", "parquet"), "stdout takes one CSV"),
    (("AAPL", "--to", "-", "--json"), "both want stdout"),
    (("AAPL", "--to", "a.csv", "--end", "2024-03-01"), "has no beginning"),
    (("AAPL", "--to", "a.csv", "--fetch"), "has no beginning"),
    (("AAPL", "--to", "a.csv", "--session", "night"), "session='night' is not known"),
    (("AAPL", "--to", "a.csv", "--adjustment", "total"), "adjustment='total' is not known"),
    (("AAPL", "--to", "a.csv", "-t", "2min"), "unknown timeframe"),
]


def test_wrong_arguments(marketdata: InProcess, store: PostgresStore, tmp_path: Path) -> None:
    for arguments, said in WRONG:
        done = marketdata("export", *arguments)
        assert done.code == 2, arguments
        assert said in done.err, arguments
    assert [p for p in tmp_path.iterdir() if p.suffix == ".csv"] == []


def test_a_pipe_that_closes_early_is_no_error(marketdata: InProcess, store: PostgresStore) -> None:
    commit_bars(store, AAPL, session_bars())
    line = CommandLine(marketdata.directory)
    line.environment = marketdata.environment
    process = line.start("export", "AAPL", "-t", "1min", "--to", "-")
    assert isinstance(process.stdout, io.TextIOWrapper)
    assert process.stdout.readline().startswith("symbol,")
    process.stdout.close()
    assert process.wait(60) == 0
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
