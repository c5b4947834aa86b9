"""Renamed, re-used and delisted symbols through the whole stack."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pytest
import requests

import marketdata as md
from marketdata.aggregator import Aggregator
from marketdata.backfill import Backfill, Wanted
from marketdata.clock import Deadline, to_micros
from marketdata.corporate_actions import ActionKind
from marketdata.exporting import Wanted as Export
from marketdata.exporting import export
from marketdata.indicator_updates import IndicatorUpdater
from marketdata.protocols import Asset, Commit
from marketdata.ranges import Window
from marketdata.sandbox import Action, Fault, GeneratedMarket
from marketdata.spans import Span
from marketdata.types import Adjustment, Bars, SeriesKey, Timeframe
from tests.stack import BARS, Stack, runtime, same, span, tiers

RENAMED = date(2024, 2, 7)
"""A Wednesday, five weeks before the stack's time."""
ACTIONS = "/v1/corporate-actions"
WINDOW: Mapping[str, Any] = {"start": "2024-01-02", "end": "2024-03-14"}


@pytest.fixture
def market() -> GeneratedMarket:
    found = GeneratedMarket()
    found.rename("FB", "META", RENAMED)
    return found


@pytest.fixture
def stack(make_stack: Callable[..., Stack], market: GeneratedMarket) -> Stack:
    return make_stack(source=market)


def truth(market: GeneratedMarket, start: str, end: str, own: str = "META") -> pd.Series:
    """Return the daily closes of one listing, whatever it was called."""
    bars = market.days(f"={own}", span(f"{start}T00:00:00-04:00", f"{end}T00:00:00-04:00"), "sip")
    index = pd.to_datetime(bars.timestamp, unit="us", utc=True).as_unit("us")
    return pd.Series(bars.values[3], index=index)


def closes(frame: pd.DataFrame) -> pd.Series:
    found = frame["close"].copy()
    found.attrs = {}
    found.index.name = found.name = None
    return found


def check(frame: pd.DataFrame, expected: pd.Series) -> None:
    pd.testing.assert_series_equal(closes(frame), expected, check_freq=False, check_names=False)


@pytest.mark.parametrize("name", ["FB", "META"])
def test_fault_25_a_renamed_symbol_is_whole_on_the_first_call(
    stack: Stack, market: GeneratedMarket, name: str
) -> None:
    frame = stack.client.get_bars(name, **WINDOW)
    check(frame, truth(market, "2024-01-02", "2024-03-14"))
    assert frame.attrs["marketdata"]["lineage"] == "FB<2024-02-07<META"
    assert frame.attrs["marketdata"]["symbols"] == name
    assert stack.calls(ACTIONS) == 2, "about the name asked for, and then about the other"
    stack.forget_calls()
    again = stack.client.get_bars(name, **WINDOW)
    same(frame, again)
    assert stack.calls() == stack.calls(ACTIONS) == 0


@pytest.mark.parametrize("name", ["FB", "META"])
@pytest.mark.parametrize(
    ("start", "end"), [("2024-01-02", "2024-02-01"), ("2024-02-12", "2024-03-14")]
)
def test_before_the_first_bar_and_after_the_last_of_a_name(
    stack: Stack, market: GeneratedMarket, name: str, start: str, end: str
) -> None:
    check(stack.client.get_bars(name, start=start, end=end), truth(market, start, end))


@pytest.mark.parametrize("name", ["FB", "META"])
@pytest.mark.parametrize("limit", [5, 25, 26, 60, 500])
def test_a_limit_counts_over_both_names(
    stack: Stack, market: GeneratedMarket, name: str, limit: int
) -> None:
    whole = truth(market, "2020-01-02", "2024-03-14")
    for _ in range(2):
        frame = stack.client.get_bars(name, limit=limit)
        check(frame, whole[-limit:])
        assert not frame.attrs["marketdata"]["truncated"]


def test_the_newest_bars_of_both_names_come_from_redis(stack: Stack) -> None:
    stack.client.get_bars("META", limit=20)
    assert tiers(stack.client.get_bars("META", limit=20)) == "redis:1"
    assert tiers(stack.client.get_bars("FB", limit=20)) == "redis:1"


