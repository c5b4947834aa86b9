"""Several brokers in order: who is asked for what, under which key, and what is said of it."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pytest
from sqlalchemy import text

import marketdata as md
from marketdata import chain
from marketdata.client import Client
from marketdata.errors import (
    AuthenticationError,
    BrokerError,
    BrokerTimeoutError,
    BrokerUnavailableError,
    ConfigurationError,
    DataUnavailableError,
    RequestError,
    UnknownSymbolError,
)
from marketdata.store import PostgresStore
from marketdata.warning_types import FallbackWarning, ProviderWarning
from tests.command_line import CommandLine, InProcess
from tests.stack import runtime, same, tiers
from tests.two_brokers import TwoBrokers

DAYS: dict[str, Any] = {"start": "2024-02-01", "end": "2024-03-01"}
OLD_MINUTES: dict[str, Any] = {"start": "2024-01-08T09:30-05:00", "end": "2024-01-08T16:00-05:00"}
NEW_MINUTES: dict[str, Any] = {"start": "2024-03-13T09:30-04:00", "end": "2024-03-13T16:00-04:00"}


def one(frame: pd.DataFrame, symbol: str) -> pd.DataFrame:
    """Return the rows of one symbol as a read of it alone gives them."""
    return cast(pd.DataFrame, frame.xs(symbol, level="symbol"))


def facts(frame: pd.DataFrame) -> dict[str, Any]:
    found = frame.attrs["marketdata"]
    text = "".join(f"{k}{v}" for k, v in found.items())
    assert len(text) < 1024
    assert all(isinstance(v, str | int | float | bool) for v in found.values())
    return dict(found)


def quietly(client: Client, *args: Any, **options: Any) -> pd.DataFrame:
    """Read, where a fallback is what is wanted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        return client.get_bars(*args, **options)


def keys(two: TwoBrokers) -> set[tuple[str, str, str]]:
    """Return provider, feed and symbol of every series with bars."""
    with PostgresStore(two.settings["database_url"]) as store:
        return {(k.provider, k.feed, k.symbol) for k in store.series(None)}


# ----------------------------------------------------------------------------- who is asked


def test_what_the_first_broker_has_never_asks_the_second(two: TwoBrokers) -> None:
    first = two.client.get_bars(["AAPL", "MSFT"], "1day", **DAYS)
    again = two.client.get_bars(["AAPL", "MSFT"], "1day", **DAYS)
    assert facts(first)["provider"] == two.first
    assert facts(first)["feed"] == "sip"
    assert "fallback" not in facts(first)
    same(first, again)
    assert two.calls()[1] == 0
    alone = two.connect("alpaca").get_bars(["AAPL", "MSFT"], "1day", **DAYS)
    same(first, alone)
    assert facts(alone)["fingerprint"] == facts(first)["fingerprint"]


def test_an_unknown_symbol_comes_whole_from_the_second_under_its_key(two: TwoBrokers) -> None:
    with pytest.warns(FallbackWarning, match=f"KO from {two.second}.*{two.first} does not know"):
        frame = two.client.get_bars(["KO", "AAPL", "MSFT"], "1day", **DAYS)
    assert facts(frame)["provider"] == f"{two.first}:2 {two.second}:1"
    assert facts(frame)["feed"] == "sip yahoo"
    assert facts(frame)["fallback"] == f"{two.second}: KO"
    assert f"{two.first}+{two.second}/sip+yahoo/" in facts(frame)["fingerprint"]
    assert keys(two) == {
        (two.first, "sip", "AAPL"),
        (two.first, "sip", "MSFT"),
        (two.second, "yahoo", "KO"),
    }
    alone = two.connect("yahoo").get_bars("KO", "1day", **DAYS)
    same(alone, one(frame, "KO"))
    assert frame.loc["AAPL"]["vwap"].notna().all()
    assert frame.loc["KO"]["vwap"].isna().all()


def test_the_answer_of_one_symbol_names_the_broker_that_gave_it(two: TwoBrokers) -> None:
    frame = quietly(two.client, "KO", "1day", **DAYS)
    assert facts(frame)["provider"] == two.second
    assert facts(frame)["feed"] == "yahoo"
    assert facts(frame)["fingerprint"].startswith(f"{two.second}/yahoo/KO@r")
    assert isinstance(frame.index, pd.DatetimeIndex)


