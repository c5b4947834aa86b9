"""A broker on its bad days, seen through `get_bars`: what is stored, what is said, what comes next.

The adapters' own tests show how each answer is read; here the whole stack shows that nothing is
taken as covered beyond what was proven, that an error is typed, in time and never remembered, and
that the next call gives every bar once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import date
from typing import Any

import pandas as pd
import psycopg
import pytest
import redis

import marketdata as md
from marketdata.sandbox import Fault
from marketdata.store import PostgresStore
from tests.stack import BARS, Stack, pages, runtime, same, tiers
from tests.stack_callers import ask, ask_together, block_names, long_listed

DAY: dict[str, Any] = {"timeframe": "1min", "start": "2024-03-13", "end": "2024-03-14"}
FIVE = ["AAPL", "MSFT", "NVDA", "SPY", "TSLA"]


def fresh_answer(stack: Stack, symbols: object, **question: Any) -> pd.DataFrame:
    """Return what a client without a past gets, and forget that it asked."""
    with PostgresStore(stack.settings["database_url"], schema="fresh") as store:
        store.migrate()
    with stack.connect(database_schema="fresh") as client:
        frame = client.get_bars(symbols, **question)  # type: ignore[arg-type]
    stack.forget_calls()
    return frame


def stored(stack: Stack) -> dict[str, int]:
    """Return how many bars and covered ranges the database holds, and blocks Redis."""
    with psycopg.connect(stack.settings["database_url"]) as connection:
        connection.execute("SET search_path = marketdata")
        bars = connection.execute("SELECT count(*) FROM market_data_bars").fetchone()
        ranges = connection.execute(
            "SELECT coalesce(sum(cardinality(array(SELECT unnest(coverage)))), 0) FROM series"
        ).fetchone()
    with redis.Redis.from_url(stack.settings["redis_url"]) as server:
        blocks = block_names(server)
    assert bars is not None
    assert ranges is not None
    return {"bars": bars[0], "ranges": int(ranges[0]), "blocks": len(blocks)}


NOTHING = {"bars": 0, "ranges": 0, "blocks": 0}


def test_fault_01_page_two_fails(stack: Stack) -> None:
    expected = fresh_answer(stack, FIVE, **DAY)
    faults = stack.sandbox.faults
    faults.add(Fault("status", match=BARS, nth=2, times=None, status=500))
    faults.add(Fault("short_page", match=BARS, times=None, limit=2000))
    with pytest.raises(md.BrokerUnavailableError) as caught:
        stack.client.get_bars(FIVE, **DAY)
    assert caught.value.transient
    # 2,000 rows are two whole symbols and the beginning of the third; nothing of the others.
    covered = {s: stack.client.coverage(s, "1min") for s in FIVE}
    assert [len(covered[s]) for s in FIVE] == [1, 1, 1, 0, 0]
    whole, part = covered["MSFT"][0], covered["NVDA"][0]
    assert part.end < whole.end
    kept = stack.client.get_bars(
        "NVDA", "1min", start=DAY["start"], end=part.end, session="extended"
    )
    assert stack.calls() == 1 + 3, "what the first page proved was asked again"
    faults.clear()
    assert kept.index[-1] + pd.Timedelta("1min") == pd.Timestamp(part.end)
    stack.forget_calls()
    again = stack.client.get_bars(FIVE, **DAY)
    same(again, expected)
    assert again.index.is_unique
    asked = {
        s for r in stack.sandbox.requests.matching(BARS) for s in r.params["symbols"].split(",")
    }
    assert asked == {"NVDA", "SPY", "TSLA"}, "whole symbols are not fetched twice"


@pytest.mark.parametrize("kind", ["empty_token", "same_token"])
def test_fault_02_a_token_that_leads_nowhere(stack: Stack, kind: Any) -> None:
    expected = fresh_answer(stack, "AAPL", **DAY)
    faults = stack.sandbox.faults
    # A short first page, and then a token that is empty or repeats.
    faults.add(Fault("short_page", match=BARS, limit=300))
    faults.add(Fault(kind, match=BARS, nth=2, times=None))
    with pytest.raises(md.BrokerResponseError) as caught:
        stack.client.get_bars("AAPL", **DAY)
    assert not caught.value.transient
    assert stack.calls() <= 3
    found = stored(stack)
    assert (found["bars"], found["ranges"], found["blocks"]) == (300, 1, 0)
    faults.clear()
    same(stack.client.get_bars("AAPL", **DAY), expected)


def test_fault_03_a_server_that_never_answers(stack: Stack) -> None:
    stack.sandbox.faults.add(Fault("stall", match="symbols=AAPL", times=None))
    stalled: list[Any] = []
    thread = threading.Thread(
        target=lambda: stalled.append(ask(stack.client, {"symbols": "AAPL", **DAY, "timeout": 2.0}))
    )
    thread.start()
    others = ask_together(stack.client, [{"symbols": s, **DAY} for s in FIVE[1:]])
    assert [o.error for o in others] == [""] * 4, "other symbols are not affected"
    thread.join()
    assert stalled[0].error == "BrokerTimeoutError"
    assert stalled[0].seconds < 3.0
    assert stack.client.coverage("AAPL", "1min") == []
    stack.sandbox.faults.clear()
    assert ask(stack.client, {"symbols": "AAPL", **DAY}).rows > 300


def test_fault_04_429_under_50_callers(stack: Stack) -> None:
    refused = stack.sandbox.faults.add(Fault("rate_limit", match=BARS, seconds=2.0))
    questions = [{"symbols": s, "timeframe": "1day", "limit": 5} for s in long_listed(stack, 50)]
    first = threading.Thread(target=lambda: ask(stack.client, questions[0]))
    first.start()
    assert refused.wait_fired()
    # The refusal is known once the budget is paused in the database, for every process.
    gate = runtime(stack.client).broker._data.caller.gate  # type: ignore[attr-defined]
    while gate._paused_until < time.monotonic():
        time.sleep(0.005)
    with stack.connect() as other:
        outcomes = [
            *ask_together(stack.client, questions[:25]),
            *ask_together(other, questions[25:]),
        ]
    first.join()
    assert {o.error for o in outcomes} == {""}
    early = [
        r for r in stack.sandbox.requests.matching(BARS)
        if r.status != 429 and r.time < refused.blocked_until
    ]  # fmt: skip
    assert early == []
    assert sum(r.status == 429 for r in stack.sandbox.requests.matching(BARS)) == 1


BROKEN: list[tuple[str, type[md.MarketDataError]]] = [
    ("cut", md.BrokerResponseError),
    ("json", md.BrokerResponseError),
    ("bars_null", md.BrokerResponseError),
    ("gzip", md.BrokerResponseError),
    ("html", md.BrokerUnavailableError),
    ("reset", md.BrokerUnavailableError),
]


@pytest.mark.parametrize(("kind", "error"), BROKEN, ids=[k for k, _ in BROKEN])
def test_fault_05_a_broken_answer_stores_nothing(
    stack: Stack, kind: Any, error: type[md.MarketDataError]
) -> None:
    stack.sandbox.faults.add(Fault(kind, match=BARS, times=None))
    with pytest.raises(error) as caught:
        stack.client.get_bars("AAPL", **DAY)
    assert caught.value.transient
    assert stored(stack) == NOTHING
    assert stack.calls() <= 3
    stack.sandbox.faults.clear()
    stack.sandbox.faults.add(Fault(kind, match=BARS))  # once is repaired on the way
    frame = stack.client.get_bars("AAPL", **DAY)
    assert len(frame) > 300
    assert pages(frame) == 1
    same(frame, fresh_answer(stack, "AAPL", **DAY))


def test_fault_06_recent_sip_is_delayed_and_never_iex(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack(market={"entitled_sip": False})
    with pytest.warns(md.DelayedDataWarning, match="16 minutes") as said:
        frame = stack.client.get_bars("AAPL", "1min", limit=100)
    assert [w.filename for w in said] == [__file__], "the warning points at the caller"
    # 15:00:30 less 16 minutes: the last bar opened at 14:43.
    assert frame.index[-1] == pd.Timestamp("2024-03-14T14:43", tz="America/New_York")
    facts = frame.attrs["marketdata"]
    assert facts["delayed"] is True
    assert facts["feed"] == "sip"
    statuses = [r.status for r in stack.sandbox.requests.matching(BARS)]
    assert statuses == [403, 200], "one refusal, then the clamped request"
    assert {r.params["feed"] for r in stack.sandbox.requests.matching(BARS)} == {"sip"}
    (covered,) = stack.client.coverage("AAPL", "1min")
    assert covered.end == pd.Timestamp("2024-03-14T14:44", tz="America/New_York")
    # The refusal was learnt: it costs nothing a second time, for other symbols too.
    stack.forget_calls()
    stack.client.get_bars(["MSFT", "SPY"], "1min", limit=50)
    assert [r.status for r in stack.sandbox.requests.matching(BARS)] == [200]
    assert stack.client.coverage("AAPL", "1min", feed="iex") == []


@pytest.mark.filterwarnings("ignore::marketdata.DelayedDataWarning")
def test_fault_06_callers_who_waited_for_the_refused_one_are_served(
    make_stack: Callable[..., Stack],
) -> None:
    stack = make_stack(market={"entitled_sip": False})
    question = {"symbols": "AAPL", "timeframe": "1min", "limit": 100}
    outcomes = ask_together(stack.client, [question] * 30)
    assert {o.error for o in outcomes} == {""}
    assert len({o.digest for o in outcomes}) == 1
    statuses = sorted(r.status for r in stack.sandbox.requests.matching(BARS))
    assert statuses == [200, 403]


@pytest.mark.parametrize(
    "step", ["planned_spans", "_fill", "_planned", "_plan", "segments", "_fetch"]
)
@pytest.mark.filterwarnings("ignore::marketdata.DelayedDataWarning")
def test_a_delay_learnt_while_another_call_plans(
    make_stack: Callable[..., Stack], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Before each step of the first plan, another caller is taught the delay."""
    stack = make_stack(market={"entitled_sip": False})
    reader = runtime(stack.client).series_reader
    plain = getattr(reader, step)

    def learnt_before(*arguments: Any) -> Any:
        monkeypatch.undo()
        stack.client.get_bars("MSFT", "1min", limit=100)
        return plain(*arguments)

    monkeypatch.setattr(reader, step, learnt_before)
    assert len(stack.client.get_bars("AAPL", "1min", limit=100)) == 100
    asked = [(r.status, r.params["symbols"]) for r in stack.sandbox.requests.matching(BARS)]
    assert asked == [(403, "MSFT"), (200, "MSFT"), (200, "AAPL")]


