"""Every pandas-ta indicator: what it gives is pandas-ta's, at t it knows nothing later."""

from __future__ import annotations

import inspect
import threading
import warnings

import numpy as np
import pandas as pd
import pytest

from marketdata.errors import RequestError
from marketdata.indicators import (
    UNBOUNDED,
    Indicator,
    Live,
    compute,
    foreign,
    history,
    passthrough,
    resolve,
)
from marketdata.indicators.generated import ROUGH, generated
from marketdata.indicators.inputs import Inputs
from marketdata.types import Bars, Int64s, Timeframe
from tests.indicator_series import bars_of, cut, days, minutes, read, walk
from tests.shared_data import SHARED

SERVED = foreign.served()
OF_SIZE = {"cfo": 100.0}
"""Percentages of a difference of prices: as precise as the price, which is 100."""
AHEAD = sorted({"zigzag", "tos_stdevall", "vhm"})
COUNT = 700
TIMESTAMP, SESSIONS = days(COUNT)
CARRIED = dict.fromkeys(("bbands", "cdl_z", "stdev", "variance", "zscore", "eom"), 1e-9)
CARRIED |= {"kurtosis": 1e-7, "skew": 1e-7}
"""How far pandas' moments of windows are off, which carry rounding from bar to bar."""
BARS = bars_of(TIMESTAMP, walk(COUNT, seed=11, noise=0.015), seed=3)


def asked(name: str) -> Indicator:
    return passthrough.by_name(name, [], {})


def pandas_ta_says(name: str) -> pd.DataFrame:
    """Return what a user of pandas-ta gets who states talib=False and what keeps it causal."""
    import pandas_ta

    index = pd.DatetimeIndex(TIMESTAMP.astype("datetime64[us]"), tz="UTC")
    index = index.tz_convert("America/New_York").tz_localize(None)
    frame = pd.DataFrame(
        BARS.values[:5].T.copy(), index, ["open", "high", "low", "close", "volume"]
    )
    function = getattr(pandas_ta, name)
    wanted = inspect.signature(function).parameters
    series = {key: frame[key.strip("_")] for key in wanted if key.strip("_") in frame}
    given = {"dpo": {"centered": False}, "ichimoku": {"lookahead": False}}.get(name, {})
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        answer = function(**series, talib=False, **given)
    answer = answer[0] if isinstance(answer, tuple) else answer
    return answer.to_frame() if isinstance(answer, pd.Series) else answer


