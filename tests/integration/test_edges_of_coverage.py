"""What happens at the edges of what is stored: half-minutes, half-days, bars seen before corrections.

Each of these was found by ``python -m tests.faults.model``.
"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from marketdata import planning
from marketdata.backfill import Backfill, Limits, Wanted
from marketdata.spans import Span
from marketdata.types import Timeframe
from tests.changing_market import ChangingMarket
from tests.cycles import Ward
from tests.stack import Stack, runtime

NEW_YORK = "America/New_York"


def at(text: str) -> pd.Timestamp:
    return pd.Timestamp(text, tz=NEW_YORK)


def test_a_part_of_a_minute_is_no_reason_to_ask(stack: Stack) -> None:
    client = stack.client
    client.get_bars("AAPL", "1min", start=at("2024-03-14 10:01"), end=at("2024-03-14 10:30"))
    stack.forget_calls()
    start, end = at("2024-03-14 10:00:20"), at("2024-03-14 10:29:40")
    assert client.explain("AAPL", "1min", start=start, end=end).calls == 0
    frame = client.get_bars("AAPL", "1min", start=start, end=end)
    assert frame.index[0] == at("2024-03-14 10:01")
    assert frame.index[-1] == at("2024-03-14 10:29")
    assert stack.calls() == 0


def test_a_part_of_a_day_is_no_reason_to_ask(stack: Stack) -> None:
    client = stack.client
    frame = client.get_bars(
        "AAPL", "1day", start=at("2024-03-11 11:00"), end=at("2024-03-13 11:00"), tz="exchange"
    )
    assert frame.index.tolist() == [at("2024-03-12"), at("2024-03-13")]
    stack.forget_calls()
    client.get_bars("AAPL", "1day", start="2024-03-12", end="2024-03-14")
    assert stack.calls() == 0, "what was asked for were whole days"


def test_bars_to_be_read_again_are_no_gap(stack: Stack) -> None:
    client = stack.client
    client.get_bars("AAPL", "1min", start=at("2024-03-14 14:30"))
    stack.clock.advance(minutes=5)
    (gap,) = client.gaps("AAPL", "1min", start=at("2024-03-14 14:30"))
    assert (gap.start, gap.end) == (at("2024-03-14 15:00"), at("2024-03-14 15:05"))


def seen_early(stack: Stack, ward: Ward, market: ChangingMarket) -> int:
    """Let the newest bar be stored before its corrections and withdrawn after the session; return
    its label. It is the next morning then."""
    stack.client.get_bars("AAPL", "1min", start=at("2024-03-14 14:30"))
    bars = ward.stored("AAPL", Span(0, 2**52))
    label = int(bars.timestamp[-1])
    assert ward.state("AAPL").unsettled
    market.withdraw("AAPL", label)
    stack.set_time("2024-03-15T09:40:30-04:00")
    return label


def test_a_bar_that_rides_along_with_a_gap_is_taken_out_where_it_is_gone(
    make_stack: Callable[..., Stack],
) -> None:
    market = ChangingMarket()
    stack = make_stack(source=market)
    ward = Ward(stack, ["AAPL"])
    label = seen_early(stack, ward, market)
    ward.cycle()
    assert label not in ward.stored("AAPL", Span(0, 2**52)).timestamp


def test_a_read_takes_it_out_too(make_stack: Callable[..., Stack]) -> None:
    market = ChangingMarket()
    stack = make_stack(source=market)
    ward = Ward(stack, ["AAPL"])
    label = seen_early(stack, ward, market)
    frame = stack.client.get_bars("AAPL", "1min", start=at("2024-03-14 14:30"))
    assert pd.Timestamp(label, unit="us", tz="UTC") not in frame.index


def test_a_backfill_makes_final_only_what_it_brings(make_stack: Callable[..., Stack]) -> None:
    market = ChangingMarket()
    stack = make_stack(source=market)
    ward = Ward(stack, ["AAPL"])
    label = seen_early(stack, ward, market)
    wanted = Wanted(symbols=("AAPL",), timeframes=(Timeframe.MIN_1,), start="2024-03-14")
    report = Backfill(runtime(stack.client)).run(wanted, Limits(max_symbols=0))
    assert report.complete
    assert not any(span.start <= label < span.end for span in ward.state("AAPL").final)
    final = planning.settling(ward.runtime.calendar(), Timeframe.MIN_1, stack.clock.now_us())
    assert label < final.final_until
    ward.cycle()
    assert label not in ward.stored("AAPL", Span(0, 2**52)).timestamp
