"""``marketdata import``: tables of any shape, queries, and command lines that cannot be right."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Final

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from marketdata.store import PostgresStore
from marketdata.types import MINUTE
from tests.command_line import InProcess
from tests.own_bars import (
    DAYS,
    HEAD,
    MINUTES,
    csv_file,
    marketdata,
    minute_rows,
    moment,
    store,
    stored,
)

__all__ = ["marketdata", "store"]


def test_times_without_a_zone_need_one(
    marketdata: InProcess, store: PostgresStore, tmp_path: Path
) -> None:
    path = csv_file(tmp_path / "a.csv", ["AAPL,2024-03-12 09:30:00,1,1,1,1,1"])
    refused = marketdata("import", str(path), *MINUTES)
    assert refused.code == 2
    assert "--tz America/New_York" in refused.err
    assert store.series() == []
    assert marketdata("import", str(path), *MINUTES, "--tz", "America/New_York").code == 0
    assert stored(store, "AAPL")[1].timestamp.tolist() == [moment("2024-03-12T13:30Z")]
    assert marketdata("import", str(path), *MINUTES, "--tz", "Mars").code == 2


TIMES: Final = [
    ("2024-03-12T09:30:00-04:00", ()),
    ("2024-03-12 13:30:00+00", ()),
    ("1710250200", ("--time-format", "epoch_s")),
    ("1710250200000", ("--time-format", "epoch_ms")),
    ("03/12/2024 09:30", ("--time-format", "%m/%d/%Y %H:%M", "--tz", "America/New_York")),
    ("03/12/2024 13:30 +0000", ("--time-format", "%m/%d/%Y %H:%M %z")),
    ("2024-03-12T09:31:00-04:00", ("--label", "close")),
]
DATES: Final = [
    ("2024-03-12", ()),
    ("2024-03-12T00:00:00-04:00", ()),
    ("2024-03-12T00:00:00Z", ("--dates",)),
    ("20240312", ("--time-format", "%Y%m%d")),
    ("2024-03-12T16:00:00-04:00", ("--label", "close")),
]


def test_times_however_written(marketdata: InProcess, store: PostgresStore, tmp_path: Path) -> None:
    for basis, spellings, label in (
        (MINUTES, TIMES, "2024-03-12T09:30-04:00"),
        (DAYS, DATES, "2024-03-12T00:00-04:00"),  # a day is labelled by its exchange midnight
    ):
        for number, (cell, options) in enumerate(spellings):
            path = csv_file(tmp_path / "a.csv", [f"AAPL,{cell},1,1,1,1,1"])
            done = marketdata("import", str(path), *basis, *options, "--provider", f"p{number}")
            assert done.code == 0, (cell, done.err)
            _, bars = stored(store, "AAPL", basis[1], f"p{number}")
            assert bars.timestamp.tolist() == [moment(label)], cell


def test_columns_by_other_names_and_one_symbol_for_all(
    marketdata: InProcess, store: PostgresStore, tmp_path: Path
) -> None:
    path = csv_file(
        tmp_path / "a.csv",
        ["2024-03-12;09:30;1.5;2;1;1.75;10;x", "2024-03-12;09:31;1.5;2;1;1.75;10;x"],
        "Date;Time;o;h;l;Last Price;v;comment",
    )
    names = "timestamp=date+time,open=o,high=h,low=l,close=Last Price,volume=v"
    done = marketdata(
        *("import", str(path), *MINUTES, "--columns", names, "--symbol", "brk-b"),
        *("--delimiter", ";", "--tz", "America/New_York"),
    )
    assert done.code == 0, done.err
    _, bars = stored(store, "BRK.B")
    assert bars.values[:5, 1].tolist() == [1.5, 2.0, 1.0, 1.75, 10.0]
    assert bars.timestamp[1] - bars.timestamp[0] == MINUTE


def test_parquet_of_any_types(marketdata: InProcess, store: PostgresStore, tmp_path: Path) -> None:
    stamps = pa.array([1_710_250_200_000], pa.timestamp("ms", "America/New_York"))
    table = pa.table(
        {
            "Symbol": pa.array(["AAPL"]).dictionary_encode(),
            "Timestamp": stamps,
            "Open": pa.array([Decimal("0.1")], pa.decimal128(12, 4)),
            "High": pa.array([1], pa.int32()),
            "Low": pa.array(["0.1"], pa.large_string()),
            "Close": pa.array([0.5], pa.float32()),
            "Volume": pa.array([2**40], pa.int64()),
            "vwap": pa.array([None], pa.float64()),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    done = marketdata("import", str(tmp_path / "a.parquet"), *MINUTES)
    assert done.code == 0, done.err
    _, bars = stored(store, "AAPL")
    assert bars.timestamp.tolist() == [moment("2024-03-12T13:30Z")]
    assert bars.values[:5, 0].tolist() == [0.1, 1.0, 0.1, 0.5, float(2**40)]
    assert np.isnan(bars.values[5:, 0]).all()


def test_a_query_on_a_table_of_ones_own(
    marketdata: InProcess, store: PostgresStore, database_url: str
) -> None:
    with psycopg.connect(database_url, autocommit=True) as own:
        own.execute(
            "CREATE TABLE public.prices (ticker text, at timestamptz, o float8, h float8, l float8,"
            " c numeric, v bigint)"
        )
        own.execute(
            "INSERT INTO public.prices VALUES ('AAPL', '2024-03-12 09:30-04', 0.1, 0.30000000000000004,"
            " 0.1, 0.2, 7), ('NA', '2024-03-12 09:30-04', 1, 2, 1, 1.5, 7), (NULL, NULL, 1, 1, 1, 1, 1)"
        )
    query = "SELECT ticker AS symbol, at AS timestamp, o AS open, h AS high, l AS low, c AS close, "
    query += "v AS volume FROM public.prices;"
    command = ("import", "--from-url", database_url, *MINUTES, "--json", "--query")
    done = marketdata(*command, query)
    assert (done.code, done.summary["kept"], done.summary["rejected_symbol"]) == (3, 2, 1)
    _, bars = stored(store, "AAPL")
    assert bars.timestamp.tolist() == [moment("2024-03-12T13:30Z")]
    assert bars.values[:5, 0].tolist() == [0.1, 0.30000000000000004, 0.1, 0.2, 7.0]
    assert len(stored(store, "NA")[1]) == 1
    for wrong in ("SELECT nothing", "DELETE FROM public.prices RETURNING *", "SELECT 1; SELECT 2"):
        refused = marketdata(*command, wrong)
        assert refused.code == 2, wrong
        assert "the query cannot be run" in refused.err
    with psycopg.connect(database_url) as own:
        assert own.execute("SELECT count(*) FROM public.prices").fetchone() == (3,)


def test_a_database_that_does_not_answer_is_unavailable_and_keeps_its_secret(
    marketdata: InProcess,
) -> None:
    url = "postgresql://somebody:a-secret@127.0.0.1:1/x"
    done = marketdata("import", "--query", "SELECT 1", "--from-url", url, *MINUTES)
    assert done.code == 69
    assert "a-secret" not in done.err + done.out


# ----------------------------------------------------------------------------- wrong arguments


WRONG: Final = [
    ((), "nothing to import"),
    (("missing.csv",), "no such file: missing.csv"),
    (("notes.txt",), "neither CSV nor Parquet"),
    (("empty.csv",), "empty.csv is empty"),
    (("torn.parquet",), "torn.parquet cannot be read"),
    (("folder",), "no CSV or Parquet file is in folder"),
    (("short.csv",), "no column 'volume'"),
    (("twice.csv",), "more than one column 'open'"),
    (("a.csv", "--query", "SELECT 1"), "together"),
    (("--query", "SELECT 1"), "belong together"),
    (("a.csv", "--covers", "2024"), "is not START:END"),
    (("a.csv", "--covers", "2024-03-02:2024-03-01"), "is empty"),
    (("a.csv", "--columns", "open"), "OURS=THEIRS"),
    (("a.csv", "--columns", "opening=o"), "OURS=THEIRS"),
    (("a.csv", "--columns", "open=o"), "no column 'o'"),
    (("a.csv", "--symbol", "not one"), "2 symbols"),
    (("a.csv", "--dates"), "--dates leaves nothing"),
    (("a.csv", "--label", "middle"), "label='middle' is not known"),
    (("a.csv", "--delimiter", ""), "is not one character"),
    (("a.csv", "--splits", "s.csv"), "raw prices were not divided"),
    (("counts.parquet",), "the times of counts.parquet are numbers"),
]


def test_wrong_arguments(marketdata: InProcess, store: PostgresStore) -> None:
    at = marketdata.directory
    (at / "folder").mkdir()
    (at / "empty.csv").write_text("")
    (at / "notes.txt").write_text("x")
    (at / "torn.parquet").write_bytes(b"PAR1 torn")
    csv_file(at / "short.csv", [], "symbol,timestamp,open,high,low,close")
    csv_file(at / "twice.csv", [], HEAD.replace("open", "Open") + ",oPEN")
    csv_file(at / "a.csv", minute_rows(2))
    table = pa.table({name: [1] for name in HEAD.split(",")[1:]})
    pq.write_table(table.append_column("symbol", pa.array(["AAPL"])), at / "counts.parquet")
    for arguments, said in WRONG:
        done = marketdata("import", *arguments, *MINUTES)
        assert (done.code, done.out) == (2, ""), arguments
        assert said in done.err, arguments
    assert store.series() == []


@pytest.mark.parametrize("left_out", ["--basis", "--timeframe"])
def test_what_cannot_be_guessed_must_be_stated(marketdata: InProcess, left_out: str) -> None:
    words = list(MINUTES)
    at = words.index(left_out)
    del words[at : at + 2]
    done = marketdata("import", "a.csv", *words)
    assert done.code == 2
    assert left_out in done.err


def test_a_file_of_names_alone_imports_nothing(marketdata: InProcess, tmp_path: Path) -> None:
    done = marketdata("import", str(csv_file(tmp_path / "a.csv", [])), *MINUTES, "--json")
    assert (done.code, done.summary["rows"]) == (0, 0)