def test_minutes_across_the_change(stack: Stack) -> None:
    found = stack.client.get_bars("META", "1min", start="2024-02-05", end="2024-02-09")
    days = (
        pd.DatetimeIndex(found.index).tz_convert("America/New_York").strftime("%Y-%m-%d").unique()
    )
    assert list(days) == ["2024-02-05", "2024-02-06", "2024-02-07", "2024-02-08"]
    same(found, stack.client.get_bars("FB", "1min", start="2024-02-05", end="2024-02-09"))
    hours = stack.client.get_bars("META", "1hour", start="2024-02-05", end="2024-02-09")
    assert len(hours) == 28
    assert hours["volume"].sum() == pytest.approx(found["volume"].sum())


@pytest.mark.parametrize("timeframe", ["1week", "1month"])
def test_a_week_and_a_month_into_which_the_change_falls(
    stack: Stack, market: GeneratedMarket, timeframe: str
) -> None:
    found = stack.client.get_bars("META", timeframe, start="2024-01-02", end="2024-03-01")
    days = stack.client.get_bars("META", start="2024-01-02", end="2024-03-14")
    rule = "W-SUN" if timeframe == "1week" else "MS"
    local = days.tz_convert("America/New_York").tz_localize(None)
    expected = local["close"].resample(rule).last()[: len(found)]
    volume = local["volume"].resample(rule).sum()[: len(found)]
    np.testing.assert_array_equal(found["close"], expected)
    np.testing.assert_allclose(found["volume"], volume)
    assert found.index.is_unique
    limited = stack.client.get_bars("FB", timeframe, limit=len(found), end="2024-03-01")
    same(found, limited)


def test_both_names_beside_others_in_one_call(stack: Stack, market: GeneratedMarket) -> None:
    frame = stack.client.get_bars(["META", "AAPL", "FB"], **WINDOW)
    expected = truth(market, "2024-01-02", "2024-03-14")
    check(frame.loc[pd.IndexSlice["FB", :], :].droplevel(0), expected)
    check(frame.loc[pd.IndexSlice["META", :], :].droplevel(0), expected)
    alone = stack.client.get_bars("AAPL", **WINDOW)
    check(frame.loc[pd.IndexSlice["AAPL", :], :].droplevel(0), closes(alone))
    matrix = stack.client.get_bars(["META", "AAPL", "FB"], field="close", **WINDOW)
    assert list(matrix.columns) == ["META", "AAPL", "FB"]
    assert matrix.notna().all().all()


def test_a_covered_read_of_others_asks_nobody_about_renames(stack: Stack) -> None:
    stack.client.get_bars("AAPL", **WINDOW)
    assert stack.calls(ACTIONS) == 1
    stack.forget_calls()
    stack.flush_redis()
    stack.client.get_bars("AAPL", **WINDOW)
    assert stack.calls(ACTIONS) == stack.calls() == 0
    stack.client.get_bars("AAPL", start="2023-01-02", end="2024-03-14")
    assert (stack.calls(), stack.calls(ACTIONS)) == (1, 0), "asked about once already"


def test_a_failing_look_up_fails_no_raw_read(stack: Stack, market: GeneratedMarket) -> None:
    stack.sandbox.faults.add(Fault("status", match=ACTIONS, times=None, status=500))
    assert len(stack.client.get_bars("AAPL", **WINDOW)) == 50
    assert len(stack.client.get_bars("FB", **WINDOW)) == 25


@pytest.mark.parametrize("name", ["FB", "META"])
def test_an_adjusted_read_is_whole_where_its_own_actions_tell_of_the_rename(
    stack: Stack, market: GeneratedMarket, name: str
) -> None:
    """The courtesy of the raw read beneath fails; what the adjustment asks for itself does not."""
    stack.sandbox.faults.add(Fault("status", match=ACTIONS, times=1, status=400))
    frame = stack.client.get_bars(name, **WINDOW, adjustment="split")
    same(frame, stack.client.get_bars("META", **WINDOW, adjustment="split"))
    assert frame.attrs["marketdata"]["lineage"] == "FB<2024-02-07<META"
    assert len(frame) == len(stack.client.get_bars("AAPL", **WINDOW))


def test_the_old_name_taken_up_by_another_company(stack: Stack, market: GeneratedMarket) -> None:
    market.list_new("FB", date(2024, 2, 26), like="S00001")
    frame = stack.client.get_bars("FB", **WINDOW)
    assert frame.index[0] == pd.Timestamp("2024-02-26T05:00Z")
    assert len(frame) == 13
    check(stack.client.get_bars("META", **WINDOW), truth(market, "2024-01-02", "2024-03-14"))