def test_each_reason_is_said_once(two: TwoBrokers) -> None:
    with pytest.warns(FallbackWarning):
        two.client.get_bars("KO", "1day", **DAYS)
    two.client.get_bars("KO", "1day", **DAYS)
    two.client.get_bars("KO", "1day", start="2023-11-01", end="2023-12-01")


def test_a_symbol_unknown_to_the_first_is_not_asked_of_it_each_time(two: TwoBrokers) -> None:
    quietly(two.client, "KO", "1day", **DAYS)
    two.forget_calls()
    quietly(two.client, "KO", "1day", start="2023-10-02", end="2023-11-01")
    assert len(two.alpaca.requests) == 0
    assert two.calls()[1] > 0
    two.forget_calls()
    again = quietly(two.client, "KO", "1day", **DAYS)
    assert len(two.alpaca.requests) == len(two.yahoo.requests) == 0
    assert tiers(again) == "postgres:1"


def test_the_newest_bars_of_a_fallback_come_from_redis(two: TwoBrokers) -> None:
    quietly(two.client, "KO", "1day", limit=20)
    two.forget_calls()
    again = quietly(two.client, "KO", "1day", limit=20)
    assert tiers(again) == "redis:1"
    assert len(two.alpaca.requests) == len(two.yahoo.requests) == 0


def test_a_symbol_that_nobody_knows_is_unknown(two: TwoBrokers) -> None:
    with pytest.raises(
        UnknownSymbolError, match=f"{two.first} and {two.second} do not know NOSUCH"
    ):
        two.client.get_bars("NOSUCH", "1day", **DAYS)
    with pytest.warns(md.MissingSymbolsWarning):
        frame = two.client.get_bars(["NOSUCH", "AAPL"], "1day", missing="skip", **DAYS)
    assert facts(frame)["missing"] == "NOSUCH"
    assert set(frame.index.get_level_values("symbol")) == {"AAPL"}


def test_what_the_call_gets_wrong_is_never_passed_on(two: TwoBrokers) -> None:
    with pytest.raises(RequestError):
        two.client.get_bars("AAPL", "1day", feed="yahoo", **DAYS)
    with pytest.raises(RequestError):
        two.client.get_bars("AAPL", "1min", start="2024-03-01", end="2024-02-01")
    assert two.calls() == (0, 0)


# ------------------------------------------------------------------------------- entitlement


def test_data_not_entitled_comes_from_the_second(make_two: Callable[..., TwoBrokers]) -> None:
    two = make_two()
    two.alpaca.faults.add(
        "status", match="bars", status=403, times=None,
        body='{"message": "subscription does not permit querying this data"}',
    )  # fmt: skip
    with pytest.warns(FallbackWarning, match="403|permit|refuse"):
        frame = two.client.get_bars("AAPL", "1day", **DAYS)
    assert facts(frame)["provider"] == two.second
    two.forget_calls()
    quietly(two.client, "AAPL", "1day", start=DAYS["start"], end="2024-03-05")
    assert two.calls()[0] == 0, "what was refused a moment ago is asked again"


def test_refused_keys_are_a_failure_of_the_first(make_two: Callable[..., TwoBrokers]) -> None:
    two = make_two(market={"api_keys": ["another"]})
    with pytest.warns(FallbackWarning):
        frame = two.client.get_bars("AAPL", "1day", **DAYS)
    assert facts(frame)["provider"] == two.second
    with pytest.raises(AuthenticationError):
        two.connect("alpaca").get_bars("AAPL", "1day", **DAYS)


