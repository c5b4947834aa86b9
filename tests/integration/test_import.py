"""``marketdata import``: what is kept, what is not, and what is never taken for granted."""

from __future__ import annotations

import csv
import gzip
import random
import signal
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from marketdata import importing
from marketdata.clock import from_micros
from marketdata.sandbox.files import FileMarket
from marketdata.sandbox.source import Action
from marketdata.store import PostgresStore
from marketdata.types import MINUTE, VOLUME, SeriesKey, Timeframe
from tests.command_line import CommandLine, InProcess
from tests.own_bars import (
    DAYS,
    MINUTES,
    csv_file,
    marketdata,
    minute_rows,
    moment,
    store,
    stored,
)
from tests.shared_data import SHARED, needs_shared_data
from tests.stack import Stack

__all__ = ["marketdata", "store"]

# --------------------------------------------------------------------------------- real files


@needs_shared_data
def test_real_minutes_are_stored_bit_for_bit_and_again_change_nothing(
    marketdata: InProcess, store: PostgresStore
) -> None:
    path = SHARED / "minute" / "us24_2019-02.csv.gz"
    covers = ("--covers", "2019-02-11:2019-02-16")
    done = marketdata("import", str(path), *MINUTES, *covers, "--json")
    assert (done.code, done.summary["rows"], done.summary["symbols"]) == (0, 43164, 24)
    with gzip.open(path, "rt") as file:
        rows = [r for r in csv.DictReader(file) if r["symbol"] == "AAPL"]
    state, bars = stored(store, "AAPL")
    assert bars.timestamp.tolist() == [moment(r["timestamp"]) for r in rows]
    for column, name in enumerate(("open", "high", "low", "close", "volume")):
        assert bars.values[column].tolist() == [float(r[name]) for r in rows]
    assert len(state.coverage) == 1
    again = marketdata("import", str(path), *MINUTES, *covers, "--json")
    assert again.summary["kept"] == 43164
    after, same = stored(store, "AAPL")
    assert (after.revision, after.coverage) == (state.revision, state.coverage)
    assert same.values.tobytes() == bars.values.tobytes()
    read = marketdata(
        "bars", "AAPL", "-t", "1min", "--start", "2019-02-11", "--end", "2019-02-16", "--json"
    )
    assert read.code == 0
    assert read.summary["rows"] == len(bars)


@needs_shared_data
def test_real_dirt_is_counted_shown_and_costs_its_own_rows_only(
    marketdata: InProcess, store: PostgresStore
) -> None:
    path = SHARED / "daily" / "us88_2012-2017.csv.gz"
    done = marketdata("import", str(path), *DAYS, "--json")
    assert done.code == 3
    summary = done.summary
    assert (summary["rows"], summary["kept"], summary["rejected_price"]) == (108592, 108589, 3)
    shown = next(o for o in done.objects if o.get("rejected") == "price")
    assert [text.split()[3] for text in shown["examples"]] == ["PTR", "REX", "SNP"]
    _, bars = stored(store, "PTR", "1day")
    assert moment("2016-06-29T00:00:00-04:00") not in bars.timestamp
    assert len(bars) > 1000
    assert (stored(store, "AAPL", "1day")[1].values[VOLUME] > 0).all()


# ------------------------------------------------------------------------------- what is kept


def test_a_dry_run_reports_and_stores_nothing(
    marketdata: InProcess, store: PostgresStore, tmp_path: Path
) -> None:
    path = csv_file(tmp_path / "a.csv", [*minute_rows(), "AAPL,2024-03-12T13:30:30Z,1,1,1,1,1"])
    done = marketdata(
        "import", str(path), *MINUTES, "--dry-run", "--covers", "2024-03-12:2024-03-13"
    )
    assert done.code == 3
    assert "would store 30 of 31 rows as 1min bars of import/import: 1 symbols" in done.out
    assert "off_grid" in done.out
    assert "a.csv row 31: AAPL 2024-03-12T13:30:30+00:00 1 1 1 1 1" in done.out
    assert store.series() == []
    assert store.recorded() is None


