"""`adjustment_steps`: what adjusted reads multiply by, ex-date by ex-date."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest

import marketdata as md
from marketdata.sandbox import Action, FileMarket, GeneratedMarket
from marketdata.types import COLUMNS, Adjustment
from tests.shared_data import SHARED, needs_shared_data
from tests.stack import Stack, same
from tests.two_brokers import TwoBrokers, make_two, two

__all__ = ["make_two", "two"]

pytestmark = pytest.mark.filterwarnings("ignore:raw prices of")

PRICES = ["open", "high", "low", "close", "vwap"]
EVENTS = [
    Action("AMD", date(2024, 2, 7), 3.0, 2.0),
    Action("AMD", date(2024, 2, 14), amount=3.5),
    Action("AMD", date(2024, 2, 21), 0.05, 1.0, kind="stock_dividend"),
    Action("AMD", date(2024, 2, 28), 1.0, 7.0),
    Action("AMD", date(2024, 3, 6), kind="rights_distribution", other_symbol="AMD.RT"),
    Action("AMD", date(2024, 4, 2), 2.0, 1.0),
]
WINDOW: dict[str, Any] = {"start": "2024-01-22", "end": "2024-03-14"}


@pytest.fixture
def eventful(make_stack: Callable[..., Stack]) -> Stack:
    market = GeneratedMarket(seed=3)
    for action in EVENTS:
        market.add_action(action)
    return make_stack(source=market)


def multiplied(raw: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """Return raw bars of one symbol with every step applied: the caller's own loop."""
    found = raw.copy()
    columns = ["timestamp", "price_factor", "volume_factor"]
    for ex_date, price, volume in steps[columns].itertuples(index=False):
        earlier = found.index < ex_date
        found.loc[earlier, PRICES] *= price
        found.loc[earlier, "volume"] *= volume
    return found


def of(frame: pd.DataFrame, symbol: str) -> pd.DataFrame:
    part = frame.loc[symbol]
    assert isinstance(part, pd.DataFrame)
    return part


def close_to(left: pd.DataFrame, right: pd.DataFrame) -> None:
    pd.testing.assert_index_equal(left.index, right.index)
    for column in COLUMNS:
        np.testing.assert_allclose(left[column], right[column], rtol=1e-12)


@pytest.mark.parametrize("adjustment", ["raw", "split", "dividend", "all"])
@pytest.mark.parametrize("timeframe", ["1day", "15min"])
def test_raw_bars_times_the_steps_are_the_adjusted_bars(
    eventful: Stack, adjustment: Any, timeframe: str
) -> None:
    client = eventful.client
    steps = client.adjustment_steps("AMD", adjustment=adjustment, start=WINDOW["start"])
    raw = client.get_bars("AMD", timeframe, **WINDOW)
    adjusted = client.get_bars("AMD", timeframe, adjustment=adjustment, **WINDOW)
    assert len(raw) > 30
    close_to(multiplied(raw, steps), adjusted)
    kinds = {"raw": 0, "split": 3, "dividend": 1, "all": 4}
    assert len(steps) == kinds[adjustment], "and none of an action without effect, or to come"


def test_the_terms_give_every_adjusted_bar_to_the_bit(eventful: Stack) -> None:
    """Quotients of products, as the library itself forms them."""
    client = eventful.client
    steps = client.adjustment_steps("AMD", adjustment="all", start=WINDOW["start"])
    raw = client.get_bars("AMD", **WINDOW)
    terms = steps[["new", "old", "kept"]].iloc[::-1].cumprod().iloc[::-1]
    days = pd.DatetimeIndex(steps["timestamp"])
    places = days.searchsorted(raw.index, side="right")
    new, old, kept = np.vstack([terms.to_numpy(), np.ones(3)])[places].T
    expected = raw.copy()
    expected[PRICES] = raw[PRICES].mul(old / new * kept, axis=0)
    expected["volume"] = raw["volume"] * (new / old)
    same(expected, client.get_bars("AMD", adjustment="all", **WINDOW))


