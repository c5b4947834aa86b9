"""``md.revisions``, ``md.bar_states`` and their commands: how bars came to be what they are."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pytest

import marketdata as md
from marketdata.cli.exits import USAGE
from marketdata.drift import APPEARED, BARS, WITHDRAWN
from marketdata.types import COLUMNS
from marketdata.verifying import verify
from tests.changing_market import ChangingMarket
from tests.command_line import CommandLine, InProcess
from tests.cycles import Ward, micros
from tests.stack import Stack, runtime

SYMBOLS = ["AAPL", "MSFT"]
DATE: dict[str, Any] = {"start": "2024-03-14", "end": "2024-03-15"}
EVENING = "2024-03-14T21:40:00-04:00"


def stamp(text: str) -> pd.Timestamp:
    return pd.Timestamp(f"2024-03-14T{text}-04:00").tz_convert("UTC")


@pytest.fixture
def stack(make_stack: Callable[..., Stack]) -> Stack:
    """A day on which one close was corrected and one bar withdrawn."""
    market = ChangingMarket(SYMBOLS)
    made = make_stack(at="2024-03-14T09:30:30-04:00", source=market)
    ward = Ward(made, SYMBOLS, ("1min", "1day"))
    for at in ("10:00:04", "15:00:04", "16:21:00"):
        ward.cycle(f"2024-03-14T{at}-04:00")
    market.correct("AAPL", micros("2024-03-14T14:31-04:00"), 1.25)
    market.withdraw("AAPL", micros("2024-03-14T10:30-04:00"))
    ward.cycle(EVENING)
    return made


def test_every_change_is_a_row(stack: Stack):
    frame = stack.client.revisions(SYMBOLS, "1min", **DATE)
    assert frame["symbol"].tolist() == ["AAPL", "AAPL"]
    assert frame["timestamp"].tolist() == [stamp("10:30"), stamp("14:31")]
    assert frame["withdrawn"].tolist() == [True, False]
    assert frame["close_to"].isna().tolist() == [True, False]
    assert frame["close_to"][1] == 1.25
    assert frame["state_to"].tolist() == ["final", "final"]
    assert set(frame["state_from"]) == {"revised"}
    assert frame["observed_from"].tolist() == [stamp("15:00:04")] * 2
    assert frame["observed_to"].tolist() == [pd.Timestamp(EVENING)] * 2
    before = stack.client.get_bars("AAPL", "1min", **DATE, as_of="2024-03-14T15:10-04:00")
    for row in range(2):
        old = before.loc[frame["timestamp"][row]]
        kept = [frame[f"{name}_from"][row] for name in COLUMNS]
        np.testing.assert_array_equal(kept, old.to_numpy())
    facts = frame.attrs["marketdata"]
    assert (facts["changes"], facts["untrailed"], facts["timeframe"]) == (2, "", "1min")
    pd.testing.assert_frame_equal(stack.client.revisions("AAPL", "5min", **DATE), frame)


def test_times_are_in_the_zone_asked_for(stack: Stack):
    frame = stack.client.revisions("AAPL", "1min", **DATE, tz="exchange")
    assert str(frame["timestamp"].dtype) == "datetime64[us, America/New_York]"
    assert frame["timestamp"][0].hour == 10


def test_without_changes_the_frame_is_empty_and_of_the_same_columns(stack: Stack):
    full = stack.client.revisions("AAPL", "1min", **DATE)
    empty = stack.client.revisions("MSFT", "1min", **DATE)
    assert empty.empty
    assert list(empty.columns) == list(full.columns)
    assert empty.dtypes.astype(str).tolist() == full.dtypes.astype(str).tolist()
    assert stack.client.revisions("AAPL", "1min", start="2024-03-12", end="2024-03-14").empty
    nothing = stack.client.revisions("KO")
    assert nothing.empty
    stack.forget_calls()
    assert stack.calls() == 0


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"timeframe": "1M"}, md.InvalidTimeframeError),
        ({"start": "2024-03-15", "end": "2024-03-14"}, md.InvalidRangeError),
        ({"tz": "Mars"}, md.RequestError),
        ({"feed": 5}, md.RequestError),
        ({"symbols": []}, md.InvalidSymbolError),
    ],
)
def test_what_cannot_be_is_refused(stack: Stack, asked: dict[str, Any], error: Any):
    for call in (stack.client.revisions, stack.client.bar_states):
        with pytest.raises(error):
            call(**{"symbols": "AAPL", "timeframe": "1min", **asked})


def test_the_states_of_a_day_change_with_its_hours(make_stack: Callable[..., Stack]):
    stack = make_stack(at="2024-03-14T15:00:30-04:00")
    stack.client.get_bars("AAPL", "1min", start="2024-03-13", end="now")
    frame = stack.client.bar_states("AAPL", "1min", start="2024-03-13", tz="exchange")
    assert frame["state"].tolist() == ["final", "revised", "closed"]
    assert frame["end"].tolist()[:-1] == frame["start"].tolist()[1:]
    assert frame["start"][1] == pd.Timestamp("2024-03-14T04:00-04:00")
    assert frame["start"][2] == pd.Timestamp("2024-03-14T14:59-04:00")
    assert frame["end"][2] == pd.Timestamp("2024-03-14T15:00-04:00")
    assert frame["sealed"].dtype == bool
    both = stack.client.bar_states(SYMBOLS, "1min")
    assert set(both["symbol"]) == {"AAPL"}
    assert stack.client.bar_states("MSFT").empty


def test_drift_is_shown_by_status_metrics_and_verify(stack: Stack, database_url: str):
    stack.set_time("2024-03-18T11:00:00-04:00")
    report = verify(runtime(stack.client), symbols=["AAPL"], sample=2)
    counts = {(c.stage, c.field): c.bars for c in report.counts}
    assert counts == {
        ("revised->final", BARS): 2,
        ("revised->final", "close"): 1,
        ("revised->final", WITHDRAWN): 1,
    }
    (trail,) = report.trails
    assert (trail.key.symbol, trail.entries, trail.bars) == ("AAPL", 2, 2)
    assert trail.newest_us == micros(EVENING)
    (tomb,) = report.tombstones
    assert (tomb.label, tomb.observed_us) == (micros("2024-03-14T10:30-04:00"), micros(EVENING))
    assert report.summary()["tombstones"] == 1
    assert report.summary()["replaced_so_far"] == 2
    figures = runtime(stack.client).figures
    try:
        found = figures.look()
    finally:
        figures.close()
    assert {(c.stage, c.field): c.bars for c in found.drift} == counts
    assert found.tombstones == 1
    assert found.trail_bytes > 0
    with psycopg.connect(database_url) as plain:
        (slots,) = plain.execute(
            "SELECT count(DISTINCT field) FROM marketdata.drift_counters"
        ).fetchone() or (0,)
    assert slots == 3
    assert APPEARED not in {field for _, field in counts}


# ----------------------------------------------------------------------------------- the commands


@pytest.fixture
def command(
    stack: Stack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> InProcess:
    settings = {name: str(value) for name, value in stack.settings.items()}
    return InProcess(CommandLine(tmp_path, **settings, clock=EVENING), monkeypatch, capsys)


def test_the_command_prints_changes(command: InProcess, stack: Stack):
    asked = ("revisions", "AAPL", "-t", "1min", "--start", "2024-03-14", "--end", "2024-03-15")
    done = command(*asked)
    assert done.code == 0
    assert "withdrawn" in done.out
    assert "close" in done.out
    assert "-> 1.25" in done.out
    rows = command(*asked, "--json").objects
    assert [row.get("withdrawn") for row in rows] == [True, False, None]
    assert rows[0]["close_to"] is None
    assert rows[-1]["rows"] == 2
    frame = pd.read_csv(io.StringIO(command(*asked, "--csv", "-").out), parse_dates=["timestamp"])
    expected = stack.client.revisions("AAPL", "1min", **DATE)
    assert frame["close_from"].tolist() == expected["close_from"].tolist()
    assert command(*asked, "--csv", "-", "--json").code == USAGE
    assert "no bar of this range" in command("revisions", "MSFT", "-t", "1min").out


def test_bars_indicators_and_exports_as_of_a_moment(
    command: InProcess, stack: Stack, tmp_path: Path
):
    moment = "2024-03-14T15:00:04-04:00"
    day = ("--start", "2024-03-14", "-t", "1min", "--as-of", moment)
    known = stack.client.get_bars(["AAPL"], "1min", start="2024-03-14", as_of=moment)
    printed = command("bars", "AAPL", *day, "--json")
    assert printed.code == 0, printed.err
    assert [row["close"] for row in printed.objects[:-1]] == known["close"].tolist()
    assert printed.summary["provenance"]["fingerprint"] == known.attrs["marketdata"]["fingerprint"]
    assert "as of 2024-03-14T19:00:04+00:00: what was observed by then" in printed.err
    values = command("indicators", "AAPL", "-i", "sma_20", *day, "--json")
    assert values.code == 0, values.err
    assert len(values.objects) == len(known) + 1
    done = command("export", "AAPL", *day, "--session", "regular", "--to", "out.parquet", "--json")
    assert done.code == 0, done.err
    frame = pd.read_parquet(tmp_path / "out.parquet")
    np.testing.assert_array_equal(frame["close"], known["close"])
    later = command("export", "AAPL", "--start", "2024-03-14", "-t", "1min", "--to", "now.csv")
    assert later.code in (0, 3), later.err
    assert "1.25" in (tmp_path / "now.csv").read_text()
    assert command("bars", "AAPL", "--as-of", "2024-03-20").code == USAGE


def test_verify_says_what_was_replaced(command: InProcess):
    done = command("verify", "AAPL", "--sample", "1")
    assert "replaced so far" in done.out
    assert "AAPL 1min: 2 bars replaced 2 times" in done.out
    assert "was withdrawn, observed" in done.out
    rows = command("verify", "AAPL", "--sample", "1", "--json").objects
    assert any("withdrawn" in row for row in rows)
    status = command("status")
    assert "revised->final 2 bars (close 1, withdrawn 1)" in " ".join(status.out.split())
    told = command("status", "--json").summary
    assert json.dumps(told)