@pytest.mark.parametrize("adjustment", ["raw", "all"])
def test_the_old_name_taken_up_means_the_same_whichever_name_was_read_before(
    stack: Stack, market: GeneratedMarket, adjustment: Adjustment
) -> None:
    market.list_new("FB", date(2024, 3, 4), like="S00003")
    assert len(stack.client.get_bars("META", **WINDOW, adjustment=adjustment)) > 8
    stack.client.get_indicators("META", ["sma_5"], limit=5)
    taken = stack.client.get_bars("FB", **WINDOW)
    assert taken.index[0] == pd.Timestamp("2024-03-04T05:00Z")
    assert taken.attrs["marketdata"]["lineage"] == "FB"
    averages = stack.client.get_indicators("FB", ["sma_5"], limit=5)["sma_5"]
    np.testing.assert_allclose(
        averages.dropna(), taken["close"].rolling(5).mean()[averages.dropna().index], rtol=1e-9
    )
    stack.forget_calls()
    same(stack.client.get_bars("FB", **WINDOW), taken)
    assert stack.calls() == 0


def test_a_rename_that_another_process_has_just_learnt_of(stack: Stack) -> None:
    """All is stored by then, so that nothing need be asked for."""
    other = stack.connect()
    other.get_bars("AAPL", **WINDOW)
    first = stack.client.get_bars("META", **WINDOW)
    for name in ("META", "FB"):
        same(other.get_bars(name, **WINDOW), first)


def test_a_rename_learnt_by_a_process_that_could_not_ask_who_is_listed_now(
    stack: Stack, market: GeneratedMarket
) -> None:
    """The store knows all of META and of the rename; nobody has asked about FB since."""
    market.list_new("FB", date(2024, 3, 4), like="S00003")
    stack.client.get_bars("META", **WINDOW)
    with psycopg.connect(stack.settings["database_url"]) as connection:
        connection.execute("DELETE FROM marketdata.assets")
    taken = stack.connect().get_bars("FB", **WINDOW)
    assert taken.index[0] == pd.Timestamp("2024-03-04T05:00Z")


def test_the_old_name_taken_up_by_a_renamed_company(stack: Stack, market: GeneratedMarket) -> None:
    market.rename("KO", "FB", date(2024, 2, 26))
    assert len(stack.client.get_bars("KO", **WINDOW)) == 50
    check(stack.client.get_bars("FB", **WINDOW), truth(market, "2024-01-02", "2024-03-14", "KO"))
    check(stack.client.get_bars("META", **WINDOW), truth(market, "2024-01-02", "2024-03-14"))


def test_every_request_says_that_symbols_are_not_to_be_mapped(stack: Stack) -> None:
    stack.client.get_bars("FB", **WINDOW)
    asked = [r for r in stack.sandbox.requests if r.path == BARS]
    assert asked
    assert {r.params["asof"] for r in asked} == {"-"}


@pytest.mark.parametrize("single", [True, False])
def test_the_latest_trade_by_an_old_name_nobody_has_asked_for_before(
    stack: Stack, single: bool
) -> None:
    if single:
        assert stack.client.get_latest_trade("FB").symbol == "FB"
    else:
        frame = stack.client.get_latest_trade(["AAPL", "FB"])
        assert frame["price"].notna().all()


def test_an_old_name_can_be_subscribed_to(stack: Stack) -> None:
    assert stack.client.subscribe("FB", owner="me").symbols == ("FB",)
    with pytest.raises(md.UnknownSymbolError):
        stack.client.subscribe("FBX", owner="me")


def test_as_of_a_day_before_the_change_it_is_not_known(stack: Stack) -> None:
    stack.client.get_bars("META", **WINDOW)
    then = stack.client.get_bars("FB", start="2024-01-02", as_of="2024-02-01")
    assert then.index[-1] == pd.Timestamp("2024-01-31T05:00Z")
    assert then.attrs["marketdata"]["lineage"] == "FB"
    later = stack.client.get_bars("FB", start="2024-01-02", as_of="2024-03-01")
    assert later.index[-1] == pd.Timestamp("2024-02-29T05:00Z")


# ------------------------------------------------------------------------------------ told late

TOLD = "2024-03-14T15:30:00-04:00"


