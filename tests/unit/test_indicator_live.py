"""Live series and panels: bar by bar they give what the batch gives, revisions included."""

from __future__ import annotations

import numpy as np
import pytest

from marketdata.indicators import DEFAULT, Live, Panel, compute, resolve
from marketdata.indicators.catalogue import CATALOGUE
from marketdata.indicators.names import example
from marketdata.types import Bars, Floats, Int64s
from tests.indicator_series import assert_close, bars_of, cut, days, minutes, scale_of, walk

EVERYTHING = resolve(
    [
        "relative_volume_3" if name == "relative_volume" else example(definition)
        for name, definition in CATALOGUE.items()
    ]
)
COLUMNS = [column for indicator in EVERYTHING for column in indicator.columns]
COUNT = 1700


def series(kind: str, seed: int = 0) -> tuple[Bars, Int64s]:
    """Return minutes or days; in ``still`` days the price stands still for 600 of them."""
    close = walk(COUNT, seed=seed)
    timestamp, sessions = minutes(COUNT) if kind == "minutes" else days(COUNT)
    if kind == "still":
        close[500:1100] = close[500]
    return bars_of(timestamp, close, seed=seed), sessions


def assert_same(got: Floats, wanted: Floats, bars: Bars) -> None:
    assert got.shape == wanted.shape
    for column, ours, theirs in zip(COLUMNS, got, wanted, strict=True):
        assert_close(ours, theirs, scale_of(column, bars), column, rtol=1e-10)


@pytest.mark.parametrize("kind", ["minutes", "days", "still"])
def test_a_live_series_gives_the_batch_values_at_every_bar(kind):
    bars, sessions = series(kind)
    live = Live(EVERYTHING)
    assert live.columns == tuple(COLUMNS)
    got = []
    for i, stamp in enumerate(bars.timestamp.tolist()):
        row = bars.values[:, i]
        if i % 3 == 0:
            live.append(stamp, row * 1.02, int(sessions[i]))
            live.revise(stamp, row * 0.97, int(sessions[i]))
            got.append(live.revise(stamp, row.tolist(), int(sessions[i])))
        else:
            got.append(live.append(stamp, row, int(sessions[i])))
    assert_same(np.array(got).T, compute(EVERYTHING, bars, sessions), bars)


@pytest.mark.parametrize("start", [1, 2, 14, 15, 16, 28, 34, 200, 201, 202, 1099, 1103])
@pytest.mark.parametrize("kind", ["minutes", "still"])
def test_a_series_begun_with_history_goes_on_as_if_it_had_been_there(kind, start):
    bars, sessions = series(kind)
    batch = compute(EVERYTHING, bars, sessions)
    live = Live(EVERYTHING)
    got = [live.load(cut(bars, 0, start), sessions[:start])]
    row = bars.values[:, start - 1]
    stamp, session = int(bars.timestamp[start - 1]), int(sessions[start - 1])
    live.revise(stamp, row * 1.5, session)
    assert_same(np.array([live.revise(stamp, row, session)]).T, batch[:, start - 1 : start], bars)
    for i in range(start, start + 40):
        got.append(live.append(int(bars.timestamp[i]), bars.values[:, i], int(sessions[i])))
    assert_same(np.array(got).T, batch[:, start - 1 : start + 40], bars)


def test_an_indicator_makes_its_own_live_series():
    bars, sessions = series("days")
    (part,) = resolve("BBU_20_2.0")
    live = part.incremental()
    assert live.columns == ("bbands_20_2_upper",)
    live.load(cut(bars, 0, 100), sessions[:100])
    got = live.append(int(bars.timestamp[100]), bars.values[:, 100], 100)
    np.testing.assert_allclose(got, compute((part,), bars, sessions)[:, 100])
    assert live.count == 101


