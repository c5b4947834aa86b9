"""The aggregator's cycle on the whole stack: sandbox over HTTP, PostgreSQL, Redis."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pytest

from marketdata.planning import gaps
from marketdata.spans import Span
from marketdata.types import CLOSE, MINUTE, Timeframe
from tests.changing_market import ChangingMarket
from tests.cycles import Ward, assert_same_bars, calendar, micros, of_market, serves_from_redis
from tests.stack import Stack, tiers

DAY = "2026-03-12"  # a Thursday
DAILY = Timeframe.DAY_1
BUSY = ("AAPL", "MSFT", "NVDA", "TSLA", "INTC")
"""They have a bar in every regular minute."""
Make = Callable[..., Stack]


def at(clock: str, day: str = DAY) -> str:
    return f"{day}T{clock}-04:00"


def span(start: str, end: str) -> Span:
    return Span(micros(at(start)), micros(at(end)))


@pytest.fixture
def market() -> ChangingMarket:
    return ChangingMarket()


@pytest.fixture
def stack(make_stack: Make, market: ChangingMarket) -> Stack:
    return make_stack(at=at("14:59:05"), source=market)


def labels_of(frame: pd.DataFrame) -> list[int]:
    """Return the index as microseconds UTC."""
    return [int(moment.value) // 1000 for moment in frame.index]


def ward_of(stack: Stack, count: int = 5, **settings: object) -> Ward:
    return Ward(stack, list(BUSY[:count]), **settings)  # type: ignore[arg-type]


def test_a_steady_cycle_is_one_request_and_reaches_every_tier(stack: Stack, market: ChangingMarket):
    ward = ward_of(stack)
    first = ward.cycle()
    assert (first.series, first.due, first.failed) == (5, 5, ())
    assert first.blocks_rebuilt == 5
    for minute in ("15:00", "15:01", "15:02"):
        stack.forget_calls()
        report = ward.cycle(at(f"{minute}:05"))
        assert stack.calls() == report.calls == report.fetches == 1
        assert (report.blocks_grown, report.blocks_rebuilt, report.blocks_lost) == (5, 0, 0)
    stack.forget_calls()
    assert serves_from_redis(stack.client, ward.symbols)
    assert stack.calls() == 0
    for symbol in ward.symbols:
        asked = span("14:30", "15:02")
        assert_same_bars(ward.stored(symbol, asked), of_market(market, symbol, asked))
        frame = stack.client.get_bars(symbol, "1min", limit=500, session="extended")
        expected = of_market(market, symbol, Span(0, micros(at("15:02"))).clip(
            Span(labels_of(frame)[0], micros(at("15:02")))
        ))  # fmt: skip
        assert labels_of(frame) == expected.timestamp.tolist()
        assert frame["close"].tolist() == expected.values[CLOSE].tolist()


def test_what_is_new_goes_to_the_indicators_and_into_one_notice(
    stack: Stack, market: ChangingMarket
):
    ward = ward_of(stack)
    ward.cycle()
    report = ward.cycle(at("15:00:05"))
    (fresh,) = ward.computed
    new = span("14:59", "15:00")
    assert report.indicators == report.changed == len(fresh)
    for symbol in ward.symbols:
        bars = of_market(market, symbol, new)
        if len(bars):
            assert_same_bars(fresh[ward.key(symbol)], bars)
    ((keys, until),) = ward.told
    assert sorted(keys) == sorted(fresh)
    assert until == new.end


def test_a_doubled_tick_asks_nothing(stack: Stack):
    ward = ward_of(stack)
    ward.cycle()
    stack.forget_calls()
    report = ward.cycle()
    assert (report.due, report.bars, stack.calls()) == (0, 0, 0)
    assert ward.told == []


def test_a_late_tick_brings_what_was_missed(stack: Stack, market: ChangingMarket):
    ward = ward_of(stack)
    ward.cycle()
    stack.forget_calls()
    report = ward.cycle(at("15:07:40"))
    assert report.calls == 1
    for symbol in ward.symbols:
        asked = span("14:30", "15:07")
        assert_same_bars(ward.stored(symbol, asked), of_market(market, symbol, asked))
    assert serves_from_redis(stack.client, ward.symbols)


def test_a_correction_within_the_minute_is_read_with_the_next_bar(
    stack: Stack, market: ChangingMarket
):
    ward = ward_of(stack)
    ward.cycle()
    ward.cycle(at("15:00:05"))
    label = micros(at("14:59"))
    assert label in ward.stored("AAPL", span("14:50", "15:00")).timestamp
    market.correct("AAPL", label, 123.4567)
    stack.forget_calls()
    ward.cycle(at("15:01:05"))
    assert stack.calls() == 1
    (fresh,) = ward.computed
    assert label in fresh[ward.key("AAPL")].timestamp, "a changed bar is news"
    unchanged = [k.symbol for k, bars in fresh.items() if label in bars.timestamp]
    assert unchanged == ["AAPL"]
    frame = stack.client.get_bars("AAPL", "1min", limit=10)
    assert tiers(frame) == "redis:1"
    assert 123.4567 in frame["close"].tolist()
    assert 123.4567 in ward.stored("AAPL", span("14:59", "15:00")).values[CLOSE]


def test_corrections_after_the_last_bar_of_the_day(stack: Stack, market: ChangingMarket):
    ward = ward_of(stack, 1)
    ward.cycle(at("19:59:30"))
    ward.cycle(at("20:00:05"))
    stored = ward.stored("AAPL", span("04:00", "20:00"))
    label = int(stored.timestamp[-1])
    state = ward.state("AAPL")
    assert state.unsettled
    market.correct("AAPL", label, 77.0)
    ward.cycle(at("20:01:10"))
    assert not calendar().trading_spans(ward.state("AAPL").unsettled[0], "extended")
    if label >= state.unsettled[0].start:
        assert ward.stored("AAPL", span("04:00", "20:00")).values[CLOSE, -1] == 77.0


def test_the_session_is_read_again_after_the_close(stack: Stack, market: ChangingMarket):
    ward = ward_of(stack, 3)
    ward.cycle(at("16:00:05"))
    ward.cycle(at("20:15:00"))
    session = span("04:00", "20:00")
    before = ward.stored("AAPL", session)
    corrected, withdrawn = (int(before.timestamp[at]) for at in (200, 201))
    market.correct("AAPL", corrected, 55.5)
    market.withdraw("AAPL", withdrawn)
    assert ward.cycle(at("20:45:00")).due == 0
    report = ward.cycle(at("21:00:05"))
    assert report.withdrawn == 1
    assert report.suspicious == 0
    after = ward.stored("AAPL", session)
    assert_same_bars(after, of_market(market, "AAPL", session))
    assert withdrawn not in after.timestamp
    assert after.values[CLOSE, 200] == 55.5
    frame = stack.client.get_bars("AAPL", "1min", limit=500)
    assert tiers(frame) == "redis:1", "the block was made anew"
    assert withdrawn not in labels_of(frame)
    stack.forget_calls()
    assert ward.cycle(at("21:15:00")).due == 0
    assert stack.calls() == 0


def test_an_answer_that_lacks_too_much_is_not_believed(stack: Stack, market: ChangingMarket):
    ward = ward_of(stack, 3)
    ward.cycle(at("20:15:00"))
    session = span("04:00", "20:00")
    before = {s: ward.stored(s, session) for s in ward.symbols}
    market.silence("MSFT")
    gone = [int(t) for t in before["NVDA"].timestamp[50:70]]
    market.withdraw("NVDA", *gone)
    market.withdraw("AAPL", int(before["AAPL"].timestamp[50]))
    report = ward.cycle(at("21:00:05"))
    assert report.suspicious == 2
    assert report.withdrawn == 1
    for symbol in ("MSFT", "NVDA"):
        assert_same_bars(ward.stored(symbol, session), before[symbol])
    assert len(ward.stored("AAPL", session)) == len(before["AAPL"]) - 1


def test_a_garbled_answer_withdraws_nothing(stack: Stack):
    ward = ward_of(stack, 2)
    ward.cycle(at("20:15:00"))
    session = span("04:00", "20:00")
    before = {s: ward.stored(s, session) for s in ward.symbols}
    stack.sandbox.faults.add("bad_rows", match="/bars?", rows=("nan", "off_grid"), times=None)
    report = ward.cycle(at("21:00:05"))
    assert report.rejected
    assert report.withdrawn == 0
    for symbol in ward.symbols:
        assert len(ward.stored(symbol, session)) == len(before[symbol])


def test_daily_bars_come_after_the_close_in_the_evening_and_next_morning(
    stack: Stack, market: ChangingMarket
):
    ward = ward_of(stack, 2, timeframes=("1day",))
    today = span("00:00", "16:00")
    label = micros(at("00:00"))
    ward.cycle(at("16:10:00"))
    assert len(ward.stored("AAPL", today, DAILY)) == 0
    assert ward.cycle(at("16:20:05")).changed == 2
    assert len(ward.stored("AAPL", today, DAILY)) == 1
    for close, moment in ((88.0, at("21:00:05")), (99.0, at("10:00:05", "2026-03-13"))):
        market.correct("AAPL", label, close)
        stack.forget_calls()
        report = ward.cycle(moment)
        assert (report.due, stack.calls()) == (2, 1)
        assert ward.stored("AAPL", today, DAILY).values[CLOSE, 0] == close
        frame = stack.client.get_bars("AAPL", "1day", limit=500)
        assert frame["close"].iloc[-1] == close
        assert tiers(frame) == "redis:1"
        assert ward.cycle().due == 0


def test_coarser_timeframes_are_kept_fresh_by_their_base(stack: Stack):
    ward = ward_of(stack, 2, timeframes=("1min", "5min", "1hour", "1week"))
    report = ward.cycle()
    assert report.series == 4  # minutes and days of two symbols
    stack.forget_calls()
    stack.client.get_bars(ward.symbols, "5min", limit=50)
    stack.client.get_bars(ward.symbols, "1week", limit=50)
    assert stack.calls() == 0


def test_a_new_subscriber_gets_his_block_beside_the_others(stack: Stack):
    ward = ward_of(stack, 4)
    ward.cycle()
    ward.symbols.append("AMD")
    stack.forget_calls()
    report = ward.cycle(at("15:00:05"))
    assert report.due == 5
    assert report.fetches == 2
    stack.forget_calls()
    assert serves_from_redis(stack.client, ward.symbols)
    assert stack.calls() == 0


def test_a_symbol_with_few_bars_is_covered_and_asked_no_more(stack: Stack):
    quiet = "PPLT"
    ward = Ward(stack, [quiet])
    ward.cycle(at("05:00:05"))
    ward.cycle(at("05:15:05"))
    state = ward.state(quiet)
    assert gaps(span("04:00", "05:15"), state, calendar(), Timeframe.MIN_1) == []
    assert ward.cycle(at("05:15:30")).due == 0


def test_one_bad_symbol_does_not_keep_the_others_from_their_bars(stack: Stack):
    ward = ward_of(stack, 4)
    ward.symbols += ["NOSUCH", "TOOLONGXX"]  # unknown, and one the broker will not parse
    report = ward.cycle()
    assert report.unknown == ("NOSUCH", "TOOLONGXX")
    assert report.failed == ()
    assert serves_from_redis(stack.client, BUSY[:4])
    stack.forget_calls()
    report = ward.cycle(at("15:00:05"))
    assert (report.series, stack.calls()) == (4, 1), "they cost no further requests for a while"
    assert report.unknown == ("NOSUCH", "TOOLONGXX")


def test_one_failing_request_does_not_fail_the_cycle(stack: Stack):
    ward = ward_of(stack, 4, timeframes=("1min", "1day"))
    stack.sandbox.faults.add("status", match="timeframe=1Day", status=500, times=None)
    report = ward.cycle()
    assert [f.timeframe for f in report.failed] == [DAILY]
    assert report.failed[0].transient
    assert report.failed[0].error == "BrokerUnavailableError"
    assert report.summary()["failed"] == 4
    assert serves_from_redis(stack.client, ward.symbols)
    stack.sandbox.faults.clear()
    report = ward.cycle()
    assert report.failed == ()
    assert report.due == 4


def test_a_free_key_follows_sixteen_minutes_behind(make_stack: Make, market: ChangingMarket):
    stack = make_stack(at=at("14:59:05"), source=market, market={"entitled_sip": False})
    ward = ward_of(stack, 3)
    with pytest.warns(UserWarning, match="16 minutes late"):
        report = ward.cycle()
    assert report.failed == ()
    assert report.due == 3
    for minute in ("15:00", "15:01"):
        stack.forget_calls()
        assert ward.cycle(at(f"{minute}:05")).calls == stack.calls() == 1
    asked = span("14:00", "14:45")
    for symbol in ward.symbols:
        assert_same_bars(ward.stored(symbol, asked), of_market(market, symbol, asked))
    assert ward.stored("AAPL", span("14:45", "15:00")).timestamp.tolist() == []
    assert serves_from_redis(stack.client, ward.symbols)


def test_blocks_outlive_the_quarter_of_an_hour_after_hours(stack: Stack):
    ward = ward_of(stack, 3)
    ward.cycle(at("17:00:05"))
    report = ward.cycle(at("17:15:05"))
    assert (report.blocks_grown, report.blocks_lost) == (3, 0)
    import redis

    with redis.Redis.from_url(stack.settings["redis_url"]) as server:
        blocks = list(server.keys("*:1min:1min"))
        assert len(blocks) == 3
        assert min(server.pttl(k) for k in blocks) > 900_000


def test_after_a_flush_of_redis_the_next_cycle_brings_the_blocks_back(stack: Stack):
    ward = ward_of(stack, 5)
    ward.cycle()
    stack.flush_redis()
    report = ward.cycle(at("15:00:05"))
    assert (report.blocks_rebuilt, report.blocks_lost) == (5, 0)
    assert serves_from_redis(stack.client, ward.symbols)


def test_long_tails_become_blocks_again(stack: Stack, market: ChangingMarket):
    import redis

    ward = ward_of(stack, 3)
    ward.cycle(at("13:00:05"))
    longest = 0
    with redis.Redis.from_url(stack.settings["redis_url"]) as server:
        for minute in range(1, 120):
            ward.cycle(at(f"{13 + minute // 60}:{minute % 60:02}:05"))
            tails = server.keys("*:tail")
            longest = max(longest, *(server.strlen(k) for k in tails), 0)
        assert 2048 < longest < 8192
        sizes = [server.strlen(k) for k in server.keys("*:1min:1min")]
    assert max(sizes) < 64 * 1200
    assert serves_from_redis(stack.client, ward.symbols)
    for symbol in ward.symbols:
        frame = stack.client.get_bars(symbol, "1min", limit=500, session="extended")
        first = labels_of(frame)[0]
        expected = of_market(market, symbol, Span(first, micros(at("14:59"))))
        assert labels_of(frame) == expected.timestamp.tolist()
        assert frame["volume"].tolist() == expected.values[4].tolist()


def test_somebody_else_who_writes_in_between_is_noticed(stack: Stack):
    """The bars this process stored last are no news only while nobody else has written."""
    ward = ward_of(stack, 2)
    ward.cycle()
    ward.cycle(at("15:00:05"))
    stack.set_time(at("15:01:05"))
    with stack.connect() as other:
        frame = other.get_bars("AAPL", "1min", limit=3)
        assert frame.index[-1].minute == 0
    report = ward.cycle(at("15:02:05"))
    assert report.failed == ()
    assert serves_from_redis(stack.client, ward.symbols)


def test_a_stopped_cycle_begins_nothing_and_says_so(stack: Stack):
    ward = ward_of(stack, 3)
    ward.stop.set()
    report = ward.cycle()
    assert report.stopped
    assert report.fetches == 0
    assert report.postponed == 1
    ward.stop.clear()
    assert ward.cycle().due == 3


def test_without_subscriptions_nothing_happens(stack: Stack):
    ward = ward_of(stack, 0)
    report = ward.cycle()
    assert (report.series, report.fetches, report.summary()["failed"]) == (0, 0, 0)


def test_the_newest_bar_ends_at_the_frontier(stack: Stack):
    ward = ward_of(stack, 1)
    ward.cycle(at("15:00:02"))
    assert ward.state("AAPL").coverage[-1].end == micros(at("15:00")) - MINUTE
    ward.cycle(at("15:00:03"))
    assert ward.state("AAPL").coverage[-1].end == micros(at("15:00"))
