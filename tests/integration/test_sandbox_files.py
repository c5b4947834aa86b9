"""Recorded prices through the sandbox, bit for bit as in their file."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import requests

from marketdata.clock import FixedClock, to_micros
from marketdata.errors import ConfigurationError
from marketdata.sandbox import Action, FileMarket, Sandbox
from marketdata.spans import Span
from marketdata.types import CLOSE
from tests.shared_data import SHARED, needs_shared_data

KEYS = {"APCA-API-KEY-ID": "key", "APCA-API-SECRET-KEY": "secret"}
ALL_TIME = Span(0, 4_000_000_000_000_000)


def all_bars(sandbox: Sandbox, symbols: str, timeframe: str, **more: Any) -> dict[str, list[Any]]:
    params: dict[str, Any] = {
        "symbols": symbols,
        "timeframe": timeframe,
        "start": "1990-01-01",
        "limit": 10_000,
    }
    found: dict[str, list[Any]] = {}
    token = None
    while True:
        page = requests.get(
            sandbox.url + "/v2/stocks/bars",
            params=params | more | {"page_token": token},
            headers=KEYS,
            timeout=30,
        ).json()
        for symbol, rows in page["bars"].items():
            found.setdefault(symbol, []).extend(rows)
        token = page["next_page_token"]
        if token is None:
            return found


def assert_as_in_file(rows: list[Any], frame: pd.DataFrame) -> None:
    assert [r["t"] for r in rows] == frame["timestamp"].tolist()
    for key, name in (("o", "open"), ("h", "high"), ("l", "low"), ("c", "close"), ("v", "volume")):
        got = np.array([np.nan if r[key] is None else r[key] for r in rows], np.float64)
        np.testing.assert_array_equal(got, frame[name].to_numpy(np.float64))


@needs_shared_data
@pytest.mark.parametrize("name", ["minute/us24_2019-02.csv.gz", "daily/us88_2012-2017.csv.gz"])
def test_real_prices_are_served_bit_for_bit(name):
    path = SHARED / name
    frame = pd.read_csv(path, float_precision="round_trip", keep_default_na=False,
                        low_memory=False, na_values={c: [""] for c in ("open", "high", "low", "close", "volume")})  # fmt: skip
    frame["symbol"] = frame["symbol"].str.replace("-", ".")  # BRK-A is served as BRK.A
    timeframe = "1Min" if name.startswith("minute") else "1Day"
    with Sandbox(FileMarket(path)) as sandbox:
        found = all_bars(sandbox, ",".join(frame["symbol"].unique()), timeframe)
    assert sorted(found) == sorted(frame["symbol"].unique())
    for symbol, rows in found.items():
        assert_as_in_file(rows, frame[frame["symbol"] == symbol])
        assert all(r["vw"] is None and r["n"] is None for r in rows)


@needs_shared_data
def test_days_are_derived_from_minutes_where_there_are_none():
    market = FileMarket(SHARED / "minute/us24_2019-02.csv.gz")
    (minutes,) = list(market.minutes("AAPL", Span(0, 1_549_990_000_000_000), "sip"))[:1]
    daily = market.days("AAPL", ALL_TIME, "sip")
    assert len(daily) == 5
    assert daily.values[:4, 0].tolist() == [
        minutes.values[0, 0],
        minutes.values[1].max(),
        minutes.values[2].min(),
        minutes.values[3, -1],
    ]


@needs_shared_data
def test_split_basis_files_give_raw_and_adjusted_prices():
    path = SHARED / "daily/actions4_2012-2014.csv.gz"
    frame = pd.read_csv(path, float_precision="round_trip")
    aapl = frame[frame["symbol"] == "AAPL"].reset_index(drop=True)
    with Sandbox(FileMarket(path, basis="split")) as sandbox:
        split = all_bars(sandbox, "AAPL", "1Day", adjustment="split")["AAPL"]
        raw = all_bars(sandbox, "AAPL", "1Day")["AAPL"]
        actions = sandbox.source.actions("AAPL")
    assert_as_in_file(split, aapl)
    before = (aapl["timestamp"] < "2014-06-09").to_numpy()
    closes = np.array([r["c"] for r in raw])
    np.testing.assert_array_equal(closes[before], aapl["close"].to_numpy()[before] * 7)
    np.testing.assert_array_equal(closes[~before], aapl["close"].to_numpy()[~before])
    assert [(a.ex_date, a.new) for a in actions if a.is_split] == [(date(2014, 6, 9), 7.0)]
    # Dividends are stated per share of their own day: 2.65 dollars in 2012.
    assert next(a.amount for a in actions if a.amount) == pytest.approx(2.65, abs=0.001)


ROWS = "symbol,timestamp,open,high,low,close,volume,vwap,trade_count\n" + "".join(
    f"NA,2024-03-05T14:{30 + i}:00Z,{10 + i}.123456789,{11 + i},{9 + i},{10 + i}.5,{i}.25,10.5,{i}\n"
    for i in range(4)
)


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "parquet"])
def test_every_format(tmp_path, suffix):
    source = tmp_path / "prices.csv"
    source.write_text(ROWS)
    path = tmp_path / f"other.{suffix}"
    frame = pd.read_csv(source, keep_default_na=False)
    if suffix == "parquet":
        frame["timestamp"] = pd.to_datetime(frame["timestamp"])
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)
    market = FileMarket(path)
    (bars,) = market.minutes("NA", ALL_TIME, "sip")
    assert bars.timestamp[0] == to_micros(datetime(2024, 3, 5, 14, 30, tzinfo=UTC))
    assert bars.values[0].tolist() == [10.123456789, 11.123456789, 12.123456789, 13.123456789]
    assert bars.values[6].tolist() == [0, 1, 2, 3]
    assert list(market.minutes("NA", ALL_TIME, "iex")) == []


def test_missing_numbers_are_null(tmp_path):
    path = tmp_path / "dirt.csv"
    path.write_text(
        "symbol,timestamp,open,high,low,close,volume\n"
        "REX,2016-06-28T04:00:00Z,1,2,1,2,0\nREX,2016-06-29T04:00:00Z,NaN,,NaN,NaN,NaN\n"
    )
    with Sandbox(FileMarket(path)) as sandbox:
        rows = all_bars(sandbox, "REX", "1Day")["REX"]
    assert [r["v"] for r in rows] == [0, None]
    assert rows[1]["h"] is None


def test_nothing_beyond_the_clock(tmp_path):
    path = tmp_path / "prices.csv"
    path.write_text(ROWS)
    moment = FixedClock(datetime(2024, 3, 5, 14, 32, 30, tzinfo=UTC))
    with Sandbox(FileMarket(path), clock=moment) as sandbox:
        assert len(all_bars(sandbox, "NA", "1Min")["NA"]) == 2


def test_actions_can_be_told(tmp_path):
    path = tmp_path / "prices.csv"
    path.write_text(ROWS)
    market = FileMarket(path)
    market.add_action(Action("NA", date(2024, 3, 6), new=2))
    with Sandbox(market) as sandbox:
        rows = all_bars(sandbox, "NA", "1Min", adjustment="split")["NA"]
    (bars,) = market.minutes("NA", ALL_TIME, "sip")
    assert [r["c"] for r in rows] == (bars.values[CLOSE] / 2).round(2).tolist()


@pytest.mark.parametrize("content", [None, "symbol,timestamp,open\nX,2024-01-02T05:00:00Z,1\n"])
def test_unusable_files_are_configuration_errors(tmp_path, content):
    path: Path = tmp_path / "prices.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigurationError, match=r"no such file|lacks the columns high"):
        FileMarket(path)