@pytest.fixture
def late_stack(make_stack: Callable[..., Stack]) -> Stack:
    """A market that renamed FB five weeks ago and says so only later this afternoon."""
    market = GeneratedMarket()
    market.rename("FB", "META", RENAMED, listed_at=to_micros(datetime.fromisoformat(TOLD)))
    return make_stack(source=market)


def learn(stack: Stack) -> None:
    """Let the nightly look at corporate actions happen."""
    known = runtime(stack.client).actions
    start = runtime(stack.client).calendar().first
    changes, failed = known.refresh("sandbox", ["FB", "META"], start, Deadline(30))
    assert failed is None
    assert {c.kind for c in changes} >= {ActionKind.NAME_CHANGE}


def raw_rows(stack: Stack) -> list[tuple[object, ...]]:
    with psycopg.connect(stack.settings["database_url"]) as connection:
        return connection.execute(
            "SELECT * FROM marketdata.market_data_bars ORDER BY symbol, timeframe, timestamp"
        ).fetchall()


def test_fault_25_a_late_rename_switches_reads_and_indicators_of_both_names_together(
    late_stack: Stack,
) -> None:
    stack, get = late_stack, late_stack.client.get_bars
    values = stack.client.get_indicators
    before = {
        name: get(name, limit=60, adjustment=adjustment)
        for name in ("FB", "META")
        for adjustment in ("raw", "split", "all")
    }
    assert before["FB"].index[-1] < pd.Timestamp("2024-02-07T05:00Z")
    assert before["META"].index[0] == pd.Timestamp("2024-02-07T05:00Z")
    for name in ("FB", "META"):
        values(name, ["sma_20", "rsi_14"], limit=10)
        values(name, ["sma_20", "rsi_14"], limit=10)
    rows = raw_rows(stack)
    stack.set_time(TOLD)
    learn(stack)
    stack.forget_calls()
    for adjustment in ("raw", "split", "all"):
        both = {name: get(name, limit=60, adjustment=adjustment) for name in ("FB", "META")}
        same(both["FB"], both["META"])
        assert len(both["FB"]) == 60
        assert both["FB"].attrs["marketdata"]["lineage"] == "FB<2024-02-07<META"
        assert both["FB"].index[0] < pd.Timestamp("2024-02-07T05:00Z") < both["FB"].index[-1]
    found = {name: values(name, ["sma_20", "rsi_14"], limit=60) for name in ("FB", "META")}
    same(found["FB"], found["META"])
    closes_now = get("META", limit=90, adjustment="split")["close"]
    expected = closes_now.rolling(20).mean()[-60:]
    np.testing.assert_allclose(found["META"]["sma_20"], expected, rtol=1e-9)
    assert raw_rows(stack)[: len(rows)] == rows or set(rows) <= set(raw_rows(stack))
    again = {name: values(name, ["sma_20", "rsi_14"], limit=10) for name in ("FB", "META")}
    same(again["FB"], again["META"])
    assert tiers(again["FB"]) == "redis:1"
    np.testing.assert_allclose(again["FB"].to_numpy(), found["FB"].to_numpy()[-10:], rtol=1e-9)


def test_fault_25_the_old_name_as_the_broker_maps_it(stack: Stack) -> None:
    """Alpaca maps symbols by ``asof`` unless told not to; what is stored never rests on that."""
    asked = {"timeframe": "1Day", "start": "2024-01-29", "end": "2024-02-15", "symbols": "META"}
    found = {}
    for mode in ("-", "2024-03-14", "2024-02-01"):
        answer = requests.get(
            stack.sandbox.url + BARS,
            params={**asked, "asof": mode},
            headers={"APCA-API-KEY-ID": "sandbox", "APCA-API-SECRET-KEY": "sandbox"},
            timeout=10,
        )
        found[mode] = len(answer.json()["bars"].get("META", []))
    assert found["-"] == 7, "under this symbol alone"
    assert found["2024-03-14"] == 14, "mapped: the bars of FB come as META's"
    stack.forget_calls()
    frame = stack.client.get_bars("META", start="2024-01-29", end="2024-02-16")
    assert len(frame) == 14
    assert {r.params["asof"] for r in stack.sandbox.requests if r.path == BARS} == {"-"}
    with psycopg.connect(stack.settings["database_url"]) as connection:
        stored: dict[str, int] = dict(
            connection.execute(
                "SELECT symbol, count(*) FROM marketdata.market_data_bars GROUP BY 1"
            ).fetchall()
        )
    assert stored == {"FB": 7, "META": 7}