def test_yahoo_first_old_minutes_come_from_alpaca(two: TwoBrokers) -> None:
    client = two.connect("yahoo,alpaca")
    new = client.get_bars("AAPL", "1min", **NEW_MINUTES)
    assert facts(new)["provider"] == two.second
    assert len(new) > 300
    with pytest.warns(FallbackWarning, match="last 29 days"):
        old = client.get_bars("AAPL", "1min", **OLD_MINUTES)
    assert facts(old)["provider"] == two.first
    assert len(old) > 300
    same(old, two.connect("alpaca").get_bars("AAPL", "1min", **OLD_MINUTES))
    both = quietly(client, "AAPL", "1min", start=OLD_MINUTES["start"], end=NEW_MINUTES["end"])
    assert facts(both)["provider"] == two.first, "the window of a symbol is one provider's"
    assert both["vwap"].notna().all()


def test_a_limit_beyond_the_first_brokers_reach_comes_from_the_second(two: TwoBrokers) -> None:
    client = two.connect("yahoo,alpaca")
    frame = quietly(client, "AAPL", "1min", limit=9_000)
    assert facts(frame)["provider"] == two.first
    assert len(frame) == 9_000
    assert facts(frame)["truncated"] is False
    two.alpaca_is_down()
    two.yahoo.faults.clear()
    fewer = quietly(client, "MSFT", "1min", limit=9_000, timeout=10)
    assert facts(fewer)["provider"] == two.second, "what there is is better than nothing"
    assert facts(fewer)["truncated"] is True


# ----------------------------------------------------------------------------------- outages


def test_an_outage_of_the_first_in_the_middle(two: TwoBrokers) -> None:
    before = two.client.get_bars("AAPL", "1day", **DAYS)
    two.alpaca_is_down()
    with pytest.warns(FallbackWarning, match=f"MSFT from {two.second}"):
        frame = two.client.get_bars(["AAPL", "MSFT"], "1day", **DAYS)
    assert facts(frame)["provider"] == f"{two.first}:1 {two.second}:1"
    same(before, one(frame, "AAPL"))
    two.alpaca.faults.clear()
    _recover(two.client)
    after = two.client.get_bars(["AAPL", "MSFT"], "1day", **DAYS)
    assert facts(after)["provider"] == two.first, "the first broker answers again"
    assert after.loc["MSFT"]["vwap"].notna().all()


def _recover(client: Client) -> None:
    """Let the first broker's breaker and memory forget the outage, without waiting for it."""
    running = runtime(client)
    running.broker._data.caller.breaker.succeeded()  # type: ignore[attr-defined]
    running.chain._health[running.links[0]].down_until = 0.0


def test_a_symbol_stored_under_the_second_is_served_without_delay(two: TwoBrokers) -> None:
    quietly(two.client, "KO", "1day", **DAYS)
    two.alpaca_is_down("stall")
    fresh = two.connect(timeout=60)
    runtime(fresh)
    began = time.monotonic()
    first = quietly(fresh, "KO", "1day", **DAYS)
    assert time.monotonic() - began < 5.0, "of 60 seconds it may have one"
    began = time.monotonic()
    second = quietly(fresh, "KO", "1day", start="2024-02-05", end="2024-02-20")
    assert time.monotonic() - began < 0.9, "it was mute a moment ago"
    assert tiers(first) == tiers(second) == "postgres:1"
    assert facts(first)["provider"] == two.second


@pytest.mark.exact("it asserts on time")
def test_a_mute_first_broker_leaves_time_for_the_second(
    two: TwoBrokers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "RESERVED_SHARE", 0.9)  # a tenth is enough to wait for in a test
    two.connect("yahoo").get_bars("NVDA", "1day", **DAYS)  # yfinance takes seconds to import
    two.alpaca_is_down("stall")
    began = time.monotonic()
    frame = quietly(two.client, "AAPL", "1day", timeout=10, **DAYS)
    assert facts(frame)["provider"] == two.second
    assert 1.0 <= time.monotonic() - began < 6.0
    monkeypatch.setattr(chain, "RESERVED_SHARE", 0.1)
    began = time.monotonic()
    quietly(two.client, "MSFT", "1day", timeout=30, **DAYS)
    assert time.monotonic() - began < 6.0, "a broker that was just mute gets a second"