def test_every_kind_of_bad_row_is_left_out_and_named(
    marketdata: InProcess, store: PostgresStore, tmp_path: Path
) -> None:
    bad = {
        "symbol": "not a symbol,2024-03-12T14:30:00Z,1,1,1,1,1",
        "unreadable": "AAPL,yesterday,1,1,1,1,1",
        "out_of_window": "AAPL,1970-01-05T14:30:00Z,1,1,1,1,1",
        "off_grid": "AAPL,2024-03-12T14:30:01Z,1,1,1,1,1",
        "forming": "AAPL,2024-03-14T14:30:00Z,1,1,1,1,1",
        "price": "AAPL,2024-03-12T20:01:00Z,1,1,0,one,1",
        "range": "AAPL,2024-03-12T20:02:00Z,1,1,2,1,1",
        "volume": "AAPL,2024-03-12T20:03:00Z,1,1,1,1,-1",
        "malformed": "AAPL,2024-03-12T20:04:00Z,1,1",
    }
    rows = minute_rows()
    rows[5:5] = bad.values()
    rows.append(rows[0].rsplit(",", 1)[0] + ",777.0")
    path = csv_file(tmp_path / "dirty.csv", rows)
    done = marketdata("import", str(path), *MINUTES, "--json")
    assert done.code == 3
    counts = {o["rejected"]: o["rows"] for o in done.objects[:-1]}
    assert counts == {**dict.fromkeys(bad, 1), "duplicate": 1}
    assert (done.summary["rows"], done.summary["kept"]) == (40, 30)
    examples = {o["rejected"]: o["examples"] for o in done.objects[:-1]}
    assert examples["off_grid"] == ["dirty.csv row 9: AAPL 2024-03-12T14:30:01+00:00 1 1 1 1 1"]
    assert all(len(found) == 1 for found in examples.values())
    _, bars = stored(store, "AAPL")
    assert len(bars) == 30
    assert bars.values[VOLUME, 0] == 777.0  # of two rows of one time the later counts