@pytest.mark.parametrize("timeframe", ["1day", "1week"])
def test_live_indicators_of_a_renamed_symbol_rest_on_both_names(
    late_stack: Stack, timeframe: str
) -> None:
    """The daemon's state, begun before the rename was told, is begun anew with it."""
    stack, parts = late_stack, runtime(late_stack.client)
    wanted = [("META", Timeframe(timeframe), 0), ("FB", Timeframe(timeframe), 0)]
    updater = IndicatorUpdater(parts, wanted=lambda: wanted)
    stack.client.get_bars(["FB", "META"], "1day", start="2020-01-02")
    keys = [SeriesKey("sandbox", "sip", name, Timeframe.DAY_1) for name in ("FB", "META")]
    updater.update(dict.fromkeys(keys, Bars.empty()), {})
    stack.set_time(TOLD)
    learn(stack)
    # Five minutes on the daemon looks at its subscriptions again.
    updater._targets_until = 0.0
    updater.update({keys[1]: Bars.empty()}, {})
    updater.fill(threading.Event())
    kept = {n: stack.client.get_indicators(n, None, timeframe, limit=1) for n in ("FB", "META")}
    assert tiers(kept["META"]) == "redis:1"
    same(kept["FB"], kept["META"])
    bars = stack.client.get_bars("META", timeframe, limit=80, adjustment="split")
    np.testing.assert_allclose(
        kept["META"]["sma_50"].iloc[-1], bars["close"].rolling(50).mean().iloc[-1], rtol=1e-9
    )


# -------------------------------------------------------------------------------------- ended


@pytest.fixture
def ended_stack(make_stack: Callable[..., Stack]) -> Stack:
    market = GeneratedMarket()
    market.add_action(Action("KO", date(2024, 2, 12), kind="cash_merger", amount=60.0))
    return make_stack(source=market)


def test_of_what_has_ended_nothing_after_the_end_is_asked_for(ended_stack: Stack) -> None:
    stack, get = ended_stack, ended_stack.client.get_bars
    whole = get("KO", **WINDOW)
    assert whole.index[-1] == pd.Timestamp("2024-02-09T05:00Z")
    stack.forget_calls()
    stack.flush_redis()
    stack.set_time("2024-03-28T12:00:00-04:00")
    same(get("KO", start="2024-01-02"), whole)
    assert len(get("KO", limit=20)) == 20
    same(get("KO", limit=20), whole[-20:])
    assert len(get("KO", start="2024-02-20")) == 0
    assert stack.calls() == 0
    stack.set_time("2024-06-03T12:00:00-04:00")
    assert len(get("KO", limit=5)) == 5
    assert stack.calls() == 0
    assert stack.client.gaps("KO", start="2024-01-02") == []
    assert not [s for s in stack.client.explain("KO", limit=20).spans if s.tier == "broker"]


def test_what_has_ended_is_not_kept_fresh(ended_stack: Stack) -> None:
    stack = ended_stack
    stack.client.get_bars("KO", **WINDOW)
    with pytest.warns(md.EndedSymbolWarning, match="KO .merged on 2024-02-12"):
        stack.client.subscribe("KO", "1day", owner="me")
    stack.forget_calls()
    report = Aggregator(runtime(stack.client), threading.Event()).cycle()
    assert stack.calls() == 0
    assert report.failed == ()
    assert runtime(stack.client).figures.look().wanted == {}
    runtime(stack.client).figures.close()
    plan = Backfill(runtime(stack.client)).plan(Wanted(symbols=("KO",), start="2024-01-02"))
    assert {k.timeframe.value for k in plan.audit.missing} == {"1min"}
    (span_,) = plan.audit.missing[next(iter(plan.audit.missing))]
    assert span_.end <= to_micros(datetime(2024, 2, 12, 6, tzinfo=UTC))


def test_a_symbol_that_ended_opens_again(make_stack: Callable[..., Stack]) -> None:
    market = GeneratedMarket()
    market.add_action(Action("KO", date(2024, 2, 12), kind="worthless_removal"))
    market.list_new("KO", date(2024, 3, 4), like="S00001")
    stack = make_stack(source=market)
    frame = stack.client.get_bars("KO", **WINDOW)
    assert frame.index[0] == pd.Timestamp("2024-03-04T05:00Z")
    assert len(frame) == 8
    stack.forget_calls()
    same(stack.client.get_bars("KO", **WINDOW), frame)
    assert stack.calls() == 0


