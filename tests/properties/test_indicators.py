"""What holds of indicators for any bars: no window, no order of arrival, no future matters."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketdata.indicators import UNBOUNDED, Indicator, Live, Panel, compute, history, resolve
from marketdata.indicators.catalogue import CATALOGUE
from marketdata.indicators.names import example
from marketdata.types import Bars, Floats, Int64s, Timeframe
from tests.indicator_series import assert_close, bars_of, cut, days, minutes, scale_of

NAMES = [
    "relative_volume_2" if n == "relative_volume" else example(d) for n, d in CATALOGUE.items()
]
EVERYTHING = resolve(NAMES)
COLUMNS = [column for indicator in EVERYTHING for column in indicator.columns]


def moved(kind: str, size: int, random: np.random.Generator) -> Int64s:
    """Return steps in ticks."""
    moves = np.zeros(size, np.int64)
    if kind == "walk":
        moves += random.integers(-3, 4, size)
    elif kind == "run":
        moves += 1
    elif kind == "jump":
        moves[0] = random.integers(-90, 90)
    return moves


@st.composite
def closes(draw: st.DrawFn, least: int, most: int) -> tuple[Floats, float]:
    """Draw closes in ticks, and the tick: stretches that walk, stand still, run, jump."""
    tick = draw(st.sampled_from([1e-4, 0.01, 1.0, 250.0]))
    level = draw(st.integers(200, 50_000))
    count = draw(st.integers(least, most))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    parts: list[Int64s] = []
    while sum(len(part) for part in parts) < count:
        kind = draw(st.sampled_from(["walk", "walk", "still", "run", "jump"]))
        size = draw(st.integers(1 + count // 12, 40 + count // 3))
        parts.append(moved(kind, size, random))
    ticks = np.maximum(level + np.cumsum(np.concatenate(parts)[:count]), 100)
    return ticks * tick, tick


@st.composite
def series(draw: st.DrawFn, least: int = 2, most: int = 400) -> tuple[Bars, Int64s]:
    """Draw bars of minutes (short sessions, quiet minutes) or of days."""
    close, tick = draw(closes(least, most))
    if draw(st.booleans()):
        timestamp, sessions = days(len(close))
    else:
        per_session = draw(st.sampled_from([7, 60, 390]))
        random = np.random.default_rng(draw(st.integers(0, 99)))
        timestamp, sessions = minutes(2 * len(close), per_session=per_session)
        kept = np.sort(random.choice(len(timestamp), len(close), replace=False))
        timestamp, sessions = timestamp[kept], sessions[kept]
    return bars_of(timestamp, close, seed=draw(st.integers(0, 99)), tick=tick), sessions


def assert_same(got: Floats, wanted: Floats, bars: Bars) -> None:
    for column, ours, theirs in zip(COLUMNS, got, wanted, strict=True):
        assert_close(ours, theirs, scale_of(column, bars), column)


@settings(max_examples=40, deadline=None)
@given(series(), st.integers(0, 2**20))
def test_bar_by_bar_is_batch(made, chance):
    bars, sessions = made
    start = chance % len(bars)
    live = Live(EVERYTHING)
    got = [live.load(cut(bars, 0, start), sessions[:start])] if start else []
    for i in range(start, len(bars)):
        stamp, session, row = int(bars.timestamp[i]), int(sessions[i]), bars.values[:, i]
        if (chance + i) % 5 == 0:  # a first version of the bar, revised
            live.append(stamp, row * 1.25, session)
            got.append(live.revise(stamp, row, session))
        else:
            got.append(live.append(stamp, row, session))
    wanted = compute(EVERYTHING, bars, sessions)
    assert_same(np.array(got).T, wanted[:, len(bars) - len(got) :], bars)


@settings(max_examples=25, deadline=None)
@given(st.lists(series(least=40, most=300), min_size=2, max_size=4), st.integers(0, 2**20))
def test_a_panel_is_batch(made, chance):
    panel = Panel(EVERYTHING, len(made))
    batch = [compute(EVERYTHING, bars, sessions) for bars, sessions in made]
    at = np.array([(chance >> 3 * i) % (len(bars) - 30) for i, (bars, _) in enumerate(made)])
    for number, (bars, sessions) in enumerate(made):
        panel.load(number, cut(bars, 0, int(at[number])), sessions[: at[number]])
    for step in range(25):
        which = np.array([n for n in range(len(made)) if (chance + step) % (n + 2)], np.int64)
        if not len(which):
            continue
        rows = np.array([made[n][0].values[:, at[n]] for n in which]).T
        stamps = np.array([made[n][0].timestamp[at[n]] for n in which])
        labels = np.array([made[n][1][at[n]] for n in which])
        got = panel.append(which, stamps, rows * 1.25 if step % 3 == 0 else rows, labels)
        if step % 3 == 0:
            got = panel.revise(which, stamps, rows, labels)
        for place, number in enumerate(which.tolist()):
            column = slice(at[number], at[number] + 1)
            assert_same(got[:, place : place + 1], batch[number][:, column], made[number][0])
        at[which] += 1


@settings(max_examples=40, deadline=None)
@given(series(least=3), st.integers(0, 2**20))
def test_later_bars_change_nothing(made, chance):
    bars, sessions = made
    end = 1 + chance % (len(bars) - 1)
    whole = compute(EVERYTHING, bars, sessions)
    before = compute(EVERYTHING, cut(bars, 0, end), sessions[:end])
    assert_same(before, whole[:, :end], bars)


BOUNDED = [i for i in EVERYTHING if i.stabilisation < UNBOUNDED and not i.sessions]


@settings(max_examples=25, deadline=None)
@given(closes(1300, 3000), st.data())
def test_windows_with_history_agree(drawn, data):
    close, tick = drawn
    timestamp, sessions = days(len(close))
    bars = bars_of(timestamp, close, tick=tick)
    whole = compute(BOUNDED, bars, sessions)
    columns = [column for indicator in BOUNDED for column in indicator.columns]
    needed = history(BOUNDED).bars
    end = data.draw(st.integers(needed + 1, len(close)))
    start = data.draw(st.integers(0, end - needed - 1))
    part = compute(BOUNDED, cut(bars, start, end), sessions[start:end])[:, needed:]
    shared = whole[:, start + needed : end]
    for column, ours, theirs in zip(columns, part, shared, strict=True):
        assert_close(ours, theirs, scale_of(column, bars), column)


@pytest.mark.parametrize("indicator", BOUNDED, ids=lambda i: i.name)
@settings(max_examples=8, deadline=None)
@given(drawn=closes(1, 900), chance=st.integers(0, 2**20))
def test_each_declares_enough_history(indicator: Indicator, drawn, chance):
    """The same one by one: of a set, the neediest would hide what another declares too short."""
    close, tick = drawn
    needed = history((indicator,)).bars
    close = np.concatenate([np.resize(close, needed + 40), close])
    timestamp, sessions = days(len(close))
    bars = bars_of(timestamp, close, tick=tick, seed=chance % 7)
    whole = compute((indicator,), bars, sessions)
    end = len(close) - chance % 20
    start = end - needed - 1
    part = compute((indicator,), cut(bars, start, end), sessions[start:end])
    for column, ours, theirs in zip(indicator.columns, part, whole, strict=True):
        scale = scale_of(column, bars)
        assert_close(ours[-1:], theirs[end - 1 : end], scale, column)


BY_SESSION = resolve(["vwap", "obv", "ad", "relative_volume_2"])


@settings(max_examples=40, deadline=None)
@given(closes(10, 900), st.integers(0, 2**20))
def test_windows_with_whole_sessions_agree(drawn, chance):
    close, tick = drawn
    timestamp, sessions = minutes(len(close), per_session=60)
    bars = bars_of(timestamp, close, tick=tick)
    needed = history(BY_SESSION, Timeframe.MIN_1)
    assert needed.bars == 0
    first = chance % (int(sessions[-1]) + 1)
    start = int(np.searchsorted(sessions, first))
    whole = compute(BY_SESSION, bars, sessions)
    part = compute(BY_SESSION, cut(bars, start, len(bars)), sessions[start:])
    held = sessions[start:] >= first + needed.sessions
    np.testing.assert_allclose(part[:, held], whole[:, start:][:, held], rtol=1e-9)
    if first == 0 or needed.sessions <= 1:
        np.testing.assert_allclose(part[:3], whole[:3, start:], rtol=1e-9)


@settings(max_examples=30, deadline=None)
@given(closes(250, 600), st.sampled_from([-40, -12, 9, 30]))
def test_prices_in_another_currency_give_the_same_oscillators(drawn, power):
    """No threshold in them is an absolute one. Powers of two, since they scale without rounding."""
    close, tick = drawn
    timestamp, sessions = days(len(close))
    bars = bars_of(timestamp, close, tick=tick)
    scaled = Bars(bars.timestamp, bars.values.copy())
    scaled.values[:4] *= 2.0**power
    chosen = resolve(
        ["rsi_14", "adx_14", "stoch_14_3_3", "willr_14", "roc_10", "natr_14", "mfi_14", "cci_20"]
    )
    ours, theirs = compute(chosen, bars, sessions), compute(chosen, scaled, sessions)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)