def test_one_row_has_the_shape_that_is_documented(eventful: Stack) -> None:
    frame = eventful.client.adjustment_steps(
        ["KO", "AMD"], start="2024-02-01", end="2024-02-28", adjustment="split"
    )
    assert frame["symbol"].tolist() == ["AMD", "AMD"]
    assert frame["timestamp"].tolist() == [
        pd.Timestamp("2024-02-07T05:00Z"),
        pd.Timestamp("2024-02-21T05:00Z"),
    ]
    assert frame["price_factor"].tolist() == [2 / 3, 1 / 1.05]
    assert frame["volume_factor"].tolist() == [1.5, 1.05]
    assert frame[["new", "old", "kept"]].to_numpy().tolist() == [[3, 2, 1], [1.05, 1, 1]]
    assert str(frame["timestamp"].dtype) == "datetime64[us, UTC]"
    assert frame.attrs["marketdata"]["simulated"] is True
    nothing = eventful.client.adjustment_steps("AMD", adjustment="raw")
    assert len(nothing) == 0
    assert (nothing.dtypes == frame.dtypes).all()


def test_an_earlier_moment_knows_only_what_had_happened(eventful: Stack) -> None:
    client = eventful.client
    then = "2024-02-16T17:00:00-05:00"
    steps = client.adjustment_steps("AMD", adjustment="all", start="2024-02-01", as_of=then)
    assert [str(t.date()) for t in steps["timestamp"]] == ["2024-02-07", "2024-02-14"]
    raw = client.get_bars("AMD", start="2024-02-01", as_of=then)
    adjusted = client.get_bars("AMD", start="2024-02-01", adjustment="all", as_of=then)
    close_to(multiplied(raw, steps), adjusted)
    # So do the steps up to that moment of those that are known today.
    known = client.adjustment_steps("AMD", adjustment="all", start="2024-02-01")
    had_happened = known[known["timestamp"] <= pd.Timestamp(then)]
    pd.testing.assert_frame_equal(had_happened, steps)


@needs_shared_data
def test_real_dividends_and_splits(make_stack: Callable[..., Stack]) -> None:
    market = FileMarket(SHARED / "daily" / "actions4_2012-2014.csv.gz", basis="split")
    client = make_stack(at="2015-01-05T12:00:00-05:00", source=market).client
    symbols = ["AAPL", "IBM", "KO", "MSFT"]
    years: dict[str, Any] = {"start": "2012-01-01", "end": "2015-01-01"}
    raw = client.get_bars(symbols, **years)
    for adjustment in get_args(Adjustment)[1:]:
        steps = client.adjustment_steps(symbols, adjustment=adjustment, start="2012-01-01")
        adjusted = client.get_bars(symbols, adjustment=adjustment, **years)
        for symbol in symbols:
            mine = steps[steps["symbol"] == symbol]
            found, expected = multiplied(of(raw, symbol), mine), of(adjusted, symbol)
            close_to(found, expected)
            if adjustment == "split":  # AAPL 7:1 in 2014, KO 2:1 in 2012
                assert len(mine) == (symbol in ("AAPL", "KO"))
                same(found, expected)


# ------------------------------------------------------------------------------------ refusals


def test_what_an_adjusted_read_is_refused_for(make_stack: Callable[..., Stack]) -> None:
    market = GeneratedMarket(seed=3)
    market.add_action(Action("KO", date(2024, 2, 14), amount=10_000.0), happens=False)
    client = make_stack(source=market).client
    steps = client.adjustment_steps
    refused: tuple[Adjustment, ...] = ("dividend", "all")
    for adjustment in refused:
        with pytest.raises(md.DataQualityError, match="is no less than the close") as caught:
            steps(["AAPL", "KO"], adjustment=adjustment, start="2024-02-01")
        assert caught.value.facts["symbols"] == ["KO"]
        assert not caught.value.transient
    assert len(steps("KO", start="2024-02-01")) == 0, "splits are not in doubt"
    later = steps("KO", adjustment="all", start="2024-02-15")
    assert len(later) == 1, "what is before the range refuses nothing"
    assert len(steps("KO", adjustment="all", start="2024-01-10", end="2024-02-14")) == 0, (
        "nor after"
    )