# ------------------------------------------------------------------------- what runs by itself


def test_a_subscription_to_the_old_name_flows_on_under_the_new_one(
    stack: Stack, market: GeneratedMarket
) -> None:
    stack.client.get_bars("FB", limit=30)
    aggregator = Aggregator(
        runtime(stack.client), threading.Event(), wanted=lambda: [("FB", "1min"), ("FB", "1day")]
    )
    aggregator.cycle()
    stack.clock.advance(minutes=5)
    aggregator.cycle()
    stack.forget_calls()
    frame = stack.client.get_bars("FB", "1min", limit=5)
    assert tiers(frame) == "redis:1"
    assert stack.calls() == 0
    same(frame, stack.client.get_bars("META", "1min", limit=5))
    latest = stack.client.get_latest_bar("FB")
    assert latest.symbol == "FB"
    assert latest.timestamp >= frame.index[-1].to_pydatetime()
    trades = stack.client.get_latest_trade(["AAPL", "FB", "META"])
    assert list(trades.index) == ["AAPL", "FB", "META"]
    assert trades.loc["FB", "price"] == trades.loc["META", "price"]


def test_a_backfill_fills_both_names(stack: Stack, market: GeneratedMarket) -> None:
    stack.client.get_bars("FB", limit=5)
    wanted = Wanted(symbols=("FB",), timeframes=(Timeframe.DAY_1,), start="2023-06-01")
    report = Backfill(runtime(stack.client)).run(wanted)
    assert report.ended == "complete"
    assert {f.key.symbol for f in report.filled} <= {"FB", "META"}
    stack.forget_calls()
    frame = stack.client.get_bars("META", start="2023-06-01", end="2024-03-14")
    check(frame, truth(market, "2023-06-01", "2024-03-14"))
    assert stack.calls() == 0


def test_the_forming_bar_is_todays_names(stack: Stack) -> None:
    frames = [
        stack.client.get_bars(name, "1hour", limit=3, include_forming=True)
        for name in ("FB", "META")
    ]
    assert frames[0].index[-1] == pd.Timestamp("2024-03-14T18:30Z")
    assert len(frames[0]) == 4
    same(*frames)


def test_coverage_and_gaps_are_of_the_instrument(stack: Stack) -> None:
    stack.client.get_bars("META", **WINDOW)
    for name in ("FB", "META"):
        held = stack.client.coverage(name)
        assert len(held) == 1, held
        assert held[0].start <= datetime(2024, 1, 2, 6, tzinfo=UTC)
        assert stack.client.gaps(name, start="2024-01-02", end="2024-03-13") == []
        plan = stack.client.explain(name, start="2023-12-01")
        assert {s.symbol for s in plan.spans} == {name}
        assert plan.calls == 1


class Kept(list[tuple[str, Bars]]):
    """A file of bars that is none."""

    def write(self, symbol: str, bars: Bars) -> None:
        self.append((symbol, bars))


@pytest.mark.parametrize("timeframe", ["1day", "1week", "1month"])
def test_an_export_is_of_the_instrument(stack: Stack, timeframe: str) -> None:
    stack.client.get_bars("META", **WINDOW)
    read = stack.client.get_bars("META", timeframe, **WINDOW)
    window = Window(to_micros(read.index[0]), to_micros(read.index[-1]) + 1, None)
    for bounds in (window, None):
        wanted = Export("sandbox", "sip", ("FB",), Timeframe(timeframe), bounds)
        kept = Kept()
        report = export(runtime(stack.client), wanted, kept, Deadline(30))
        assert report.complete, report
        assert {symbol for symbol, _ in kept} == {"FB"}
        found = Bars.concat([bars for _, bars in kept])
        np.testing.assert_array_equal(found.values[3], read["close"])
        np.testing.assert_array_equal(found.values[4], read["volume"])


# -------------------------------------------------------------------------------------- search