def test_a_covered_symbol_of_a_batch_stays_with_the_first(two: TwoBrokers) -> None:
    """The page of a failed walk that was finished counts: its symbols are the first broker's."""
    two.client.get_bars(["AAPL", "NVDA"], "1day", **DAYS)
    two.alpaca.faults.add("status", match="bars", status=500, times=None)
    frame = quietly(two.client, ["AAPL", "AMZN", "MSFT", "NVDA"], "1day", **DAYS)
    assert facts(frame)["provider"] == f"{two.first}:2 {two.second}:2"
    assert facts(frame)["fallback"] == f"{two.second}: AMZN MSFT"


def test_one_symbol_that_yahoo_cannot_give_does_not_take_the_others_along(
    make_two: Callable[..., TwoBrokers],
) -> None:
    two = make_two()
    two.yahoo.faults.add("status", match="chart/MSFT", status=400, times=None)
    client = two.connect("yahoo,alpaca")
    frame = quietly(client, ["AAPL", "MSFT", "NVDA"], "1day", **DAYS)
    assert facts(frame)["fallback"] == f"{two.first}: MSFT"
    assert frame.loc["MSFT"]["vwap"].notna().all()


def test_all_failing_is_one_typed_error_that_names_them_all(two: TwoBrokers) -> None:
    two.alpaca.faults.add("status", status=500, times=None)
    two.yahoo.faults.add("status", status=503, times=None)
    with pytest.raises(BrokerUnavailableError) as caught:
        two.client.get_bars("AAPL", "1day", timeout=10, **DAYS)
    error = caught.value
    assert error.transient
    assert f"{two.first}: " in error.message
    assert f"{two.second}: " in error.message
    assert error.facts["brokers"] == [two.first, two.second]
    assert error.facts["symbols"] == ["AAPL"]
    two.alpaca.faults.clear()
    two.yahoo.faults.clear()
    _recover(two.client)
    assert len(two.client.get_bars("AAPL", "1day", **DAYS)) == 20, "nothing was remembered as none"


def test_a_permanent_error_of_the_first_is_transient_where_the_second_may_answer(
    two: TwoBrokers,
) -> None:
    two.alpaca_is_down()
    client = two.connect("yahoo,alpaca")
    with pytest.raises(DataUnavailableError) as caught:
        client.get_bars("AAPL", "1min", timeout=10, **OLD_MINUTES)
    assert caught.value.transient
    assert "last 29 days" in caught.value.message
    assert f"{two.first}: " in caught.value.message


def test_unknown_to_the_first_and_an_outage_of_the_second_is_no_unknown_symbol(
    two: TwoBrokers,
) -> None:
    two.yahoo.faults.add("status", status=503, times=None)
    with pytest.raises(BrokerError) as caught:
        two.client.get_bars("KO", "1day", timeout=10, missing="skip", **DAYS)
    assert caught.value.transient
    assert f"{two.first} does not know it" in caught.value.message


def test_both_mute_end_at_the_deadline(two: TwoBrokers) -> None:
    two.alpaca_is_down("stall")
    two.yahoo.faults.add("stall", times=None)
    began = time.monotonic()
    with pytest.raises(BrokerTimeoutError):
        two.client.get_bars("AAPL", "1day", timeout=2, **DAYS)
    assert time.monotonic() - began < 3.5