def test_the_ends_of_the_range_are_those_of_bars(eventful: Stack) -> None:
    def days(**asked: Any) -> list[str]:
        found = eventful.client.adjustment_steps("AMD", **asked)
        return [str(t.date()) for t in found["timestamp"]]

    assert days(start="2024-02-07", end="2024-02-21") == ["2024-02-07"]
    assert days(start="2024-02-08", end="2024-02-22") == ["2024-02-21"]
    assert days() == days(start="2016-01-01") == ["2024-02-07", "2024-02-21", "2024-02-28"]


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"adjustment": "splits"}, md.RequestError),
        ({"start": "2024-02-01", "end": "2024-02-01"}, md.InvalidRangeError),
        ({"timeout": 0}, md.RequestError),
        ({"as_of": "2030-01-01"}, md.RequestError),
        ({"start": "2024-02-01T00:00"}, md.NaiveTimestampError),
    ],
)
def test_what_cannot_be_right_is_refused_before_anybody_is_asked(
    stack: Stack, asked: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        stack.client.adjustment_steps("AMD", **asked)
    assert len(stack.sandbox.requests) == 0


def test_a_symbol_that_does_not_exist_is_no_symbol_without_splits(stack: Stack) -> None:
    with pytest.raises(md.UnknownSymbolError) as caught:
        stack.client.adjustment_steps(["AAPL", "NOSUCH"])
    assert "NOSUCH" in str(caught.value)
    with pytest.raises(md.UnknownSymbolError):
        stack.client.adjustment_steps("NOSUCH", adjustment="raw")


def test_a_second_call_asks_nobody(eventful: Stack) -> None:
    first = eventful.client.adjustment_steps(["AMD", "KO"], adjustment="all", start="2023-01-01")
    assert {"AMD", "KO"} == set(first["symbol"])
    eventful.forget_calls()
    again = eventful.client.adjustment_steps(["AMD", "KO"], adjustment="all", start="2023-01-01")
    pd.testing.assert_frame_equal(again, first)
    eventful.client.get_actions("AMD")
    eventful.client.adjustment_steps("AMD")
    assert len(eventful.sandbox.requests) == 0


def test_of_several_brokers_the_first_that_knows_the_symbol(two: TwoBrokers) -> None:
    """KO is known to the second only: its splits are no less splits for that."""
    for market, symbol, ratio in (
        (two.alpaca.source, "AMD", 3.0),
        (two.yahoo.source, "AMD", 2.0),
        (two.yahoo.source, "KO", 2.0),
    ):
        assert isinstance(market, GeneratedMarket)
        market.add_action(Action(symbol, date(2024, 2, 7), ratio))
    steps = two.client.adjustment_steps(["AMD", "KO"], start="2024-02-01")
    assert steps["volume_factor"].tolist() == [3.0, 2.0]
    assert steps.attrs["marketdata"]["provider"] == f"{two.first} {two.second}"
    asked: dict[str, Any] = {"start": "2024-02-01", "end": "2024-02-10"}
    with pytest.warns(md.FallbackWarning):
        raw = two.client.get_bars("KO", **asked)
    adjusted = two.client.get_bars("KO", adjustment="split", **asked)
    close_to(multiplied(raw, steps[steps["symbol"] == "KO"]), adjusted)
    with pytest.raises(md.UnknownSymbolError):
        two.client.adjustment_steps(["AMD", "NOSUCH"])
