"""Split adjustment on read, and the warning that a raw read crosses a split."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from datetime import date

import numpy as np
import pytest

import marketdata as md
from marketdata.sandbox import Fault, GeneratedMarket
from tests.stack import Stack, runtime, same

EX_DATE = "2024-02-14"  # a Wednesday
ACTIONS = "/v1/corporate-actions"


@pytest.fixture
def split_stack(make_stack: Callable[..., Stack]) -> Stack:
    market = GeneratedMarket(seed=3)
    market.add_split("KO", date.fromisoformat(EX_DATE), 4, 1)
    return make_stack(source=market)


def test_invariant_31_split_adjusted_prices_and_volumes(split_stack: Stack) -> None:
    get = split_stack.client.get_bars
    with pytest.warns(md.SplitInRangeWarning):
        raw = get("KO", "1day", start="2024-01-02", end="2024-03-14")
    adjusted = get("KO", "1day", start="2024-01-02", end="2024-03-14", adjustment="split")
    before = raw.index < EX_DATE
    assert 0 < before.sum() < len(raw)
    np.testing.assert_array_equal(adjusted["close"][before], raw["close"][before] * 0.25)
    np.testing.assert_array_equal(adjusted["volume"][before], raw["volume"][before] * 4)
    same(adjusted[~before], raw[~before])
    assert adjusted.attrs["marketdata"]["fingerprint"] != raw.attrs["marketdata"]["fingerprint"]


@pytest.mark.parametrize("timeframe", ["1week", "1month"])
def test_bars_that_a_split_falls_into_come_from_adjusted_days(
    split_stack: Stack, timeframe: str
) -> None:
    get = split_stack.client.get_bars
    days = get(
        "KO", "1day", start="2024-01-01", end="2024-03-14", adjustment="split", tz="exchange"
    )
    coarse = get(
        "KO", timeframe, start="2024-01-01", end="2024-03-14", adjustment="split", tz="exchange"
    )
    ends = [*coarse.index[1:], days.index[-1] + np.timedelta64(30, "D")]
    for label, end in zip(coarse.index, ends, strict=True):
        inside = days[(days.index >= label) & (days.index < end)]
        if end is not ends[-1]:
            assert coarse.loc[label, "high"] == inside["high"].max()
            assert coarse.loc[label, "low"] == inside["low"].min()


def test_a_first_raw_read_across_a_split_warns_once(split_stack: Stack) -> None:
    get = split_stack.client.get_bars
    window = {"start": "2024-01-02", "end": "2024-03-14"}
    with pytest.warns(md.SplitInRangeWarning, match=r"4:1 on 2024-02-14.*adjustment") as caught:
        get("KO", "1day", **window)  # type: ignore[arg-type]
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get("KO", "1day", **window)  # type: ignore[arg-type]
        get("KO", "1day", start=EX_DATE)


def test_splits_are_asked_once_and_bars_not_again(split_stack: Stack) -> None:
    get = split_stack.client.get_bars
    get("KO", "1day", limit=60, adjustment="split")
    calls = split_stack.calls()
    assert split_stack.calls(ACTIONS) == 1
    split_stack.flush_redis()
    get("KO", "1day", limit=60, adjustment="split")
    assert split_stack.calls() == calls
    assert split_stack.calls(ACTIONS) == 1


def test_unknown_splits_raise_rather_than_pass_for_none(split_stack: Stack) -> None:
    split_stack.sandbox.faults.add(Fault("status", match=ACTIONS, status=500, times=None))
    with pytest.raises(md.BrokerUnavailableError):
        split_stack.client.get_bars("KO", "1day", limit=60, adjustment="split")
    # A raw read asks for splits as a courtesy only.
    assert len(split_stack.client.get_bars("KO", "1day", limit=60)) == 60


def test_a_short_raw_read_asks_for_no_splits(stack: Stack) -> None:
    stack.client.get_bars("KO", "1min", limit=500)
    assert stack.calls(ACTIONS) == 0


@pytest.mark.parametrize("timeframe", ["1day", "1week", "1month", "1hour"])
def test_a_window_that_ends_before_the_split_is_adjusted_too(
    split_stack: Stack, timeframe: str
) -> None:
    get = split_stack.client.get_bars
    window = {"start": "2024-01-02", "end": "2024-02-01"}
    raw = get("KO", timeframe, **window)  # type: ignore[arg-type]
    adjusted = get("KO", timeframe, adjustment="split", **window)  # type: ignore[arg-type]
    np.testing.assert_array_equal(adjusted["close"], raw["close"] * 0.25)


@pytest.mark.parametrize("timeframe", ["1day", "1week", "1month"])
def test_a_forming_bar_cut_by_a_split_is_adjusted(
    make_stack: Callable[..., Stack], timeframe: str
) -> None:
    market = GeneratedMarket(seed=3)
    market.add_split("KO", date(2024, 3, 13), 4, 1)  # the day before the moment of the stack
    stack = make_stack(source=market)
    options = {"adjustment": "split", "include_forming": True, "limit": 3}
    frame = stack.client.get_bars("KO", timeframe, **options)  # type: ignore[arg-type]
    today = stack.client.get_bars("KO", "1day", **options)  # type: ignore[arg-type]
    assert frame.attrs["marketdata"]["forming"] is True
    assert frame["close"].iloc[-1] == today["close"].iloc[-1]
    assert frame["high"].iloc[-1] < 2 * today["high"].iloc[-1]


def test_a_raw_read_that_redis_covers_needs_no_postgresql_for_its_warning(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = stack.client.get_bars("KO", "1min", limit=50)
    running = runtime(stack.client)
    running.actions._known.clear()

    def gone(*_: object, **__: object) -> None:
        raise md.StoreUnavailableError("PostgreSQL is away")

    monkeypatch.setattr(running.store.database, "run", gone)
    same(stack.client.get_bars("KO", "1min", limit=50), first)