@pytest.mark.parametrize("name", SERVED)
def test_values_are_pandas_tas_and_know_nothing_later(name):
    indicator = asked(name)
    got = compute((indicator,), BARS, SESSIONS)
    wanted = pandas_ta_says(name).astype(float).to_numpy(copy=True).T
    if name in ("cdl_inside", "cdl_pattern"):  # pandas-ta compares bar 0 with the last one
        inside = [column.endswith("_inside") for column in indicator.columns]
        assert np.isnan(got[inside, 0]).all()
        wanted[inside, 0] = np.nan
    rounding = CARRIED.get(name, 1e-12)
    np.testing.assert_allclose(got, wanted, rtol=rounding, err_msg=name)
    assert not np.isnan(got[:, -1]).all() or np.isfinite(got).any()
    for end in (COUNT - 1, COUNT - 13, COUNT * 3 // 4):
        before = compute((indicator,), cut(BARS, 0, end), SESSIONS[:end])
        np.testing.assert_allclose(
            before, got[:, :end], rtol=1e-9, atol=1e-11 * np.nanmax(np.abs(got)), err_msg=name
        )


@pytest.mark.parametrize("name", AHEAD)
def test_what_looks_ahead_is_not_served(name):
    with pytest.raises(RequestError, match="looks ahead"):
        passthrough.by_name(name, [], {})


@pytest.mark.parametrize("name", ["zigzag", "tos_stdevall", "vhm"])
def test_the_probe_itself_finds_what_looks_ahead(name, monkeypatch):
    """The list of refused names is what the probe found: a new one would be found as well."""
    monkeypatch.setattr(foreign, "REFUSED", {})
    with pytest.raises(RequestError, match="looks ahead"):
        passthrough.by_name(name, [], {})


@pytest.mark.parametrize(
    "name", ["kama", "kc", "supertrend", "tsi", "jma", "hma", "psar", "stc", "cmf", "chop", "crsi"]
)
def test_windows_that_share_a_bar_agree(name):
    indicator = asked(name)
    needed = history((indicator,)).bars
    count = needed + 400
    timestamp, sessions = days(count)
    bars = bars_of(timestamp, walk(count, seed=7, noise=0.012), seed=5)
    whole = compute((indicator,), bars, sessions)
    for end in (needed + 50, needed + 200, count):
        start = end - needed - 1
        part = compute((indicator,), cut(bars, start, end), sessions[start:end])
        scale = np.nanmax(np.abs(whole), axis=1)
        np.testing.assert_array_less(
            np.abs(np.nan_to_num(part[:, -1] - whole[:, end - 1])), 1e-9 * scale + 1e-12
        )
        np.testing.assert_array_equal(np.isnan(part[:, -1]), np.isnan(whole[:, end - 1]))


@pytest.mark.parametrize("name", ["nvi", "pvt", "drawdown"])
def test_what_counts_from_the_first_bar_begins_with_the_session(name):
    indicator = asked(name)
    assert indicator.stabilisation == UNBOUNDED
    assert history((indicator,), Timeframe.DAY_1).bars >= UNBOUNDED
    assert history((indicator,), Timeframe.MIN_1) == (0, 1)
    timestamp, sessions = minutes(1000)
    bars = bars_of(timestamp, walk(1000))
    whole = compute((indicator,), bars, sessions)
    later = compute((indicator,), cut(bars, 390, 1000), sessions[390:])
    np.testing.assert_array_equal(whole[:, 390:], later)


def _markets() -> list[tuple[str, Timeframe, Bars, Int64s]]:
    """Return 2,000 generated bars and, where there are, real ones: days and minutes."""
    rough = generated(2000, ROUGH)
    found = [("rough", Timeframe.DAY_1, Bars(rough.timestamp, rough.values), rough.sessions)]
    for path, timeframe, wanted in (
        ("daily/us88_2012-2017.csv.gz", Timeframe.DAY_1, ("EXC", "LMT")),
        ("minute/us24_2019-02.csv.gz", Timeframe.MIN_1, ("SBUX",)),
    ):
        if (SHARED / path).is_file():
            found += [
                (symbol, timeframe, bars, counted)
                for symbol, bars, counted in read(path)
                if symbol in wanted
            ]
    return found


MARKETS = _markets()


@pytest.mark.parametrize("name", SERVED)
def test_no_more_history_than_declared_is_needed(name):
    """The value of a window of exactly as many bars as declared is that of all bars."""
    indicator = asked(name)
    random = np.random.default_rng(len(name))
    for market, timeframe, bars, sessions in MARKETS:
        declared = history((indicator,), timeframe)
        needed = max(declared.bars, (declared.sessions + 1) * 390 if declared.sessions else 0)
        if needed >= len(bars):
            continue
        whole = compute((indicator,), bars, sessions)
        usual = np.where(np.isfinite(whole), np.abs(whole), 0.0).mean(axis=1)
        for end in (len(bars), *random.integers(needed + 1, len(bars) + 1, 3).tolist()):
            start = end - needed - 1
            part = compute((indicator,), cut(bars, start, end), sessions[start:end])[:, -1]
            wanted = whole[:, end - 1]
            size = np.maximum(np.abs(wanted), 0.1 * np.maximum(usual, OF_SIZE.get(name, 0.0)))
            off = np.abs(part - wanted) > 1e-9 * size
            where = f"{name} of {market} at {end}"
            np.testing.assert_array_equal(np.isnan(part), np.isnan(wanted), err_msg=where)
            assert not off.any(), (where, part[off], wanted[off])


def test_what_never_forgets_is_declared_so():
    unbounded = {name for name in SERVED if asked(name).stabilisation >= UNBOUNDED}
    assert unbounded == {"ad", "aobv", "drawdown", "nvi", "obv", "pvt"}
    assert {asked(name).definition.scope for name in unbounded} == {"series"}


@pytest.mark.parametrize(
    ("name", "lookback"), [("cdl_inside", 1), ("coppock", 23), ("pivots", 1), ("stoch", 17)]
)
def test_one_bar_has_the_value_that_300_have(name, lookback):
    indicator = asked(name)
    assert indicator.lookback == lookback
    whole = compute((indicator,), BARS, SESSIONS)
    assert np.isfinite(whole[:, lookback:]).any(axis=0).all()
    for end in range(COUNT - 40, COUNT + 1):
        start = end - history((indicator,)).bars - 1
        part = compute((indicator,), cut(BARS, start, end), SESSIONS[start:end])
        np.testing.assert_allclose(part[:, -1], whole[:, end - 1], rtol=1e-9)


def test_a_bar_without_volume_does_not_end_an_average():
    values = BARS.values.copy()
    values[4, 100] = 0.0
    got = compute(resolve("eom"), Bars(TIMESTAMP, values), SESSIONS)[0]
    wanted = compute(resolve("eom"), cut(BARS, 101, COUNT), SESSIONS[101:])[0]
    assert np.isnan(got[100:114]).all()
    np.testing.assert_allclose(got[115:], wanted[14:], rtol=1e-9)


def test_pivots_do_not_depend_on_the_weekday_a_window_begins():
    """pandas-ta alone takes a Monday-to-Friday window for another frequency, and does not shift."""
    (pivots,) = resolve("pivots")
    _, high, low, close, *_ = BARS.values
    for start in range(10):
        got = compute((pivots,), cut(BARS, start, start + 5), SESSIONS[start : start + 5])[0]
        middle = (high + low + close)[start : start + 4] / 3
        np.testing.assert_allclose(got, [np.nan, *middle], rtol=1e-12)


def test_pivots_of_demark_are_refused():
    with pytest.raises(RequestError, match="all of them at once"):
        resolve({"pivots": {"method": "demark"}})
    assert len(resolve({"pivots": {"method": "fibonacci"}})[0].columns) == 7


def test_pivots_are_those_of_the_session_before():
    (pivots,) = resolve("pivots")
    assert history((pivots,), Timeframe.MIN_5).sessions == 2
    timestamp, sessions = minutes(1170)
    bars = bars_of(timestamp, walk(1170))
    got = compute((pivots,), bars, sessions)[0]
    _, high, low, close, *_ = bars.values[:, 390:780]
    assert np.isnan(got[:390]).all()
    np.testing.assert_allclose(got[780:], (high.max() + low.min() + close[-1]) / 3)


@pytest.mark.parametrize("name", ["kama", "kdj", "cmf"])
def test_a_live_series_has_the_batch_values(name):
    indicator = asked(name)
    batch = compute((indicator,), BARS, SESSIONS)
    live = indicator.incremental()
    assert isinstance(live, Live)
    live.load(cut(BARS, 0, COUNT - 30), SESSIONS[: COUNT - 30])
    for i in range(COUNT - 30, COUNT):
        live.append(int(TIMESTAMP[i]), BARS.values[:, i] * 1.01, i)
        got = live.revise(int(TIMESTAMP[i]), BARS.values[:, i], i)
        np.testing.assert_allclose(got, batch[:, i], rtol=1e-9)


def test_too_few_bars_give_no_values_and_no_error():
    for name in ("crsi", "kst", "qqe", "vortex"):
        indicator = asked(name)
        for count in (1, 2, 5):
            got = compute((indicator,), cut(BARS, 0, count), SESSIONS[:count])
            assert got.shape == (len(indicator.columns), count)
            assert np.isnan(got).all()


def test_parameters_reach_pandas_ta():
    import pandas_ta

    got = compute(resolve("kama_5_3_20"), BARS, SESSIONS)[0]
    close = pd.Series(BARS.values[3].copy())
    np.testing.assert_allclose(got, pandas_ta.kama(close, 5, 3, 20), rtol=1e-12)
    got = compute(resolve({"bbands": {"length": 20, "ddof": 0}}), BARS, SESSIONS)
    ours = compute(resolve("bbands_20_2"), BARS, SESSIONS)
    np.testing.assert_allclose(got[2], ours[0], rtol=1e-9)


def test_pandas_tas_bands_state_their_ddof():
    (sample,) = resolve({"bbands": {"length": 20, "lower_std": 2.0}})
    got = compute((sample,), BARS, SESSIONS)[0]
    close = pd.Series(BARS.values[3].copy())
    wanted = close.rolling(20).mean() - 2 * close.rolling(20).std(ddof=1)
    np.testing.assert_allclose(got, wanted, rtol=1e-9)


def test_threads_share_it():
    indicators = resolve(["kama_10", "kdj", "cmf_20"])
    wanted = compute(indicators, BARS, SESSIONS)
    wrong: list[int] = []

    def work() -> None:
        for _ in range(3):
            if not np.array_equal(compute(indicators, BARS, SESSIONS), wanted, equal_nan=True):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("ours", "name", "given", "column", "start"),
    [
        ("sma_20", "sma", {"length": 20}, 0, 0),
        ("wma_20", "wma", {"length": 20}, 0, 0),
        ("ema_20", "ema", {"length": 20}, 0, 0),
        ("macd_12_26_9", "macd", {}, 0, 600),
        ("macd_12_26_9_hist", "macd", {}, 1, 600),
        ("macd_12_26_9_signal", "macd", {}, 2, 600),
        ("bbands_20_2_lower", "bbands", {"length": 20, "ddof": 0}, 0, 0),
        ("bbands_20_2_middle", "bbands", {"length": 20, "ddof": 0}, 1, 0),
        ("bbands_20_2_upper", "bbands", {"length": 20, "ddof": 0}, 2, 0),
        ("stdev_20", "stdev", {"length": 20, "ddof": 0}, 0, 0),
        ("rsi_14", "rsi", {"length": 14}, 0, 400),
        ("atr_14", "atr", {"length": 14}, 0, 400),
        ("willr_14", "willr", {"length": 14}, 0, 0),
        ("stoch_14_3_3_stochk", "stoch", {}, 0, 17),
        ("stoch_14_3_3_stochd", "stoch", {}, 1, 0),
        ("roc_10", "roc", {"length": 10}, 0, 0),
        ("mom_10", "mom", {"length": 10}, 0, 0),
        ("vwap", "vwap", {}, 0, 0),
    ],
)
def test_the_catalogue_is_pandas_ta_where_the_formula_is_the_same(ours, name, given, column, start):
    """From `start` on where the two begin their averages otherwise.

    Two are missing on purpose: pandas-ta's CCI subtracts the quotient (``tp - mean / (c * mad)``),
    and its MFI takes an unchanged price for a fallen one.
    """
    got = compute(resolve(ours), BARS, SESSIONS)[0]
    answer = foreign.call(name, Inputs(BARS, SESSIONS), given)
    assert answer is not None
    wanted = answer.iloc[:, column].to_numpy()
    np.testing.assert_allclose(got[start:], wanted[start:], rtol=1e-9, atol=1e-9)
