"""What each page of a walk proves, and where a walk stops."""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from marketdata.brokers.alpaca_walk import PageWalk
from marketdata.calendars import TradingCalendar, calendar_for
from marketdata.clock import from_micros, to_micros
from marketdata.errors import BrokerResponseError
from marketdata.protocols import BarsPage, BarsRequest
from marketdata.spans import Span, normalise
from marketdata.types import DAY, MINUTE, Timeframe

START = to_micros(datetime(2024, 3, 8, 14, 30, tzinfo=UTC))
SPAN = Span(START, START + 10 * MINUTE)


@pytest.fixture(scope="module")
def calendar() -> TradingCalendar:
    return calendar_for("XNYS", START)


def rows(*minutes: float) -> list[dict[str, Any]]:
    moments = (from_micros(START) + timedelta(minutes=m) for m in minutes)
    return [
        {"t": m.strftime("%Y-%m-%dT%H:%M:%SZ"), "o": 1, "h": 2, "l": 1, "c": 2, "v": 3, "n": 1,
         "vw": 1.5}
        for m in moments
    ]  # fmt: skip


def page(bars: Mapping[str, Any], token: Any = None) -> dict[str, Any]:
    return {"bars": dict(bars), "next_page_token": token}


def walk(
    calendar: TradingCalendar, *symbols: str, span: Span = SPAN, timeframe: str = "1min"
) -> PageWalk:
    request = BarsRequest(symbols, Timeframe(timeframe), span, "sip")
    return PageWalk(symbols, request, calendar)


def until(minute: int, since: int = 0) -> Span:
    return Span(START + since * MINUTE, START + minute * MINUTE)


def test_the_query_names_everything_that_decides_the_answer(calendar: TradingCalendar) -> None:
    assert walk(calendar, "MSFT", "AAPL").params() == {
        "symbols": "AAPL,MSFT", "timeframe": "1Min", "start": "2024-03-08T14:30:00Z",
        "end": "2024-03-08T14:39:59Z", "limit": 10000, "adjustment": "raw", "asof": "-",
        "feed": "sip", "sort": "asc",
    }  # fmt: skip


def test_a_daily_walk_ends_at_the_last_midnight_that_can_label_a_bar(
    calendar: TradingCalendar,
) -> None:
    first = calendar.midnight_of(date(2024, 3, 7))
    for end in (START + 6 * 60 * MINUTE, START + 60 * 60 * MINUTE):  # its close; Sunday
        params = walk(calendar, "AAPL", span=Span(first, end), timeframe="1day").params()
        assert (params["timeframe"], params["end"]) == ("1Day", "2024-03-08T05:00:00Z")
    saturday = calendar.midnight_of(date(2024, 3, 9))
    params = walk(calendar, "AAPL", span=Span(saturday, saturday + DAY), timeframe="1day").params()
    assert params["end"] == "2024-03-10T04:59:59Z"


def test_the_only_page_proves_everything_also_of_absent_symbols(
    calendar: TradingCalendar,
) -> None:
    one = walk(calendar, "AAPL", "QUIET")
    answer = one.take(page({"AAPL": rows(0, 1)}))
    assert answer.proven == {"AAPL": SPAN, "QUIET": SPAN}
    assert list(answer.bars) == ["AAPL"]
    assert one.finished


def test_a_page_proves_whole_symbols_and_its_last_one_up_to_its_last_bar(
    calendar: TradingCalendar,
) -> None:
    one = walk(calendar, "A", "B", "C")
    first = one.take(page({"A": rows(0, 5), "B": rows(0, 1, 2)}, "t1"))
    assert first.proven == {"A": SPAN, "B": until(3)}
    assert not one.finished
    assert one.params()["page_token"] == "t1"
    second = one.take(page({"B": rows(3)}, "t2"))
    assert second.proven == {"B": until(4, since=3)}
    third = one.take(page({"B": rows(9), "C": rows(4)}, "t3"))
    assert third.proven == {"B": until(10, since=4), "C": until(5)}
    last = one.take(page({}))
    assert last.proven == {"C": until(10, since=5)}


def test_a_later_symbol_proves_the_one_the_page_before_ended_in(
    calendar: TradingCalendar,
) -> None:
    one = walk(calendar, "A", "B", "C")
    assert one.take(page({"A": rows(0)}, "t1")).proven == {"A": until(1)}
    assert one.take(page({"C": rows(2)}, "t2")).proven == {"A": until(10, since=1), "C": until(3)}
    # B stayed away, which means "no bars" only now.
    assert one.take(page({"C": rows(3)})).proven == {"B": SPAN, "C": until(10, since=3)}


@pytest.mark.parametrize(
    "last",
    [rows(3, 1, 2), rows(1, 2.5), rows(1, 900), [*rows(1), {"t": "never"}]],
    ids=["unsorted", "off-grid", "out-of-window", "unreadable"],
)
def test_dirt_at_the_end_of_a_page_proves_nothing(
    calendar: TradingCalendar, last: list[dict[str, Any]]
) -> None:
    one = walk(calendar, "A", "B")
    answer = one.take(page({"A": rows(0), "B": last}, "t1"))
    assert answer.proven == {"A": SPAN}
    assert list(answer.bars) == ["A"]  # what is not proven yet is not handed out either
    rest = one.take(page({"B": rows(7)}))
    assert rest.proven == {"B": SPAN}
    inside = [r for r in last if r["t"] != "never" and "T14:3" in r["t"]]
    assert len(rest.bars["B"]) == len(inside) + 1