def test_there_is_nothing_to_revise_before_the_first_bar():
    bars, _ = series("days")
    live = Live(DEFAULT)
    with pytest.raises(ValueError, match="no bar"):
        live.revise(int(bars.timestamp[0]), bars.values[:, 0], 0)
    assert np.isnan(live.load(Bars.empty(), np.empty(0, np.int64))).all()


# ---------------------------------------------------------------------------------------- panels


def stepped(panel: Panel, which: Int64s, bars: list[Bars], sessions: Int64s, at: Int64s) -> Floats:
    """Append to some series of a panel, each its own bar."""
    rows = np.array([bars[s].values[:, i] for s, i in zip(which, at, strict=True)]).T
    stamps = np.array([bars[s].timestamp[i] for s, i in zip(which, at, strict=True)])
    return panel.append(which, stamps, rows, sessions[at])


@pytest.mark.parametrize("kind", ["minutes", "still"])
def test_a_panel_gives_every_series_its_batch_values(kind):
    """Series of different ages, some without enough bars yet, some that skip bars."""
    ages = [0, 1, 13, 15, 27, 33, 198, 199, 200, 201, 390, 640, 1200]
    made = [series(kind, seed) for seed in range(len(ages))]
    bars, sessions = [b for b, _ in made], made[0][1]
    batch = [compute(EVERYTHING, b, sessions) for b in bars]
    panel = Panel(EVERYTHING, len(ages))
    assert panel.columns == tuple(COLUMNS)
    at = np.array(ages)
    for number, age in enumerate(ages):
        panel.load(number, cut(bars[number], 0, age), sessions[:age])
        if age:
            assert_same(
                panel.values[:, number : number + 1], batch[number][:, age - 1 : age], bars[0]
            )
    random = np.random.default_rng(1)
    for step in range(40):
        which = np.flatnonzero(random.random(len(ages)) < 0.7) if step % 4 else np.arange(len(ages))
        random.shuffle(which)
        got = stepped(panel, which, bars, sessions, at[which])
        for place, number in enumerate(which.tolist()):
            wanted = batch[number][:, at[number] : at[number] + 1]
            assert_same(got[:, place : place + 1], wanted, bars[number])
            np.testing.assert_array_equal(panel.values[:, number], got[:, place])
        at[which] += 1


def test_a_revised_bar_of_a_panel_is_as_if_it_had_come_so():
    ages = [1, 15, 200, 201, 202, 500, 800]
    made = [series("minutes", seed) for seed in range(len(ages))]
    bars, sessions = [b for b, _ in made], made[0][1]
    panel = Panel(EVERYTHING, len(ages))
    for number, age in enumerate(ages):
        panel.load(number, cut(bars[number], 0, age), sessions[:age])
    for offset in (0, 1, 2):  # the history's last bar, then appended ones
        at = np.array(ages) - 1 + offset
        which = np.arange(len(ages))
        if offset:
            stepped(panel, which, bars, sessions, at)
        rows = np.array([b.values[:, i] for b, i in zip(bars, at, strict=True)]).T
        stamps = np.array([b.timestamp[i] for b, i in zip(bars, at, strict=True)])
        for factor in (1.1, 0.9, 1.0):
            got = panel.revise(which, stamps, rows * factor, sessions[at])
        for number in which.tolist():
            wanted = compute(EVERYTHING, bars[number], sessions)[:, at[number] : at[number] + 1]
            assert_same(got[:, number : number + 1], wanted, bars[number])


def test_a_panel_series_can_begin_anew():
    bars, sessions = series("days")
    panel = Panel(DEFAULT, 3)
    panel.load(1, bars, sessions)
    assert np.isnan(panel.values[:, [0, 2]]).all()
    panel.load(1, cut(bars, 0, 300), sessions[:300])
    wanted = compute(DEFAULT, bars, sessions)
    np.testing.assert_allclose(panel.values[:, 1], wanted[:, 299], rtol=1e-10, atol=1e-10)
    got = stepped(panel, np.array([1]), [bars, bars], sessions, np.array([300]))
    np.testing.assert_allclose(got[:, 0], wanted[:, 300], rtol=1e-10, atol=1e-10)
    assert np.isnan(panel.values[:, [0, 2]]).all()