def test_symbols_are_found_by_name_former_symbol_and_spelling(stack: Stack) -> None:
    stack.client.get_bars("FB", limit=5)
    find = stack.client.find_symbols
    found = find("fb")
    assert found["symbol"].iloc[0] == "META"
    assert found["former"].iloc[0] == "FB"
    assert found["name"].iloc[0] == "Meta Platforms (SIMULATED)"
    assert found["first_bar"].iloc[0] <= found["last_bar"].iloc[0]
    assert find("meta plat")["symbol"].iloc[0] == "META"
    assert find("Coca")["symbol"].iloc[0] == "KO"
    assert "AAPL" in set(find("APPL")["symbol"])
    assert find("AAP", limit=1)["symbol"].tolist() == ["AAPL"]
    assert len(find("zzzzqqq")) == 0
    assert "META" not in set(find("meta", active=False)["symbol"])
    stack.forget_calls()
    find("apple")
    assert stack.calls("/v2/assets") == 0, "asked once a day"
    stack.clock.advance(days=2)
    stack.sandbox.faults.add(Fault("status", match="/v2/assets", times=None, status=500))
    assert find("apple")["symbol"].iloc[0] == "AAPL", "what is stored is searched"
    with pytest.raises(md.RequestError):
        find(" ")
    with pytest.raises(md.RequestError):
        find("a", limit=0)


def test_names_and_validity_are_there_for_sql(stack: Stack) -> None:
    stack.client.get_bars("FB", limit=30)
    stack.client.find_symbols("meta")
    with psycopg.connect(stack.settings["database_url"]) as connection:
        connection.execute("SET search_path TO marketdata")
        names: dict[str, str] = dict(
            connection.execute("SELECT symbol, name FROM symbol_metadata").fetchall()
        )
        held = connection.execute(
            "SELECT symbol, lower(valid)::date::text, upper(valid)::date::text, instrument "
            "FROM instrument_symbols WHERE instrument IN ('FB', 'AAPL') ORDER BY valid"
        ).fetchall()
        instrument = connection.execute(
            "SELECT symbol, name, status FROM instruments WHERE instrument = 'FB'"
        ).fetchone()
    assert names["META"] == "Meta Platforms (SIMULATED)"
    assert set(held) == {
        ("FB", None, "2024-02-07", "FB"),
        ("META", "2024-02-07", None, "FB"),
        ("AAPL", None, None, "AAPL"),
    }
    assert instrument == ("META", "Meta Platforms (SIMULATED)", "active")


def test_a_symbol_that_is_listed_no_longer_ends_after_its_last_bar(stack: Stack) -> None:
    parts = runtime(stack.client)
    stack.client.get_bars("KO", **WINDOW)
    last = to_micros(datetime(2024, 3, 13, 4, tzinfo=UTC))
    stack.set_time("2024-04-04T12:00:00-04:00")
    key = SeriesKey("sandbox", "sip", "KO", Timeframe.DAY_1)
    covered = Span(last, to_micros(datetime(2024, 4, 3, 20, tzinfo=UTC)))
    parts.store.commit([Commit(key, Bars.empty(), covered, stack.clock.now_us())])
    gone = [Asset("KO", "Coca-Cola", "NYSE", "inactive")]
    parts.identity_store.record_assets("sandbox", gone, stack.clock.now_us(), complete=False)
    parts.identities.forget("sandbox")
    assert parts.identities.is_over("sandbox", "KO")
    stack.forget_calls()
    stack.set_time("2024-05-06T12:00:00-04:00")
    assert len(stack.client.get_bars("KO", start="2024-03-11")) == 3
    assert stack.calls() == 0
    again = [Asset("KO", "Coca-Cola", "NYSE", "active")]
    parts.identity_store.record_assets("sandbox", again, stack.clock.now_us(), complete=False)
    parts.identities.forget("sandbox")
    assert not parts.identities.is_over("sandbox", "KO")
    assert len(stack.client.get_bars("KO", start="2024-05-01")) == 3
    assert stack.calls() == 1


def test_a_list_of_assets_makes_what_it_lacks_inactive(stack: Stack) -> None:
    store, now_us = runtime(stack.client).identity_store, stack.clock.now_us()
    store.record_assets("x", [Asset("A", "Aa"), Asset("B", "Bb")], now_us, complete=True)
    store.record_assets("x", [Asset("B")], now_us + 1, complete=True)
    store.record_assets("x", [Asset("A", "older")], now_us, complete=False)
    found = {a.symbol: (a.name, a.status) for a in store.assets("x")}
    assert found == {"A": ("Aa", "inactive"), "B": ("Bb", "active")}
    assert store.assets_checked("x") == now_us + 1
    assert store.assets("x", ["A"])[0].symbol == "A"