def test_order_and_size_of_the_rounds_make_no_difference(
    marketdata: InProcess, store: PostgresStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    symbols = ["AAPL", "MSFT", "BRK-B"]
    rows = [row for symbol in symbols for row in minute_rows(200, symbol)]
    assert marketdata("import", str(csv_file(tmp_path / "a.csv", rows)), *MINUTES).code == 0
    random.Random(1).shuffle(rows)
    late = [row.rsplit(",", 1)[0] + ",5.0" for row in rows[:20]]
    mixed = csv_file(tmp_path / "b.csv", [*rows, *late])
    monkeypatch.setattr(importing, "WAITING_ROWS", 150)
    monkeypatch.setattr("marketdata.files.reading._BLOCK_BYTES", 4000)
    done = marketdata("import", str(mixed), *MINUTES, "--provider", "mixed", "--json")
    assert done.summary["symbols"] == 3
    changed = {(r.split(",")[0], moment(r.split(",")[1])) for r in late}
    for symbol in symbols:
        _, bars = stored(store, symbol.replace("-", "."))
        _, other = stored(store, symbol.replace("-", "."), provider="mixed")
        assert bars.timestamp.tolist() == other.timestamp.tolist()
        at = np.array([(symbol, t) in changed for t in bars.timestamp.tolist()])
        assert at.any()
        bars.values[VOLUME, at] = 5.0
        assert other.values.tobytes() == bars.values.tobytes()


def test_an_interrupted_load_keeps_whole_commits_and_a_rerun_completes_it(
    marketdata: InProcess, store: PostgresStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "WAITING_ROWS", 150)
    monkeypatch.setattr("marketdata.files.reading._BLOCK_BYTES", 4000)
    rows = [row for symbol in ("AAPL", "MSFT") for row in minute_rows(3000, symbol, "2024-03-04")]
    path = csv_file(tmp_path / "a.csv", rows)
    packed = gzip.compress(path.read_bytes())
    broken = tmp_path / "b.csv.gz"
    broken.write_bytes(packed[: len(packed) // 10 * 9])  # the disk was full
    stopped = marketdata("import", str(broken), *MINUTES, "--covers", "2024-03-04:2024-03-07")
    assert stopped.code == 2
    assert "b.csv.gz cannot be read" in stopped.err
    state, bars = stored(store, "AAPL")
    assert 0 < len(bars) <= 3000
    assert state.coverage == []
    assert marketdata("import", str(path), *MINUTES, "--covers", "2024-03-04:2024-03-07").code == 0
    for symbol in ("AAPL", "MSFT"):
        state, bars = stored(store, symbol)
        assert len(bars) == 3000
        assert len(state.coverage) == 1


def test_ctrl_c_ends_a_load_and_stores_no_part_of_a_commit(
    marketdata: InProcess, store: PostgresStore, database_url: str, tmp_path: Path
) -> None:
    path = csv_file(tmp_path / "a.csv", minute_rows())
    line = CommandLine(marketdata.directory)
    line.environment = marketdata.environment
    with psycopg.connect(database_url) as other:
        other.execute("LOCK TABLE marketdata.series IN ACCESS EXCLUSIVE MODE")
        process = line.start("import", str(path), *MINUTES)
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        until = time.monotonic() + 60
        while other.execute(waiting).fetchone() == (0,) and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "interrupted" in said
    assert store.series() == []


# ----------------------------------------------------------------------------------- coverage


def test_nothing_is_covered_unless_it_is_stated(
    marketdata: InProcess, store: PostgresStore, tmp_path: Path
) -> None:
    path = csv_file(tmp_path / "a.csv", minute_rows())
    done = marketdata("import", str(path), *MINUTES)
    assert "nothing is recorded as covered" in done.err
    state, bars = stored(store, "AAPL")
    assert (state.coverage, len(bars)) == ([], 30)
    read = ("bars", "AAPL", "-t", "1min", "--start", "2024-03-12", "--end", "2024-03-13")
    refused = marketdata(*read)
    assert refused.code == 3  # nobody can be asked
    done = marketdata("import", str(path), *MINUTES, "--covers", "2024-03-12:2024-03-13")
    assert "1 series covered" in done.out
    answered = marketdata(*read, "--json")
    assert (answered.code, answered.summary["rows"]) == (0, 30)


def test_what_is_stated_is_never_covered_beyond_what_has_closed(
    marketdata: InProcess, store: PostgresStore, tmp_path: Path
) -> None:
    path = csv_file(tmp_path / "a.csv", minute_rows())
    marketdata(
        *("import", str(path), *MINUTES, "--covers", "2024-03-12:2024-06-01"),
        MARKETDATA_CLOCK="2024-03-12T11:00:30-04:00",
    )
    state, _ = stored(store, "AAPL")
    end = moment("2024-03-12T11:00:00-04:00")
    assert end - 5 * MINUTE < state.coverage[-1].end <= end


def test_a_symbol_of_which_nothing_could_be_kept_is_not_covered(
    marketdata: InProcess, store: PostgresStore, tmp_path: Path
) -> None:
    """Midnights of another zone make no daily bars: the symbol is misread, not quiet."""
    rows = ["AAPL,2024-03-12,1,2,1,2,100", "KO,2024-03-12T00:00:00Z,1,2,1,2,100"]
    for row in rows:
        path = csv_file(tmp_path / f"{row[:2]}.csv", [row])
        done = marketdata("import", str(path), *DAYS, "--covers", "2024-03-11:2024-03-13")
    assert done.code == 3
    assert "--dates" in done.err
    assert stored(store, "AAPL", "1day")[0].coverage
    assert not stored(store, "KO", "1day")[0].coverage
    assert marketdata("import", str(path), *DAYS, "--dates").code == 0
    assert len(stored(store, "KO", "1day")[1]) == 1


def test_instants_in_covers_hold_colons(
    marketdata: InProcess, store: PostgresStore, tmp_path: Path
) -> None:
    path = csv_file(tmp_path / "a.csv", minute_rows())
    span = "2024-03-12T09:30:00-04:00:2024-03-12T10:00-04:00"
    assert marketdata("import", str(path), *MINUTES, "--covers", span).code == 0
    (covered,) = stored(store, "AAPL")[0].coverage
    assert covered == (moment("2024-03-12T09:30-04:00"), moment("2024-03-12T10:00-04:00"))


# --------------------------------------------------------------------------------- whose bars


def test_bars_of_a_file_do_not_pass_for_a_brokers_by_accident(
    marketdata: InProcess, store: PostgresStore, tmp_path: Path
) -> None:
    path = csv_file(tmp_path / "a.csv", minute_rows())
    for name in ("alpaca", "Yahoo", "sandbox"):
        refused = marketdata("import", str(path), *MINUTES, "--provider", name)
        assert (refused.code, store.series()) == (2, [])
        assert "--as-broker" in refused.err
    assert marketdata("import", str(path), *MINUTES, "--as-broker").code == 2
    assert marketdata("import", str(path), *MINUTES, "--provider", "a b").code == 2
    done = marketdata("import", str(path), *MINUTES, "--provider", "alpaca", "--as-broker")
    assert done.code == 0
    assert store.series() == [SeriesKey("alpaca", "sip", "AAPL", Timeframe.MIN_1)]


def test_a_database_about_something_else_says_so(
    marketdata: InProcess, store: PostgresStore, tmp_path: Path
) -> None:
    store.adopt("alpaca", "sip")
    done = marketdata("import", str(csv_file(tmp_path / "a.csv", minute_rows())), *MINUTES)
    assert "this database is about alpaca/sip" in done.err
    assert store.recorded() == ("alpaca", "sip")


def test_the_brokers_own_bars_are_read_without_asking_it_and_its_later_word_counts(
    make_stack: Callable[..., Stack], marketdata: InProcess, tmp_path: Path
) -> None:
    stack = make_stack(at="2024-03-13T20:30:00-04:00")
    servers = {
        "MARKETDATA_BROKER": "sandbox",
        "MARKETDATA_ALPACA_URL": stack.sandbox.url,
        "MARKETDATA_ALPACA_TRADING_URL": stack.sandbox.url,
    }
    theirs = stack.client.get_bars(
        "MSFT", "1min", start="2024-03-12", end="2024-03-13", session="extended"
    )
    frame = theirs.reset_index().assign(symbol="AAPL")
    frame.to_parquet(tmp_path / "a.parquet")
    stack.forget_calls()
    command = ("import", str(tmp_path / "a.parquet"), *MINUTES, "--provider", "sandbox")
    asked: dict[str, Any] = {
        "start": "2024-03-12", "end": "2024-03-13", "session": "extended",
    }  # fmt: skip
    assert (
        marketdata(*command, "--as-broker", "--covers", "2024-03-12:2024-03-13", **servers).code
        == 0
    )
    found = stack.client.get_bars("AAPL", "1min", **asked)
    assert stack.calls() == 0
    np.testing.assert_array_equal(found.to_numpy(), theirs.to_numpy())
    # Uncovered bars give way to what the broker itself says.
    frame.assign(symbol="NVDA").to_parquet(tmp_path / "a.parquet")
    assert marketdata(*command, "--as-broker", **servers).code == 0
    stack.clock.advance(minutes=1)
    found = stack.client.get_bars("NVDA", "1min", **asked)
    assert stack.calls() > 0
    fresh = {row[0]: row[1:] for row in found.itertuples()}
    span = slice("2024-03-12T13:30Z", "2024-03-12T19:59Z")
    assert not np.array_equal(found.loc[span, "close"], theirs.loc[span, "close"])
    assert len(fresh) >= 390
    # What is imported afterwards replaces it, also where the clock stands still.
    assert (
        marketdata(*command, "--as-broker", **servers, MARKETDATA_CLOCK=stack_time(stack)).code == 0
    )
    found = stack.client.get_bars("NVDA", "1min", **asked)
    np.testing.assert_array_equal(found.loc[span, "close"], theirs.loc[span, "close"])


def stack_time(stack: Stack) -> str:
    return from_micros(stack.clock.now_us()).isoformat()


# ------------------------------------------------------------------------------------- basis


def test_divided_prices_are_multiplied_back_by_the_splits_given(
    marketdata: InProcess, store: PostgresStore, tmp_path: Path
) -> None:
    days = ["2024-03-05", "2024-03-06", "2024-03-07", "2024-03-08"]
    rows = [f"AAPL,{day},25.125,25.5,25.0,25.25,4000" for day in days]
    path = csv_file(tmp_path / "a.csv", rows)
    splits = csv_file(tmp_path / "s.csv", ["AAPL,2024-03-07,4,1"], "symbol,ex_date,new,old")
    command = ("import", str(path), "--timeframe", "1day", "--basis", "split")
    done = marketdata(*command, "--splits", str(splits))
    assert done.code == 0
    assert "2 multiplied back" in done.out
    _, bars = stored(store, "AAPL", "1day")
    assert bars.values[0].tolist() == [100.5, 100.5, 25.125, 25.125]
    assert bars.values[VOLUME].tolist() == [1000.0, 1000.0, 4000.0, 4000.0]
    # Divided before the second split was known: that one is not in them.
    splits.write_text("symbol,ex_date,new,old\nAAPL,2024-03-07,4,1\nAAPL,2024-03-12,10,1\n")
    done = marketdata(
        *command, "--splits", str(splits), "--adjusted-on", "2024-03-10", "--provider", "b"
    )
    assert stored(store, "AAPL", "1day", "b")[1].values.tobytes() == bars.values.tobytes()


def test_divided_prices_without_known_splits_are_refused_whole(
    marketdata: InProcess, store: PostgresStore, tmp_path: Path
) -> None:
    path = csv_file(tmp_path / "a.csv", ["AAPL,2024-03-05,25,25,25,25,4000"])
    refused = marketdata(
        *("import", str(path), "--timeframe", "1day", "--basis", "split"),
        MARKETDATA_BROKER="none",
    )
    assert refused.code == 3
    assert "--splits FILE" in refused.err
    assert store.series() == []


def test_prices_that_contradict_their_split_leave_their_symbol_out(
    marketdata: InProcess, store: PostgresStore, tmp_path: Path
) -> None:
    rows = [
        "AAPL,2024-03-06,100,101,99,100,4000", "AAPL,2024-03-07,25,25.5,24,25,4000",
        "MSFT,2024-03-06,100,101,99,100,4000", "MSFT,2024-03-07,100,101,99,100,4000",
    ]  # fmt: skip
    splits = csv_file(tmp_path / "s.csv", ["AAPL,2024-03-07,4,1"], "symbol,ex_date,new,old")
    done = marketdata(
        *("import", str(csv_file(tmp_path / "a.csv", rows)), "--timeframe", "1day"),
        *(
            "--basis",
            "split",
            "--splits",
            str(splits),
            "--covers",
            "2024-03-05:2024-03-08",
            "--json",
        ),
    )
    assert done.code == 3
    assert "as if they were as traded" in done.summary["failed"]["AAPL"]
    assert [key.symbol for key in store.series()] == ["MSFT"]


def test_the_brokers_splits_serve_where_it_can_be_asked(
    make_stack: Callable[..., Stack], marketdata: InProcess, store: PostgresStore, tmp_path: Path
) -> None:
    market = FileMarket(csv_file(tmp_path / "m.csv", ["AAPL,2024-03-05T05:00:00Z,9,9,9,9,9"]))
    market.add_action(Action("AAPL", datetime(2024, 3, 7).date(), new=4.0))
    stack = make_stack(at="2024-03-13T20:30:00-04:00", source=market)
    path = csv_file(tmp_path / "a.csv", ["AAPL,2024-03-05,25.125,26,25,25.25,4000"])
    done = marketdata(
        *("import", str(path), "--timeframe", "1day", "--basis", "split"),
        MARKETDATA_BROKER="sandbox",
        MARKETDATA_ALPACA_URL=stack.sandbox.url,
        MARKETDATA_ALPACA_TRADING_URL=stack.sandbox.url,
    )
    assert done.code == 0, done.err
    assert stored(store, "AAPL", "1day")[1].values[0].tolist() == [100.5]