def test_a_panel_takes_indicators_without_an_incremental_form():
    indicators = resolve(["kdj_9_3", "sma_5", "relative_volume_2"])
    bars, sessions = series("minutes")
    batch = compute(indicators, bars, sessions)
    panel = Panel(indicators, 2)
    panel.load(0, cut(bars, 0, 900), sessions[:900])
    for i in range(900, 912):
        got = stepped(panel, np.array([0]), [bars], sessions, np.array([i]))
        np.testing.assert_allclose(got[:, 0], batch[:, i], rtol=1e-9)
    got = panel.revise(
        np.array([0]), bars.timestamp[911:912], bars.values[:, 911:912], sessions[911:912]
    )
    np.testing.assert_allclose(got[:, 0], batch[:, 911], rtol=1e-9)


def test_half_days_reach_live_series():
    early = frozenset({1})
    timestamp, sessions = minutes(390 * 5)
    bars = bars_of(timestamp, walk(len(timestamp)))
    kept = (sessions != 1) | (np.arange(len(timestamp)) % 390 < 210)
    bars, sessions = bars.take(kept), sessions[kept]
    chosen = resolve("relative_volume_2")
    wanted = compute(chosen, bars, sessions, early=early)
    live, panel = Live(chosen, early), Panel(chosen, 1, early=early)
    panel.load(0, cut(bars, 0, 1), sessions[:1])
    got = []
    for i, stamp in enumerate(bars.timestamp.tolist()):
        got.append(live.append(stamp, bars.values[:, i], int(sessions[i])))
    np.testing.assert_allclose(np.array(got).T, wanted, rtol=1e-12)
    for i in range(1, len(bars)):
        last = stepped(panel, np.array([0]), [bars], sessions, np.array([i]))
    np.testing.assert_allclose(last, wanted[:, -1:], rtol=1e-12)


def test_series_of_one_age_come_in_any_order():
    made = [series("days", seed)[0] for seed in range(4)]
    _, sessions = series("days")
    panel = Panel(DEFAULT, 4)
    for number, bars in enumerate(made):
        panel.load(number, cut(bars, 0, 300), sessions[:300])
    for i, order in enumerate([[3, 1, 0, 2], [0, 1, 2, 3], [1, 2], []], 300):
        which = np.array(order, np.int64)
        rows = np.array([made[n].values[:, i] for n in order]).reshape(-1, 7).T
        stamps, labels = np.full(len(order), made[0].timestamp[i]), np.full(len(order), i)
        got = panel.append(which, stamps, rows, labels)
        assert got.shape == (len(panel.columns), len(order))
        for place, number in enumerate(order):
            wanted = compute(DEFAULT, cut(made[number], 0, i + 1), sessions[: i + 1])[:, -1]
            np.testing.assert_allclose(got[:, place], wanted, rtol=1e-9, atol=1e-10)


def test_what_begins_with_the_session_keeps_no_more_than_it_needs():
    """pandas-ta's own are computed anew: from the session's bars, not from all there ever were."""
    bars, sessions = series("minutes")
    chosen = resolve(["pvt", "pivots", "kdj"])
    batch = compute(chosen, bars, sessions)
    live = Live(chosen)
    live.load(cut(bars, 0, 1160), sessions[:1160])
    for i in range(1160, 1190):
        got = live.append(int(bars.timestamp[i]), bars.values[:, i], int(sessions[i]))
        np.testing.assert_allclose(got, batch[:, i], rtol=1e-9)


def test_bars_that_cannot_be_written_to_are_taken():
    bars, sessions = series("minutes")
    frozen = bars.frozen()
    np.testing.assert_array_equal(
        compute(EVERYTHING, frozen, sessions), compute(EVERYTHING, bars, sessions)
    )
    Live(EVERYTHING).load(frozen, sessions)
