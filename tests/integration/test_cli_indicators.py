"""``marketdata indicators`` on real servers."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd

from marketdata.kept_indicators import KEPT_COLUMNS
from tests.command_line import InProcess, empty, marketdata

__all__ = ["empty", "marketdata"]


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


def test_of_many_rows_each_symbol_shows_its_newest(marketdata: InProcess) -> None:
    for command in (("bars",), ("indicators", "-i", "sma_10")):
        seen = marketdata(*command, "AAPL", "KO", "-n", "30")
        table = [line.split()[0] for line in seen.out.splitlines()[3:-1]]
        assert (table.count("AAPL"), table.count("KO")) == (10, 10), seen.out
        assert "the last 20 of 60 rows" in seen.out


def test_vwap_beside_bars_stands_there_once(marketdata: InProcess) -> None:
    seen = marketdata("indicators", "AAPL", "-i", "vwap", "-t", "1min", "-n", "2", "--bars")
    assert seen.code == 0
    assert seen.out.splitlines()[1].split().count("vwap") == 1


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
