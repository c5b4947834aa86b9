"""What has no unambiguous factor is refused and named, where it matters, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import marketdata as md
from marketdata.clock import Deadline
from marketdata.protocols import Commit, ReadRequest
from marketdata.sandbox import FileMarket, GeneratedMarket
from marketdata.sandbox.source import Action
from marketdata.spans import Span
from marketdata.types import CLOSE, DAY, HIGH, SeriesKey, Timeframe
from tests.command_line import CommandLine, InProcess
from tests.stack import BARS, Stack, runtime, same

EX_DATE = date(2024, 2, 14)
WINDOW: dict[str, Any] = {"start": "2024-02-01", "end": "2024-03-01"}
AFTER: dict[str, Any] = {"start": EX_DATE, "end": "2024-03-01"}

CASES: dict[str, tuple[list[Action], str]] = {
    "dividend": ([Action("KO", EX_DATE, amount=10_000.0)], "is no less than the close of"),
    "both": (
        [Action("KO", EX_DATE, new=2.0), Action("KO", EX_DATE, amount=0.5)],
        "which of them comes first",
    ),
    "spin-off": (
        [
            Action(
                "KO", EX_DATE, new=1.0, old=4.0, kind="spin_off", other_symbol="NOSUCH", amount=1.0
            )
        ],
        "the spin-off of NOSUCH has no price",
    ),
}


def told(make_stack: Callable[..., Stack], *actions: Action, **settings: Any) -> Stack:
    market = GeneratedMarket(seed=3)
    for action in actions:
        market.add_action(action, happens=False)
    return make_stack(source=market, **settings)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:raw prices of KO jump")
def test_a_read_across_it_is_refused(make_stack: Callable[..., Stack], case: str) -> None:
    actions, why = CASES[case]
    stack = told(make_stack, *actions)
    client = stack.client
    calls: list[Callable[[Any], Any]] = [
        lambda adjustment: client.get_bars("KO", adjustment=adjustment, **WINDOW),
        lambda adjustment: client.get_bars("KO", "1week", adjustment=adjustment, **WINDOW),
        lambda adjustment: client.get_bars(["AAPL", "KO"], adjustment=adjustment, **WINDOW),
        lambda adjustment: client.get_indicators("KO", "rsi_14", adjustment=adjustment, limit=30),
    ]
    kind = md.DataUnavailableError if case == "spin-off" else md.DataQualityError
    for call in calls:
        for adjustment in ("dividend", "all"):
            with pytest.raises(kind, match=why) as caught:
                call(adjustment)
            assert isinstance(caught.value, md.MarketDataError)
            assert "KO on 2024-02-14" in str(caught.value)
            assert 'adjustment="split"' in str(caught.value.cure)
            assert not caught.value.transient
            assert caught.value.facts["symbols"] == ["KO"]
        for adjustment in ("raw", "split"):
            assert len(call(adjustment))
    for timeframe in ("1day", "1hour"):
        assert len(client.get_bars("KO", timeframe, adjustment="all", **AFTER))
    known = runtime(client)
    (doubt,) = known.adjuster.doubts(
        known.provider, known.source.feed, ["KO", "AAPL"], known.clock.now_us(), Deadline(5)
    )
    assert doubt.symbol == "KO"
    assert why in doubt.why


def daily_file(path: Path, symbol: str, days: pd.DatetimeIndex, price: float) -> None:
    stamps = days.tz_localize("America/New_York").tz_convert("UTC")
    frame = pd.DataFrame({"symbol": symbol, "timestamp": stamps})
    for column in ("open", "high", "low", "close"):
        frame[column] = price + np.arange(len(days)) / 8
    frame["volume"] = 1000.0
    frame.to_csv(path, index=False)


def test_only_the_session_before_the_ex_date_will_do(
    make_stack: Callable[..., Stack], tmp_path: Path
) -> None:
    """A close of two sessions before is another price."""
    days = pd.bdate_range("2024-02-01", "2024-02-29").difference(
        pd.DatetimeIndex(["2024-02-13", "2024-02-19"])
    )
    daily_file(tmp_path / "gap.csv", "KO", days, 50.0)
    market = FileMarket(tmp_path)
    market.add_action(Action("KO", EX_DATE, amount=0.5))
    market.add_action(Action("KO", date(2024, 2, 20), amount=0.5))  # after a holiday
    client = make_stack(source=market).client
    with pytest.raises(md.DataUnavailableError, match=r"KO on 2024-02-14: a dividend .* no bar"):
        client.get_bars("KO", adjustment="all", **WINDOW)
    raw = client.get_bars("KO", **AFTER)["close"]
    found = client.get_bars("KO", adjustment="all", **AFTER)["close"]
    friday = float(raw.loc["2024-02-16"].iloc[0])
    factor = np.where(raw.index < "2024-02-20", 1 - 0.5 / friday, 1.0)
    np.testing.assert_allclose(found, raw * factor, rtol=1e-14)


def test_a_spin_off_is_worth_its_first_close(
    make_stack: Callable[..., Stack], tmp_path: Path
) -> None:
    """Which may be some sessions after the ex-date."""
    days = pd.bdate_range("2024-01-29", "2024-03-13").difference(pd.DatetimeIndex(["2024-02-19"]))
    daily_file(tmp_path / "ko.csv", "KO", days, 50.0)
    daily_file(tmp_path / "new.csv", "NEWCO", days[days >= "2024-02-16"], 30.0)
    market = FileMarket(tmp_path)
    market.add_action(
        Action("KO", EX_DATE, new=1.0, old=3.0, kind="spin_off", other_symbol="NEWCO")
    )
    stack = make_stack(source=market)
    raw = stack.client.get_bars("KO", **WINDOW)
    found = stack.client.get_bars("KO", adjustment="all", **WINDOW)
    before = raw.index < str(EX_DATE)
    reference = float(raw["close"][before].iloc[-1])
    factor = np.where(before, 1 - 30.0 / 3 / reference, 1.0)
    np.testing.assert_allclose(found["close"], raw["close"] * factor, rtol=1e-14)
    np.testing.assert_array_equal(found["volume"], raw["volume"])
    same(stack.client.get_bars("KO", adjustment="split", **WINDOW), raw)
    stack.forget_calls()
    stack.flush_redis()
    same(stack.client.get_bars("KO", adjustment="all", **WINDOW), found)
    assert len(stack.sandbox.requests) == 0


def test_a_revised_daily_close_changes_what_minutes_are_divided_by(
    make_stack: Callable[..., Stack],
) -> None:
    """The close of the session before, as it is stored now, or was at the moment asked about:
    nothing remembered survives it."""
    stack = told(make_stack, Action("KO", EX_DATE, amount=1.0), trail="all")
    window: dict[str, Any] = {"start": "2024-02-12", "end": "2024-02-14"}
    raw = stack.client.get_bars("KO", "1hour", **window)
    first = stack.client.get_bars("KO", "1hour", adjustment="all", **window)
    again = stack.client.get_bars("KO", "1hour", adjustment="all", **window)
    same(first, again)
    days = stack.client.get_bars("KO", "1day", limit=30)
    (reference,) = days["close"].loc["2024-02-13"]
    # The generated market pays KO's usual dividends too, after this one.
    later = first["close"] / raw["close"] / (1 - 1 / reference)
    assert later.max() - later.min() < 1e-14

    known = runtime(stack.client)
    key = SeriesKey(known.provider, known.source.feed, "KO", Timeframe.DAY_1)
    revise(stack, key, "2024-02-13", close=reference + 1)
    second = stack.client.get_bars("KO", "1hour", adjustment="all", **window)
    expected = first["close"] * (1 - 1 / (reference + 1)) / (1 - 1 / reference)
    np.testing.assert_allclose(second["close"], expected, rtol=1e-14)
    prints = [f.attrs["marketdata"]["fingerprint"] for f in (first, again, second)]
    assert prints[0] == prints[1] != prints[2]
    then = stack.clock.now_us()
    stack.clock.advance(hours=1)
    moment = pd.Timestamp(then, unit="us", tz="UTC")
    earlier = stack.client.get_bars("KO", "1hour", adjustment="all", as_of=moment, **window)
    np.testing.assert_array_equal(earlier["close"], first["close"])


def revise(stack: Stack, key: SeriesKey, day: str, *, close: float) -> None:
    """Commit a daily bar as the provider has corrected it."""
    store = runtime(stack.client).store
    start = int(pd.Timestamp(day, tz="America/New_York").value // 1000)
    span = Span(start, start + DAY)
    bars = store.read([ReadRequest(key, span)])[key][1]
    bars.values[[CLOSE, HIGH]] = close
    now_us = runtime(stack.client).clock.now_us() + 1_000_000
    store.commit([Commit(key, bars, span, now_us, span.end, span.end)])


# ------------------------------------------------------------------------------------- shown


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:raw prices of KO jump")
def test_the_list_of_actions_says_what_is_in_doubt(
    make_stack: Callable[..., Stack], case: str
) -> None:
    actions, why = CASES[case]
    stack = told(make_stack, Action("KO", date(2024, 2, 21), amount=0.25), *actions)
    stack.client.get_bars("KO", **WINDOW)  # what dividends are measured by is stored
    frame = stack.client.get_actions(["AAPL", "KO"], **WINDOW)
    doubted = frame[frame["ex_date"] == pd.Timestamp(EX_DATE)]
    assert len(doubted) == len(actions)
    assert doubted["symbol"].unique().tolist() == ["KO"]
    assert all(why in doubt for doubt in doubted["doubt"])
    rest = frame[frame["ex_date"] != pd.Timestamp(EX_DATE)]
    assert len(rest)
    assert set(rest["doubt"]) == {""}
    nothing = stack.client.get_actions("KO", kinds="merger")
    assert (nothing.dtypes == frame.dtypes).all()


def test_a_dividend_without_a_stored_close_is_in_no_doubt(make_stack: Callable[..., Stack]) -> None:
    stack = told(make_stack, *CASES["dividend"][0])
    assert set(stack.client.get_actions("KO", **WINDOW)["doubt"]) == {""}
    assert stack.calls(BARS) == 0


def test_the_doubt_as_of_a_moment_rests_on_what_was_known(
    make_stack: Callable[..., Stack],
) -> None:
    stack = told(make_stack, *CASES["dividend"][0])
    stack.client.get_bars("KO", **WINDOW)
    get = stack.client.get_actions
    assert len(get("KO", as_of="2024-02-10", **WINDOW)) == 0
    (doubt,) = get("KO", as_of="2024-02-20", **WINDOW)["doubt"]
    assert "is no less than the close of" in doubt


@pytest.mark.filterwarnings("ignore:raw prices of KO jump")
def test_the_command_line_prints_what_is_in_doubt(
    make_stack: Callable[..., Stack],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stack = told(make_stack, *CASES["both"][0])
    stack.client.get_bars("KO", **WINDOW)
    settings = {name: str(value) for name, value in stack.settings.items()}
    line = CommandLine(tmp_path, **settings, clock=repr(stack.clock))
    command = InProcess(line, monkeypatch, capsys)
    shown = command("actions", "KO", "--start", "2024-02-01", "--end", "2024-03-01")
    assert shown.code == 0, shown.err
    note = "KO on 2024-02-14: prices cannot be adjusted across it: "
    assert shown.out.count(note) == 1, "once for the ex-date"
    assert "which of them comes first" in shown.out
    rows = command("actions", "KO", "--start", "2024-02-01", "--end", "2024-03-01", "--json")
    assert rows.out.count('"doubt"') == 2
    checked = command("verify", "KO", "--all")
    assert checked.code == 0, checked.err
    assert "prices cannot be adjusted across the actions of KO on 2024-02-14" in checked.out
    assert command("verify", "KO", "--all", "--json").summary["doubts"] == 1