def test_bars_of_two_brokers_never_meet_whatever_fails(two: TwoBrokers) -> None:
    """Threads read through a first broker that fails every third request: only Alpaca has vwap."""
    for nth in range(1, 60, 3):
        two.alpaca.faults.add("status", match="bars", status=500, nth=nth, times=1)
    symbols = ["AAPL", "AMZN", "KO", "MSFT", "NVDA", "TSLA"]
    months = [
        ("2023-10-02", "2023-12-01"),
        ("2023-11-01", "2024-02-01"),
        ("2024-01-02", "2024-03-01"),
    ]
    expected = [43, 62, 41]  # sessions
    outcomes: list[object] = []

    def one(seed: int) -> None:
        try:
            for at in range(len(months)):
                start, end = months[(at + seed) % len(months)]
                asked = [*symbols[seed % 3 :], symbols[0]]
                frame = two.client.get_bars(asked, "1day", start=start, end=end, timeout=60)
                counts = frame.groupby("symbol")["vwap"].agg(["size", "count"])
                whole = counts["count"].isin([0]) | (counts["count"] == counts["size"])
                outcomes.append(bool(whole.all()))
                outcomes.append(set(counts["size"]) == {expected[(at + seed) % len(months)]})
        except BaseException as error:
            outcomes.append(error)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        threads = [threading.Thread(target=one, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(90)
    assert outcomes == [True] * 18
    with PostgresStore(two.settings["database_url"]) as store, store.database.connect() as base:
        rows = base.execute(
            "SELECT provider, count(*) FILTER (WHERE vwap <> 'NaN') > 0, "
            "count(*) FILTER (WHERE coalesce(vwap, 'NaN') = 'NaN') > 0 FROM marketdata.market_data_bars GROUP BY provider"
        ).fetchall()
    assert set(rows) == {(two.first, True, False), (two.second, False, True)}


# ------------------------------------------------------------------------- adjusted, forming


def test_each_symbol_is_adjusted_with_its_own_brokers_actions(
    make_two: Callable[..., TwoBrokers],
) -> None:
    two = make_two(hidden=("WMT",))
    asked: dict[str, Any] = {"start": "2024-02-20", "end": "2024-03-05", "adjustment": "split"}
    frame = quietly(two.client, ["AAPL", "WMT"], "1day", **asked)
    assert facts(frame)["provider"] == f"{two.first}:1 {two.second}:1"
    same(one(frame, "WMT"), two.connect("yahoo").get_bars("WMT", "1day", **asked))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        raw = two.client.get_bars("WMT", "1day", start=asked["start"], end=asked["end"])
    assert raw["close"].iloc[0] / frame.loc["WMT"]["close"].iloc[0] == pytest.approx(3.0)


def test_an_adjusted_read_whose_actions_cannot_be_had_goes_on_whole(two: TwoBrokers) -> None:
    two.alpaca.faults.add("status", match="corporate-actions", status=500, times=None)
    raw = two.client.get_bars("AAPL", "1day", start="2024-03-01", end="2024-03-08")
    assert facts(raw)["provider"] == two.first
    frame = quietly(
        two.client, "AAPL", "1day", start="2024-03-01", end="2024-03-08", adjustment="split"
    )
    assert facts(frame)["provider"] == two.second
    same(
        frame,
        two.connect("yahoo").get_bars(
            "AAPL", "1day", start="2024-03-01", end="2024-03-08", adjustment="split"
        ),
    )


def test_the_forming_bar_is_the_same_brokers(make_two: Callable[..., TwoBrokers]) -> None:
    two = make_two(hidden=("KO",), at="2024-03-14T15:03:30-04:00")
    frame = quietly(two.client, ["AAPL", "KO"], "5min", limit=3, include_forming=True)
    assert facts(frame)["forming"] is True
    assert len(frame.loc["AAPL"]) == len(frame.loc["KO"]) == 4
    assert frame.loc["AAPL"]["vwap"].notna().all()
    assert frame.loc["KO"]["vwap"].isna().all()


# ------------------------------------------------------------------------------------ latest


def test_latest_bars_fall_through_and_trades_only_where_there_are_any(two: TwoBrokers) -> None:
    with pytest.warns(FallbackWarning, match=f"KO from {two.second}"):
        frame = two.client.get_latest_bar(["AAPL", "KO", "MSFT"])
    assert frame["close"].notna().all()
    assert frame["vwap"].notna().tolist() == [True, False, True]
    assert two.client.get_latest_bar("KO").close > 0
    with pytest.raises(DataUnavailableError, match=r"no latest trade of KO.*Yahoo has no trades"):
        two.client.get_latest_trade("KO")
    trades = two.client.get_latest_trade(["AAPL", "KO"])
    assert trades["price"].notna().tolist() == [True, False]
    with pytest.warns(FallbackWarning, match="Yahoo has no snapshots"):
        shots = two.connect("yahoo,alpaca").get_snapshots(["AAPL"])
    assert shots["daily_close"].notna().all()


def test_the_latest_bar_in_an_outage(two: TwoBrokers) -> None:
    two.alpaca_is_down()
    with pytest.warns(FallbackWarning):
        assert two.client.get_latest_bar("AAPL", timeout=10).close > 0
    two.yahoo.faults.add("status", status=503, times=None)
    with pytest.raises(BrokerUnavailableError) as caught:
        two.client.get_latest_bar("MSFT", timeout=5)
    assert caught.value.facts["brokers"] == [two.first, two.second]


@pytest.mark.parametrize("stored", [False, True])
def test_a_subscription_to_what_only_the_second_knows_is_refused(
    two: TwoBrokers, stored: bool
) -> None:
    if stored:
        quietly(two.client, "KO", "1day", **DAYS)
    calls: list[Callable[[], object]] = [
        lambda: two.client.subscribe(["AAPL", "KO"], "1day"),
        lambda: two.client.follow("KO", "1day"),
    ]
    for refused in calls:
        with pytest.raises(UnknownSymbolError, match=f"{two.first} does not know KO") as caught:
            refused()
        assert f"{two.second} knows KO" in str(caught.value.cure)
        assert "marketdata backfill KO --broker yahoo" in str(caught.value.cure)
    with pytest.raises(UnknownSymbolError) as caught:
        two.client.subscribe("NOSUCH", "1day")
    assert two.second not in str(caught.value)


# -------------------------------------------------------------------------------- indicators


def compute(client: Client, *args: Any, **options: Any) -> pd.DataFrame:
    """Compute indicators, where a fallback is what is wanted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        return client.get_indicators(*args, **options)


def near(left: pd.DataFrame, right: pd.DataFrame) -> None:
    """Assert what holds of values computed from other beginnings."""
    assert len(left)
    pd.testing.assert_frame_equal(left, right, check_exact=False, rtol=1e-9, check_freq=False)


@pytest.mark.filterwarnings("ignore::marketdata.warning_types.ProviderWarning")
@pytest.mark.parametrize(
    "asked", [{"limit": 5}, DAYS, {"limit": 5, "bars": True}, {"limit": 5, "adjustment": "all"}]
)
def test_indicators_come_whole_from_the_broker_that_has_the_bars(
    two: TwoBrokers, asked: dict[str, Any]
) -> None:
    with pytest.warns(FallbackWarning, match=f"KO from {two.second}.*{two.first} does not know"):
        frame = two.client.get_indicators(["KO", "AAPL", "MSFT"], timeframe="1day", **asked)
    told = facts(frame)
    assert told["provider"] == f"{two.first}:2 {two.second}:1"
    assert told["feed"] == "sip yahoo"
    assert told["fallback"] == f"{two.second}: KO"
    assert told["unstabilised"] is False
    rows = quietly(two.client, ["KO", "AAPL", "MSFT"], "1day", **DAYS)
    order = [*rows.index.get_level_values("symbol").unique()]
    assert [*frame.index.get_level_values("symbol").unique()] == order
    assert frame["sma_200"].notna().all(), "with the history before it"
    alone = two.connect("yahoo").get_indicators("KO", timeframe="1day", **asked)
    near(alone, one(frame, "KO"))
    first = two.connect("alpaca").get_indicators(["AAPL", "MSFT"], timeframe="1day", **asked)
    for symbol in ("AAPL", "MSFT"):
        near(one(first, symbol), one(frame, symbol))
    # An indicator is of the bars that get_bars returns.
    bars = quietly(two.client, "KO", "1day", limit=10, adjustment=told["adjustment"])
    mean = compute(two.client, "KO", "sma_10", limit=1, adjustment=told["adjustment"])
    assert mean["sma_10"].iloc[-1] == pytest.approx(bars["close"].mean(), rel=1e-9)


def test_indicators_of_what_the_first_has_never_ask_the_second(two: TwoBrokers) -> None:
    first = two.client.get_indicators(["AAPL", "MSFT"], "sma_10", limit=5)
    again = two.client.get_indicators(["AAPL", "MSFT"], "sma_10", limit=5)
    same(first, again)
    assert tiers(again) == "redis:2"
    assert "fallback" not in facts(again)
    assert two.calls()[1] == 0
    with pytest.raises(
        UnknownSymbolError, match=f"{two.first} and {two.second} do not know NOSUCH"
    ):
        two.client.get_indicators("NOSUCH", "sma_10", limit=5)
    with pytest.warns(md.MissingSymbolsWarning):
        frame = two.client.get_indicators(["NOSUCH", "AAPL"], "sma_10", limit=5, missing="skip")
    assert facts(frame)["missing"] == "NOSUCH"


def test_kept_values_are_the_first_brokers_alone(two: TwoBrokers) -> None:
    mixed = compute(two.client, ["AAPL", "KO"], limit=5)
    two.forget_calls()
    again = compute(two.client, ["AAPL", "KO"], limit=5)
    same(mixed, again)
    assert tiers(again) == "redis:1 postgres:1", "AAPL's values, KO's bars"
    assert len(two.alpaca.requests) == len(two.yahoo.requests) == 0
    with PostgresStore(two.settings["database_url"]) as store:
        rows = store.database.run(
            lambda c: c.execute(
                text("SELECT DISTINCT provider, symbol FROM indicator_series")
            ).all()
        )
    assert rows == [(two.first, "AAPL")]


def test_indicators_in_an_outage_of_the_first(two: TwoBrokers) -> None:
    before = two.client.get_indicators("AAPL", "rsi_14", **DAYS)
    two.alpaca_is_down()
    with pytest.warns(FallbackWarning, match=f"MSFT from {two.second}"):
        frame = two.client.get_indicators(["AAPL", "MSFT"], "rsi_14", timeout=20, **DAYS)
    assert facts(frame)["provider"] == f"{two.first}:1 {two.second}:1"
    same(before, one(frame, "AAPL"))
    near(two.connect("yahoo").get_indicators("MSFT", "rsi_14", **DAYS), one(frame, "MSFT"))
    two.yahoo.faults.add("status", status=503, times=None)
    with pytest.raises(BrokerError) as caught:
        two.client.get_indicators("NVDA", "rsi_14", timeout=10, **DAYS)
    assert caught.value.transient
    assert caught.value.facts["brokers"] == [two.first, two.second]


def test_history_that_the_first_does_not_reach_leaves_the_window_with_it(two: TwoBrokers) -> None:
    """As for bars the window decides who answers; where that is beyond reach, the next one does."""
    client = two.connect("yahoo,alpaca")
    day: dict[str, Any] = {"start": "2024-02-15T09:30-05:00", "end": "2024-02-15T16:00-05:00"}
    with pytest.warns(md.ShortHistoryWarning, match=f"{two.second} gives"):
        new = client.get_indicators("AAPL", "sma_500", "1min", **day)
    assert facts(new)["provider"] == facts(client.get_bars("AAPL", "1min", **day))["provider"]
    assert facts(new)["provider"] == two.second
    assert facts(new)["unstabilised"]
    assert len(new) > 300
    old = compute(client, "AAPL", "sma_10", "1min", **OLD_MINUTES)
    assert facts(old)["provider"] == two.first
    near(old, two.connect("alpaca").get_indicators("AAPL", "sma_10", "1min", **OLD_MINUTES))


@pytest.mark.filterwarnings("ignore::marketdata.warning_types.ProviderWarning")
def test_the_forming_values_are_the_same_brokers(make_two: Callable[..., TwoBrokers]) -> None:
    two = make_two(hidden=("KO",), at="2024-03-14T15:03:30-04:00")
    asked: dict[str, Any] = {"timeframe": "5min", "limit": 3, "include_forming": True}
    frame = compute(two.client, ["AAPL", "KO"], "sma_10", **asked)
    assert facts(frame)["forming"] is True
    assert len(frame.loc["AAPL"]) == len(frame.loc["KO"]) == 4
    near(two.connect("yahoo").get_indicators("KO", "sma_10", **asked), one(frame, "KO"))


def test_hot_indicators_of_a_chain_cost_no_more_than_one_brokers(two: TwoBrokers) -> None:
    clients = {"one": two.connect("alpaca"), "two": two.client}
    best = dict.fromkeys(clients, 1.0)
    for client in clients.values():
        client.get_indicators("AAPL", "rsi_14", limit=1)
    for _ in range(40):
        for name, client in clients.items():
            for _ in range(5):
                began = time.perf_counter()
                client.get_indicators("AAPL", "rsi_14", limit=1)
                best[name] = min(best[name], time.perf_counter() - began)
    assert best["two"] < best["one"] * 1.5


# -------------------------------------------------------------------------- declared, and one


def test_a_declared_chain_warns_of_no_foreign_provider(two: TwoBrokers) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ProviderWarning)
        quietly(two.client, ["AAPL", "KO"], "1day", **DAYS)
        quietly(two.connect("yahoo,alpaca"), ["AAPL", "KO"], "1day", **DAYS)
    with PostgresStore(two.settings["database_url"]) as store:
        assert store.recorded() == (two.first, "sip"), "the primary one's, whoever wrote first"


def test_the_record_is_the_primarys_where_the_second_writes_first(two: TwoBrokers) -> None:
    two.alpaca_is_down()
    quietly(two.client, "AAPL", "1day", timeout=10, **DAYS)
    with PostgresStore(two.settings["database_url"]) as store:
        assert store.recorded() == (two.first, "sip")


def test_the_feed_is_the_primarys(two: TwoBrokers) -> None:
    frame = quietly(two.client, ["AAPL", "KO"], "1day", feed="iex", **DAYS)
    assert facts(frame)["feed"] == "iex yahoo"


def test_stored_bars_alone_stay_a_choice_of_their_own(two: TwoBrokers) -> None:
    for chosen in ("auto,yahoo", "yahoo,none", "yahoo,yahoo", "alpaca,nosuch"):
        with pytest.raises(ConfigurationError):
            two.connect(chosen)
    with pytest.raises(ConfigurationError, match="never completed with real ones"):
        runtime(two.connect("sandbox,yahoo", yahoo_url=None))


def test_a_chain_may_be_a_list(two: TwoBrokers) -> None:
    client = two.connect(["yahoo", "alpaca"])  # type: ignore[arg-type]
    assert [link.source.kind for link in runtime(client).links] == ["yahoo", "alpaca"]
    assert client._settings.broker == "yahoo,alpaca"


# ------------------------------------------------------------------------------------ cost


def test_a_hot_read_of_a_chain_costs_no_more_than_one_broker(two: TwoBrokers) -> None:
    """Best of many: the chain adds a few microseconds to a hit in Redis."""
    single = two.connect("alpaca")
    clients = {"one": single, "two": two.client}
    best = dict.fromkeys(clients, 1.0)
    for client in clients.values():
        client.get_bars("AAPL", "1day", limit=200)
    for _ in range(40):
        for name, client in clients.items():
            for _ in range(5):
                began = time.perf_counter()
                client.get_bars("AAPL", "1day", limit=200)
                best[name] = min(best[name], time.perf_counter() - began)
    assert best["two"] < best["one"] * 1.5


# ------------------------------------------------------------------------- the command line


@pytest.fixture
def command(
    two: TwoBrokers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> CommandLine:
    names = ("database_url", "redis_url", "alpaca_url", "alpaca_trading_url", "yahoo_url")
    line = CommandLine(
        tmp_path,
        broker="alpaca,yahoo",
        clock=repr(two.clock),
        **{n: two.settings[n] for n in names},
    )
    line.environment |= {"APCA_API_KEY_ID": "id", "APCA_API_SECRET_KEY": "secret"}
    return InProcess(line, monkeypatch, capsys)


def test_doctor_status_and_config_show_the_chain(two: TwoBrokers, command: CommandLine) -> None:
    two.alpaca.faults.add("status", status=401, times=None)
    told = command("doctor")
    assert f"{two.first}, feed sip (MARKETDATA_BROKER=alpaca,yahoo)" in told.out
    assert f"then {two.second}, feed yahoo" in told.out
    assert f"none needed: {two.second} answers" in told.out, "whatever becomes of the first"
    assert told.code != 0
    assert "alpaca, then yahoo" in command("status").out
    assert "alpaca,yahoo" in command("config").out
    two.alpaca.faults.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        bars = command("bars", "KO", "-n", "3", "--json", "--broker", "alpaca,yahoo")
    assert bars.code == 0, bars.err
    assert f"KO from {two.second}" in bars.err
    assert two.second in bars.out
