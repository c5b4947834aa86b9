"""What was known at an earlier moment, through the whole stack."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest

import marketdata as md
from marketdata.clock import Clock, Deadline
from marketdata.corporate_actions import ActionKind, CorporateAction
from marketdata.sandbox import GeneratedMarket
from marketdata.sandbox.source import Action
from marketdata.sealing import seal
from marketdata.spans import Span
from marketdata.types import DAY
from marketdata.verifying import verify
from tests.changing_market import ChangingMarket
from tests.cycles import Ward, micros
from tests.stack import Stack, runtime, same, tiers

SYMBOLS = ["AAPL", "MSFT"]
NOON = "2024-03-14T12:00:03-04:00"
AFTERNOON = "2024-03-14T15:00:04-04:00"
EVENING = "2024-03-14T21:40:00-04:00"
NEXT = "2024-03-15T11:00:00-04:00"
OPEN = "2024-03-14T09:30-04:00"


def facts(frame: pd.DataFrame) -> dict[str, Any]:
    return dict(frame.attrs["marketdata"])


def minute(text: str) -> int:
    return micros(f"2024-03-14T{text}-04:00")


def stamp(text: str) -> pd.Timestamp:
    return pd.Timestamp(f"2024-03-14T{text}-04:00").tz_convert("UTC")


class LateClock:
    """The clock of a market that is made before its stack."""

    inner: Clock
    speed = 0.0

    def now_us(self) -> int:
        return self.inner.now_us()


@pytest.fixture
def market() -> ChangingMarket:
    return ChangingMarket(SYMBOLS)


def watch(stack: Stack, *times: str, timeframes: tuple[str, ...] = ("1min", "1day")) -> Ward:
    """Let an aggregator see the market at these times of the day."""
    ward = Ward(stack, SYMBOLS, timeframes)
    for at in times:
        ward.cycle(f"2024-03-14T{at}-04:00")
    return ward


def read(stack: Stack, as_of: str | None = None, **asked: Any) -> pd.DataFrame:
    asked = {"start": OPEN, "timeframe": "1min", "symbols": "AAPL", **asked}
    return stack.client.get_bars(**asked, as_of=as_of)


# ------------------------------------------------------------------------------------- revisions


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"symbols": SYMBOLS, "limit": 100, "start": None},
        {"timeframe": "5min", "session": "extended", "start": "today"},
        {"timeframe": "1hour", "limit": 30, "start": None},
        {"timeframe": "1day", "period": "1mo", "start": None, "symbols": SYMBOLS},
        {"timeframe": "1week", "limit": 9, "start": None},
        {"symbols": SYMBOLS, "field": "close", "end": "2024-03-20"},
    ],
)
def test_what_was_read_then_is_read_again_later(
    make_stack: Callable[..., Stack], asked: dict[str, Any]
):
    """Minutes are recalculated after half a minute, corrected and withdrawn after the close."""
    clock = LateClock()
    market = ChangingMarket(SYMBOLS, clock)
    stack = make_stack(at="2024-03-14T10:00:04-04:00", source=market)
    clock.inner = stack.clock
    ward = Ward(stack, SYMBOLS, ("1min", "1day"))
    seen: dict[str, pd.DataFrame] = {}
    for at in ("10:00:04", "10:01:04", "12:30:04", "15:59:04", "16:21:00", "20:10:00", "21:40:00"):
        moment = f"2024-03-14T{at}-04:00"
        ward.cycle(moment)
        if at != "10:00:04":
            options = {k: v for k, v in asked.items() if k != "end"}
            seen[moment] = read(stack, **options)
    ward.cycle(NEXT)
    seen[NEXT] = read(stack, **{k: v for k, v in asked.items() if k != "end"})
    stack.set_time("2024-04-10T11:00:00-04:00")
    for moment, frame in seen.items():
        found = read(stack, moment, **asked)
        same(found, frame)
        assert datetime.fromisoformat(facts(found)["as_of"]) == datetime.fromisoformat(moment)
    same(read(stack, NEXT, **asked), seen[NEXT])


def md_utc() -> Any:
    from datetime import UTC

    return UTC


def test_the_answer_stays_the_same_whatever_happens_meanwhile(
    make_stack: Callable[..., Stack], market: ChangingMarket
):
    stack = make_stack(at="2024-03-14T09:30:30-04:00", source=market)
    ward = watch(stack, "10:00:04", "12:00:04", "14:59:04", "15:00:04")
    calls: list[dict[str, Any]] = [
        {},
        {"limit": 700, "start": None},
        {"symbols": SYMBOLS, "timeframe": "30min", "limit": 40, "start": None},
        {"timeframe": "1day", "limit": 60, "start": None, "adjustment": "split"},
    ]

    def ask() -> list[pd.DataFrame]:
        return [read(stack, AFTERNOON, **call) for call in calls]

    def ask_again() -> None:
        for frame, before in zip(ask(), first, strict=True):
            same(frame, before)
            assert facts(frame)["fingerprint"] == facts(before)["fingerprint"]
            assert facts(frame)["as_of_rests_on"] == facts(before)["as_of_rests_on"]

    first = ask()
    assert first[0].index[-1] == stamp("14:59")
    assert stamp("14:31") in first[0].index
    market.correct("AAPL", minute("14:31"), 1.25)
    market.withdraw("AAPL", minute("10:30"))
    ward.cycle(EVENING)
    now = read(stack)
    assert now["close"][stamp("14:31")] == 1.25
    assert stamp("10:30") not in now.index
    ask_again()
    market.correct("AAPL", minute("11:11"), 2.5)  # after all was final
    stack.set_time("2024-03-18T11:00:00-04:00")
    report = verify(runtime(stack.client), sample=None, correct=True)
    assert report.corrected == 1
    ask_again()
    stack.client.get_bars(SYMBOLS, "1min", start="2024-02-20", end="2024-03-12")
    stack.set_time("2024-04-10T11:00:00-04:00")
    seal(runtime(stack.client), threading.Event())
    ask_again()
    known = CorporateAction(
        "AAPL", ActionKind.SPLIT, micros("2024-03-18T00:00-04:00"), new=2, old=1
    )
    announced = replace(
        known, ex_date=micros("2024-03-14T00:00-04:00"), announced_us=micros(EVENING), new=3
    )
    record(stack, known, announced)
    ask_again()
    stack.flush_redis()
    ask_again()


def record(stack: Stack, *actions: CorporateAction) -> None:
    whole = Span(0, micros("2024-05-01T00:00-04:00"))
    runtime(stack.client).action_store.record(
        runtime(stack.client).provider, {"AAPL": list(actions)}, whole, stack.clock.now_us()
    )


def test_nothing_of_it_is_left_in_redis(make_stack: Callable[..., Stack], market: ChangingMarket):
    stack = make_stack(at="2024-03-14T09:30:30-04:00", source=market)
    ward = watch(stack, "10:00:04", "15:00:04")
    market.correct("AAPL", minute("14:31"), 1.25)
    ward.cycle(EVENING)
    stack.flush_redis()
    then = read(stack, AFTERNOON, limit=100, start=None)
    assert tiers(then) == "postgres:1"
    assert then["close"][stamp("14:31")] != 1.25
    now = read(stack, limit=100, start=None)
    assert now["close"][stamp("14:31")] == 1.25
    assert read(stack, limit=100, start=None)["close"][stamp("14:31")] == 1.25


def test_indicators_are_those_of_the_bars_as_they_were(
    make_stack: Callable[..., Stack], market: ChangingMarket
):
    stack = make_stack(at="2024-03-14T09:30:30-04:00", source=market)
    ward = watch(stack, "10:00:04", "15:00:04")

    def indicators(as_of: str | None, **more: Any) -> pd.DataFrame:
        asked = {"indicators": ["rsi_14", "sma_20", "vwap"], "timeframe": "1min", "limit": 50}
        return stack.client.get_indicators("AAPL", **{**asked, **more}, bars=True, as_of=as_of)

    first = indicators(None)
    default = indicators(None, indicators=None, limit=30)
    market.correct("AAPL", minute("14:40"), 1.25)
    ward.cycle(EVENING)
    assert not np.allclose(indicators(None, end=AFTERNOON)["sma_20"], first["sma_20"])
    found = indicators(AFTERNOON)
    same(found, first)
    again = indicators(AFTERNOON)
    assert facts(again)["fingerprint"] == facts(found)["fingerprint"]
    assert "/irsi_14,sma_20,vwap" in facts(found)["fingerprint"]
    stack.client.get_indicators("AAPL", None, "1min", limit=30)
    usual = indicators(AFTERNOON, indicators=None, limit=30)
    pd.testing.assert_frame_equal(usual, default, rtol=1e-9, check_freq=False)
    same(indicators(AFTERNOON, indicators=None, limit=30), usual)


# ------------------------------------------------------------------------------------- the window


@pytest.mark.parametrize(
    ("timeframe", "moment", "last"),
    [
        ("1min", "2024-03-14T15:00:02-04:00", "2024-03-14T14:58-04:00"),
        ("1min", "2024-03-14T15:00:03-04:00", "2024-03-14T14:59-04:00"),
        ("5min", "2024-03-14T15:00:02-04:00", "2024-03-14T14:50-04:00"),
        ("1hour", "2024-03-14T15:30:03-04:00", "2024-03-14T14:30-04:00"),
        ("1day", "2024-03-14T16:19:59-04:00", "2024-03-13T00:00-04:00"),
        ("1day", "2024-03-14T16:20:00-04:00", "2024-03-14T00:00-04:00"),
        ("1week", "2024-03-14T16:20:00-04:00", "2024-03-04T00:00-05:00"),
        ("1day", "2024-03-14", "2024-03-13T00:00-04:00"),
        ("1day", "-30d", "2024-03-08T00:00-05:00"),
    ],
)
def test_bars_that_had_closed_by_then(stack: Stack, timeframe: str, moment: str, last: str):
    stack.set_time("2024-04-10T11:00:00-04:00")
    frame = stack.client.get_bars("AAPL", timeframe, limit=5, as_of=moment)
    assert len(frame) == 5
    assert frame.index[-1] == pd.Timestamp(last)


def test_everything_counts_back_from_it(stack: Stack):
    stack.set_time("2024-04-10T11:00:00-04:00")
    get = stack.client.get_bars
    moment = datetime.fromisoformat(NOON)
    today = get("AAPL", "1min", start="today", as_of=moment)
    assert (today.index[0], today.index[-1]) == (stamp("09:30"), stamp("11:59"))
    assert len(get("AAPL", "1day", period="5d", as_of=NOON)) == 4  # and the one that is forming
    cut = get("AAPL", "1min", start=OPEN, end="2024-03-20", as_of=NOON)
    same(cut, today)
    whole = get("AAPL", "1min", start=OPEN, as_of=NOON)
    assert facts(cut)["fingerprint"] == facts(whole)["fingerprint"]
    early = get("AAPL", "1min", start=OPEN, end="2024-03-14T10:00-04:00", as_of=NOON)
    assert early.index[-1] == stamp("09:59")
    nothing = get("AAPL", "1min", start=NOON, as_of=NOON)
    assert nothing.empty
    assert list(nothing.columns) == list(cut.columns)
    assert get("AAPL", "1day", start="2024-03-14", as_of=NOON).empty


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({"as_of": "2024-04-11"}, md.InvalidRangeError, "future"),
        ({"as_of": datetime(2024, 3, 1)}, md.NaiveTimestampError, "as_of"),
        ({"as_of": "yesterday"}, md.InvalidRangeError, "as_of='yesterday' is not a moment"),
        ({"as_of": NOON, "start": NEXT}, md.InvalidRangeError, "after as_of"),
        ({"as_of": NOON, "include_forming": True}, md.RequestError, "forming"),
    ],
)
def test_what_cannot_be_is_refused(stack: Stack, asked: dict[str, Any], error: Any, words: str):
    stack.set_time("2024-04-10T11:00:00-04:00")
    for call in (stack.client.get_bars, stack.client.get_indicators):
        with pytest.raises(error, match=words):
            call("AAPL", timeframe="1min", **asked)
    assert stack.calls() == 0


# ------------------------------------------------------------------------------ what it rests on


def test_bars_that_a_backfill_brought_count_as_known_and_are_counted(stack: Stack):
    stack.set_time("2024-04-10T11:00:00-04:00")
    first = stack.client.get_bars("AAPL", "1min", start=OPEN, as_of=NOON)
    assert len(first) > 100
    assert facts(first)["as_of_rests_on"] == f"{len(first)} stored bars first observed later"
    assert "/t1710432003000000" in facts(first)["fingerprint"]
    stack.client.get_bars("AAPL", "1min", start="2024-03-01", end="2024-03-30")
    again = stack.client.get_bars("AAPL", "1min", start=OPEN, as_of=NOON)
    same(again, first)
    assert facts(again)["fingerprint"] == facts(first)["fingerprint"]
    assert tiers(again) == "postgres:1"
    days = stack.client.get_bars(SYMBOLS, "1week", limit=3, as_of=NOON)
    assert facts(days)["as_of_rests_on"] == "28 stored bars first observed later"
    assert len(repr(facts(days))) < 1024
    recent = stack.client.get_bars("AAPL", "1min", start=OPEN, end=NOON, as_of="now")
    assert facts(recent)["as_of_rests_on"] == "what was observed by then"
    assert "@b0c" in facts(recent)["fingerprint"]


def late_dividends(stack: Stack, market: GeneratedMarket) -> None:
    """Let the market tell next week of two dividends of this month."""
    stack.set_time("2024-03-20T15:00:00-04:00")
    for day, cash in ((date(2024, 3, 6), 0.5), (date(2024, 3, 8), 0.25)):
        market.add_action(Action("KO", day, amount=cash), happens=False)
    parts = runtime(stack.client)
    start = micros("2023-01-01T00:00-05:00")
    parts.actions.refresh(parts.provider, ["KO"], start, Deadline(30))


MORNING = "2024-03-15T09:00-04:00"
ADJUSTED: dict[str, Any] = {"start": "2024-02-01", "end": "2024-03-14", "adjustment": "all"}


def test_actions_of_before_the_first_question_count_as_known_and_are_counted(
    make_stack: Callable[..., Stack],
):
    market = GeneratedMarket(seed=3)
    stack = make_stack(source=market)
    late_dividends(stack, market)
    first = facts(stack.client.get_bars("KO", **ADJUSTED, as_of=NOON))
    assert "; 3 corporate actions first observed later" in first["as_of_rests_on"]
    told = facts(stack.client.get_indicators("KO", ["sma_5"], **ADJUSTED, as_of=NOON))
    assert "; 3 corporate actions first observed later" in told["as_of_rests_on"]
    raw = facts(stack.client.get_bars("KO", **{**ADJUSTED, "adjustment": "raw"}, as_of=NOON))
    assert "corporate" not in raw["as_of_rests_on"]


def test_an_action_that_an_answer_after_its_ex_date_lacked_was_not_known_by_then(
    make_stack: Callable[..., Stack],
):
    market = GeneratedMarket(seed=3)
    stack = make_stack(source=market)
    before = stack.client.get_bars("KO", **ADJUSTED)
    stack.set_time(NEXT)
    then = stack.client.get_bars("KO", **ADJUSTED, as_of=MORNING)
    same(then, before)
    averages = stack.client.get_indicators("KO", ["sma_5"], **ADJUSTED, as_of=MORNING)
    late_dividends(stack, market)
    now = stack.client.get_bars("KO", **ADJUSTED)
    assert (now["close"].iloc[:20] < before["close"].iloc[:20]).all()
    again = stack.client.get_bars("KO", **ADJUSTED, as_of=MORNING)
    same(again, then)
    assert facts(again)["fingerprint"] == facts(then)["fingerprint"]
    assert facts(again)["as_of_rests_on"] == "what was observed by then"
    same(stack.client.get_indicators("KO", ["sma_5"], **ADJUSTED, as_of=MORNING), averages)
    told = stack.client.get_bars("KO", **ADJUSTED, as_of="2024-03-20T15:00:00-04:00")
    same(told, now)
    listed = stack.client.get_actions("KO", start="2024-03-01")
    known = stack.client.get_actions("KO", start="2024-03-01", as_of=MORNING)
    assert len(listed) == len(known) + 2


def test_without_a_trail_the_newest_revision_is_said_to_be_used(
    make_stack: Callable[..., Stack], market: ChangingMarket
):
    stack = make_stack(at="2024-03-14T09:30:30-04:00", source=market, trail="MSFT")
    ward = watch(stack, "10:00:04", "15:00:04")
    kept = facts(read(stack, AFTERNOON))
    assert kept["as_of_rests_on"] == "what was observed by then"
    for symbol in SYMBOLS:
        market.correct(symbol, minute("14:31"), 1.25)
    ward.cycle(EVENING)
    then = read(stack, AFTERNOON)
    assert then["close"][stamp("14:31")] == 1.25
    assert "newest revisions, without a trail back to then" in facts(then)["as_of_rests_on"]
    revision = ward.state("AAPL").revision
    assert f"AAPL@r{revision}c" in facts(then)["fingerprint"]
    assert facts(then)["fingerprint"] != kept["fingerprint"]
    other = read(stack, AFTERNOON, symbols="MSFT")
    assert other["close"][stamp("14:31")] != 1.25
    assert "without a trail" not in facts(other)["as_of_rests_on"]
    both = read(stack, AFTERNOON, symbols=SYMBOLS)
    assert "newest revisions of 1 series, without" in facts(both)["as_of_rests_on"]
    stack.set_time(NEXT)
    later = read(stack, "2024-03-14T21:45:00-04:00")
    assert "without a trail" not in facts(later)["as_of_rests_on"]


# --------------------------------------------------------------------------------------- actions


def test_actions_known_by_then_are_applied(
    make_stack: Callable[..., Stack], market: ChangingMarket
):
    stack = make_stack(at="2024-04-10T11:00:00-04:00", source=market)
    ex_date = micros("2024-03-12T00:00-04:00")
    split = CorporateAction("AAPL", ActionKind.SPLIT, ex_date, new=2, old=1)
    record(stack, replace(split, announced_us=ex_date + 5 * DAY))
    asked = {"timeframe": "1day", "start": "2024-03-01", "end": "2024-03-14"}
    raw = read(stack, NOON, **asked)
    unknown = read(stack, NOON, **asked, adjustment="split")
    same(unknown, raw)
    known = read(stack, "2024-03-20", **asked, adjustment="split")
    np.testing.assert_allclose(known["close"].iloc[0], raw["close"].iloc[0] / 2)
    assert facts(known)["fingerprint"] != facts(unknown)["fingerprint"]
