"""``marketdata indicators`` on real servers."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest

from marketdata.kept_indicators import KEPT_COLUMNS
from marketdata.store import PostgresStore
from tests.command_line import CommandLine, InProcess

NOW = "2024-03-13T15:00:30-04:00"


@pytest.fixture
def marketdata(
    tmp_path: Path,
    database_url: str,
    redis_db: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> InProcess:
    with PostgresStore(database_url) as store:
        store.migrate()
    line = CommandLine(
        tmp_path,
        database_url=database_url,
        redis_url=redis_db,
        home=str(tmp_path / "home"),
        broker="sandbox",
        clock=NOW,
    )
    return InProcess(line, monkeypatch, capsys)


def test_a_table_json_csv_and_parquet(marketdata: InProcess, tmp_path: Path) -> None:
    seen = marketdata("indicators", "AAPL,KO", "-i", "rsi_14,macd_12_26_9", "-n", "3")
    assert seen.code == 0
    assert "SIMULATED AAPL KO 1day" in seen.out
    assert "macd_12_26_9_signal" in seen.out
    assert "split-adjusted" in seen.err
    seen = marketdata("indicators", "AAPL", "-n", "3", "--json")
    rows, summary = seen.objects[:-1], seen.summary
    assert [*rows[0]] == ["symbol", "timestamp", *KEPT_COLUMNS]
    assert summary["rows"] == len(rows) == 3
    assert summary["provenance"]["indicators"].startswith("rsi_14 rsi_9")
    seen = marketdata("indicators", "AAPL", "-n", "3", "--bars", "--csv", "-")
    frame = pd.read_csv(io.StringIO(seen.out))
    assert [*frame.columns][:6] == ["symbol", "timestamp", "open", "high", "low", "close"]
    assert frame["rsi_14"].tolist() == [row["rsi_14"] for row in rows]
    path = tmp_path / "values.parquet"
    seen = marketdata("indicators", "AAPL", "-i", "rsi_14", "-n", "3", "--parquet", str(path))
    assert seen.code == 0
    assert pd.read_parquet(path)["rsi_14"].tolist() == frame["rsi_14"].tolist()


def test_what_does_not_fit_is_named(marketdata: InProcess) -> None:
    seen = marketdata("indicators", "AAPL", "-n", "2", COLUMNS="80")
    assert max(map(len, seen.out.splitlines()[:5])) <= 80
    assert "not shown for lack of room" in seen.out
    assert "bbands_20_2_lower" in seen.out


def test_the_catalogue_is_listed(marketdata: InProcess) -> None:
    seen = marketdata("indicators", "--list")
    assert seen.code == 0
    assert "relative_volume" in seen.out
    names = {row["name"] for row in marketdata("indicators", "--list", "--json").objects[:-1]}
    assert {"rsi", "macd", "vwap"} <= names


def test_mistakes_say_what_to_do(marketdata: InProcess) -> None:
    seen = marketdata("indicators", "AAPL", "-i", "rsj_14")
    assert seen.code == 2
    assert "rsi" in seen.err
    assert marketdata("indicators").code == 2
    assert "--list" in marketdata("indicators").err