def test_symbols_listed_without_bars_prove_nothing(calendar: TradingCalendar) -> None:
    one = walk(calendar, "A", "B", "C")
    first = one.take(page({"A": rows(0), "B": [], "C": []}, "t1"))
    assert first.proven == {"A": until(1)}
    second = one.take(page({"A": rows(1), "B": rows(2), "C": []}, "t2"))
    assert second.proven == {"A": until(10, since=1), "B": until(3)}
    last = one.take(page({"A": [], "B": rows(5)}))
    assert last.proven == {"B": until(10, since=3), "C": SPAN}


def test_symbols_out_of_order_prove_nothing_before_the_end(calendar: TradingCalendar) -> None:
    one = walk(calendar, "A", "B")
    assert one.take(page({"B": rows(0), "A": rows(0)}, "t1")).proven == {}
    last = one.take(page({"B": rows(1)}))
    assert last.proven == {"A": SPAN, "B": SPAN}
    assert {s: len(b) for s, b in last.bars.items()} == {"A": 1, "B": 2}


def test_a_symbol_that_comes_again_is_an_error(calendar: TradingCalendar) -> None:
    one = walk(calendar, "A", "B")
    one.take(page({"A": rows(0), "B": rows(0)}, "t1"))
    with pytest.raises(BrokerResponseError, match="came again"):
        one.take(page({"A": rows(1)}, "t2"))


@pytest.mark.parametrize("token", ["", 7, "t1"])
def test_invariant_23_fault_02_an_empty_or_repeated_token_ends_the_walk(
    calendar: TradingCalendar, token: object
) -> None:
    one = walk(calendar, "A")
    one.take(page({"A": rows(0)}, "t1"))
    with pytest.raises(BrokerResponseError, match="token") as caught:
        one.take(page({"A": rows(1)}, token))
    assert not caught.value.transient


@pytest.mark.parametrize(
    "answer",
    [None, [], "bars", {}, {"bars": None, "next_page_token": None}, {"bars": {}},
     {"bars": {"A": None}, "next_page_token": None}, {"bars": [], "next_page_token": None}],
)  # fmt: skip
def test_fault_05_what_is_no_page_is_a_transient_error(
    calendar: TradingCalendar, answer: object
) -> None:
    with pytest.raises(BrokerResponseError) as caught:
        walk(calendar, "A").take(answer)
    assert caught.value.transient


def test_foreign_and_outlying_rows_are_left_out_and_counted(calendar: TradingCalendar) -> None:
    answer = walk(calendar, "A").take(
        page({"A": [*rows(-1, 0, 10), {"t": None}], "ZZZ": rows(0, 1)})
    )
    assert answer.bars["A"].timestamp.tolist() == [START]
    assert list(answer.bars) == ["A"]
    assert answer.rejected == {"wrong_symbol": 2, "out_of_window": 2, "unreadable": 1}


def test_a_bar_repeated_on_the_next_page_is_left_out_and_counted(
    calendar: TradingCalendar,
) -> None:
    one = walk(calendar, "A")
    one.take(page({"A": rows(0, 1)}, "t1"))
    answer = one.take(page({"A": rows(1, 2)}))
    assert answer.bars["A"].timestamp.tolist() == [START + 2 * MINUTE]
    assert answer.rejected == {"out_of_order": 1}
    assert answer.proven == {"A": until(10, since=2)}


def test_whatever_the_pages_the_proofs_never_run_ahead_of_the_bars(
    calendar: TradingCalendar,
) -> None:
    """Cut true series into pages at random: what is proven has been delivered, and no more."""
    draw = random.Random(20240308)
    names = ["A", "B", "C", "D", "E"]
    for _ in range(200):
        truth = {s: sorted(draw.sample(range(10), draw.randint(0, 10))) for s in names}
        flat = [(s, m) for s in names for m in truth[s]]
        one = walk(calendar, *names)
        got: dict[str, set[int]] = {s: set() for s in names}
        proven: dict[str, list[Span]] = {s: [] for s in names}
        at, number = 0, 0
        while not one.finished:
            take = draw.randint(0, 6)
            part = flat[at : at + take]
            at, number = at + take, number + 1
            content: dict[str, list[dict[str, Any]]] = {}
            for symbol, minute in part:
                content.setdefault(symbol, []).extend(rows(minute))
            _learn(one.take(page(content, None if at >= len(flat) else f"t{number}")), got, proven)
            for symbol in names:
                for span in proven[symbol]:
                    inside = {
                        m for m in truth[symbol] if span.start <= START + m * MINUTE < span.end
                    }
                    assert inside <= got[symbol]
        assert all(normalise(proven[s]) == [SPAN] for s in names)
        assert got == {s: set(truth[s]) for s in names}


def _learn(answer: BarsPage, got: dict[str, set[int]], proven: dict[str, list[Span]]) -> None:
    for symbol, bars in answer.bars.items():
        span = answer.proven[symbol]
        assert ((bars.timestamp >= span.start) & (bars.timestamp < span.end)).all()
        got[symbol].update(((bars.timestamp - START) // MINUTE).tolist())
    for symbol, span in answer.proven.items():
        proven[symbol].append(span)