def test_fault_06_no_entitlement_at_all_is_a_typed_error(stack: Stack) -> None:
    body = '{"message": "subscription does not permit this feed"}'
    stack.sandbox.faults.add(Fault("status", match=BARS, times=None, status=403, body=body))
    with pytest.raises(md.DataUnavailableError):
        stack.client.get_bars("AAPL", **DAY)
    assert stack.calls() == 1, "a refusal is not retried"
    assert stored(stack) == NOTHING


def test_a_refused_key_is_typed_and_remembered_nowhere(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack(market={"api_keys": ["somebody-else"]})
    with pytest.raises(md.AuthenticationError, match="doctor"):
        stack.client.get_bars("AAPL", **DAY)
    assert stack.calls() == 1
    assert stored(stack) == NOTHING
    stack.sandbox.guard.api_keys = None
    assert len(stack.client.get_bars("AAPL", **DAY)) > 300


def test_fault_07_dirty_rows_go_and_the_good_ones_stay(stack: Stack) -> None:
    expected = fresh_answer(stack, "AAPL", session="extended", **DAY)
    dirt: Any = ("nan", "null", "infinite", "negative_volume", "zero_price", "high_below_low",
            "off_grid", "out_of_window", "duplicate", "unsorted", "wrong_symbol")  # fmt: skip
    stack.sandbox.faults.add(Fault("bad_rows", match=BARS, rows=dirt))
    frame = stack.client.get_bars("AAPL", session="extended", **DAY)
    # Rows 1 to 8 were damaged; the last one came twice, the later with another close.
    good = expected.drop(expected.index[1:9])
    same(frame.iloc[:-1], good.iloc[:-1])
    assert frame.index[-1] == expected.index[-1]
    assert frame.attrs["marketdata"]["rejected_bars"] == 8 + 1 + 1
    counts = stack.client.stats()
    assert counts["bars_rejected_price"] == 4
    assert counts["bars_rejected_wrong_symbol"] == 1
    assert counts["bars_rejected_out_of_window"] == 1
    assert counts["bars_rejected_duplicate"] == 1
    known = runtime(stack.client).store.known_symbols()
    assert known == ["AAPL"], "a symbol nobody asked for is nobody's"
    stack.flush_redis()
    same(stack.client.get_bars("AAPL", session="extended", **DAY), frame)


def test_fault_08_an_open_above_the_high_is_kept_and_flagged(stack: Stack) -> None:
    stack.sandbox.faults.add(Fault("bad_rows", match=BARS, rows=("open_above_high",)))
    frame = stack.client.get_bars("AAPL", session="extended", **DAY)
    odd = frame[frame["open"] > frame["high"]]
    assert len(odd) == 1
    assert odd["open"].iloc[0] == pytest.approx(odd["high"].iloc[0] + 0.01)
    assert frame.attrs["marketdata"]["flagged_bars"] == 1
    assert "rejected_bars" not in frame.attrs["marketdata"]
    stack.flush_redis()
    same(stack.client.get_bars("AAPL", session="extended", **DAY), frame)


@pytest.fixture
def yahoo(make_stack: Callable[..., Stack]) -> Stack:
    return make_stack(market={"live_row": True}, broker="none")


def yahoo_client(stack: Stack) -> md.Client:
    return stack.connect(broker="yahoo", yahoo_url=stack.sandbox.url, database_schema="marketdata")


CHART = "/v8/finance/chart"


def test_fault_09_yahoo_500_then_ok(yahoo: Stack) -> None:
    window: dict[str, Any] = {"start": "2024-02-01", "end": "2024-03-01"}
    with yahoo_client(yahoo) as client:
        yahoo.sandbox.faults.add(Fault("status", match=CHART, times=None, status=500))
        with pytest.raises(md.BrokerError) as caught:
            client.get_bars("AAPL", "1day", **window)
        assert caught.value.transient
        assert "delisted" not in str(caught.value)
        assert stored(yahoo) == NOTHING
        yahoo.sandbox.faults.clear()
        yahoo.forget_calls()
        frame = client.get_bars("AAPL", "1day", **window)
        assert yahoo.sandbox.requests.count(CHART) >= 1, "the second call hits the network"
        assert len(frame) == 20
        assert frame.attrs["marketdata"]["provider"] != "sandbox"


def test_fault_10_yahoos_live_row_is_never_final(yahoo: Stack) -> None:
    yahoo.set_time("2024-03-14T15:00:23-04:00")
    with yahoo_client(yahoo) as client:
        minutes = client.get_bars("AAPL", "1min", limit=30)
        assert minutes.index[-1] < pd.Timestamp("2024-03-14T15:00", tz="America/New_York")
        assert (pd.DatetimeIndex(minutes.index).second == 0).all()
        days = client.get_bars("AAPL", "1day", limit=5, tz=None)
        assert str(days.index[-1].date()) == "2024-03-13"
    with psycopg.connect(yahoo.settings["database_url"]) as connection:
        newest = connection.execute(
            "SELECT timeframe, max(timestamp) FROM marketdata.market_data_bars GROUP BY 1"
        ).fetchall()
    held = {name: pd.Timestamp(moment) for name, moment in newest}
    assert held["1min"] < pd.Timestamp("2024-03-14T19:00Z")
    assert held["1day"] == pd.Timestamp("2024-03-13T04:00Z")


def test_one_malformed_symbol_does_not_fail_its_batch_of_200(stack: Stack) -> None:
    symbols = [f"S{n:05}" for n in range(200)]
    symbols[117] = "BAD.X.Y"
    body = '{"message": "invalid symbol: BAD.X.Y"}'
    stack.sandbox.faults.add(Fault("status", match="BAD.X.Y", times=None, status=400, body=body))
    with pytest.warns(md.MissingSymbolsWarning, match="BAD.X.Y"):
        frame = stack.client.get_bars(symbols, "1day", limit=2, missing="skip")
    found = set(frame.index.get_level_values("symbol"))
    assert len(found) > 150
    assert "BAD.X.Y" not in found
    assert stack.calls() <= 4
    with pytest.raises(md.UnknownSymbolError, match=r"BAD\.X\.Y"):
        stack.client.get_bars(["AAPL", "BAD.X.Y"], "1day", limit=2)


def test_invariant_18_with_the_broker_down_covered_reads_succeed(stack: Stack) -> None:
    kept = stack.client.get_bars("AAPL", **DAY)
    stack.sandbox.faults.add(Fault("reset", times=None))
    same(stack.client.get_bars("AAPL", **DAY), kept)
    started = time.monotonic()
    with pytest.raises(md.BrokerError):
        stack.client.get_bars("MSFT", **DAY, timeout=5)
    assert time.monotonic() - started < 6
    stack.flush_redis()
    found = stack.client.get_bars("AAPL", **DAY)
    same(found, kept)
    assert tiers(found) == "postgres:1"


ACTIONS = "/v1/corporate-actions"


def test_without_its_splits_an_adjusted_read_is_an_error(stack: Stack) -> None:
    """Not raw prices under the name of adjusted ones."""
    stack.sandbox.source.add_split("AAPL", date(2024, 3, 13), 4.0)  # type: ignore[attr-defined]
    window: dict[str, Any] = {"start": "2024-03-11", "end": "2024-03-14", "adjustment": "split"}
    stack.sandbox.faults.add(Fault("status", match=ACTIONS, times=None, status=500))
    with pytest.raises(md.BrokerUnavailableError):
        stack.client.get_bars("AAPL", "1day", **window)
    stack.sandbox.faults.clear()
    adjusted = stack.client.get_bars("AAPL", "1day", **window)
    with pytest.warns(md.SplitInRangeWarning, match="4:1 on 2024-03-13"):
        raw = stack.client.get_bars("AAPL", "1day", **{**window, "adjustment": "raw"})
    ratio = (raw["close"] / adjusted["close"]).round(9).tolist()
    assert ratio == [4.0, 4.0, 1.0]


def test_many_adjusted_reads_ask_for_the_splits_once(stack: Stack) -> None:
    question = {"symbols": "AAPL", "timeframe": "1day", "limit": 20, "adjustment": "split"}
    outcomes = ask_together(stack.client, [question] * 30)
    assert {o.error for o in outcomes} == {""}
    assert len({o.digest for o in outcomes}) == 1
    assert stack.calls(ACTIONS) == 1
