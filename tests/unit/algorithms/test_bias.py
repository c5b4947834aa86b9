"""The bias analysers: planted biases are named, honest strategies pass."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest

from algorithms import Algorithm, AlgorithmError, BarArrays, Context, MarketData, Param
from algorithms.bias import BiasReport, Finding, Level, check
from algorithms.frames import market_of
from algorithms.loader import catalogue


def walk(seed: int, n: int, volatility: float = 0.012) -> np.ndarray[Any, Any]:
    return 100 * np.exp(np.random.default_rng(seed).normal(0.0002, volatility, n).cumsum())


def bars(index: pd.DatetimeIndex, seed: int = 1, volatility: float = 0.012) -> pd.DataFrame:
    rng = np.random.default_rng(seed + 1000)
    close = walk(seed, len(index), volatility)
    opened = np.roll(close, 1) * np.exp(rng.normal(0, volatility / 4, len(index)))
    opened[0] = close[0]
    spread = np.exp(np.abs(rng.normal(0, volatility / 3, len(index))))
    return pd.DataFrame(
        {
            "open": opened,
            "high": np.maximum(opened, close) * spread,
            "low": np.minimum(opened, close) / spread,
            "close": close,
            "volume": rng.integers(1_000_000, 9_000_000, len(index)).astype(float),
        },
        index=index,
    )


def sessions(count: int, start: str = "2019-01-02") -> pd.DatetimeIndex:
    import marketdata as md

    return pd.DatetimeIndex(md.sessions(start, "2024-06-01").index[:count])


def daily(count: int = 500, seed: int = 1) -> pd.DataFrame:
    return bars(sessions(count), seed)


def minutes(days: int = 5, seed: int = 1) -> pd.DataFrame:
    found = [
        pd.date_range(day + pd.Timedelta(hours=9, minutes=30), periods=390, freq="min")
        for day in sessions(days, "2023-03-13")
    ]
    index = pd.DatetimeIndex(np.concatenate([f.to_numpy() for f in found]))
    return bars(index.tz_localize("America/New_York"), seed, 0.0008)


# ---------------------------------------------------------------------------- planted biases


def future(bars: BarArrays) -> np.ndarray[Any, Any]:
    return pd.Series(bars.close).shift(-1).to_numpy() - bars.close


def filled_future(bars: BarArrays) -> np.ndarray[Any, Any]:
    """Without the NaN at the end that would give it away."""
    return np.append(bars.close[2:], bars.close[-2:][: len(bars)]) - bars.close


def centred(bars: BarArrays) -> np.ndarray[Any, Any]:
    return bars.close - pd.Series(bars.close).rolling(11, center=True, min_periods=1).mean()


def unclosed_hour(bars: BarArrays) -> np.ndarray[Any, Any]:
    """The close of the hour a minute lies in: labelled left, filled forward over the hour."""
    index = pd.DatetimeIndex(bars.timestamp.astype("datetime64[us]"))
    close = pd.Series(bars.close, index=index)
    hourly = close.resample("1h").last()
    return np.asarray(hourly.reindex(index.floor("1h"))) / bars.close - 1


def unclosed_week(bars: BarArrays) -> np.ndarray[Any, Any]:
    index = pd.DatetimeIndex(bars.timestamp.astype("datetime64[us]"))
    close = pd.Series(bars.close, index=index)
    return close.groupby(index.to_period("W")).transform("last").to_numpy() / bars.close - 1


def whole_sample(bars: BarArrays) -> np.ndarray[Any, Any]:
    return -(bars.close - bars.close.mean()) / bars.close.std()


class Planted(Algorithm):
    """Buys when its signal is above 0 and sells when it is below."""

    symbols = ("AAPL",)

    def on_bar(self, ctx: Context) -> None:
        signal = ctx.signal[-1]
        if signal > 0 and not ctx.position():
            ctx.order_value(0.9 * ctx.equity)
        elif signal < 0 and ctx.position():
            ctx.close_position()


def planted(function: Any, **settings: Any) -> Algorithm:
    kind = type("Planted", (Planted,), {"indicators": {"signal": function}})
    return kind(**settings)


def biases(report: BiasReport) -> dict[str, Finding]:
    return {finding.what: finding for finding in report.biases}


@pytest.mark.parametrize(
    ("function", "said", "reach"),
    [
        (future, "looks 1 bar ahead", 1),
        (filled_future, "looks 2 bars ahead", 2),
        (centred, "looks 5 bars ahead", 5),
    ],
)
def test_a_future_index_and_a_centred_window_are_caught(function: Any, said: str, reach: int):
    report = check(planted(function), daily(), progress=False)
    found = biases(report)
    assert not report.passed
    assert set(found) == {"signal", "orders"}
    signal = found["signal"]
    assert said in signal.text
    assert signal.kind == "look-ahead"
    assert signal.facts["bars_moved"] == reach
    assert signal.facts["symbol"] == "AAPL"
    assert signal.facts["with_later"] != signal.facts["without_later"]
    orders = found["orders"].facts
    assert orders["with_later"] != orders["without_later"]
    assert orders["at"] <= orders["cut"]


@pytest.mark.parametrize(
    ("function", "frame", "timeframe"),
    [(unclosed_hour, minutes, "1min"), (unclosed_week, daily, "1day")],
)
def test_an_unclosed_longer_bar_is_caught(function: Any, frame: Any, timeframe: str):
    report = check(planted(function, timeframe=timeframe), frame(), progress=False)
    signal = biases(report)["signal"]
    assert "before it has closed" in signal.text
    assert 1 < signal.facts["bars_moved"] < 60
    assert signal.facts["cuts_moved"] <= report.cuts


def test_the_day_that_is_not_over_is_caught_and_the_closed_one_passes():
    """A daily average under minutes: by hand with today's close in it, or as the engine gives it."""

    def todays_close(bars: BarArrays) -> np.ndarray[Any, Any]:
        days = pd.DatetimeIndex(bars.timestamp.astype("datetime64[us]")).floor("D")
        return np.asarray(pd.Series(bars.close).groupby(days).transform("last")) / bars.close - 1

    frame = minutes(6)
    report = check(planted(todays_close, timeframe="1min"), frame, progress=False)
    assert "before it has closed" in biases(report)["signal"].text

    class Closed(Algorithm):
        symbols = ("AAPL",)
        timeframe = "1min"
        indicators = ("sma_3@1hour",)

        def on_bar(self, ctx: Context) -> None:
            view = ctx["AAPL", "1hour"]
            if ctx.close[-1] < view.sma_3[-1] and not ctx.position():
                ctx.order_value(0.9 * ctx.equity)
            elif ctx.close[-1] > view.sma_3[-1] * 1.001:
                ctx.close_position()

    opens = frame["close"].resample("1h", offset="30min")
    hours = pd.DataFrame(
        {
            "open": opens.first(), "high": opens.max(), "low": opens.min(), "close": opens.last(),
            "volume": opens.count().astype(float),
        }
    ).dropna()  # fmt: skip
    market = market_of(frame, ["AAPL"], "1min")
    hourly = market_of(hours, ["AAPL"], "1hour")
    both = MarketData({**market.series, **hourly.series}, market.hours)
    report = check(Closed, both, progress=False)
    assert report.passed, str(report)
    assert report.decisions > 5


def test_full_sample_normalisation_is_caught():
    report = check(planted(whole_sample), daily(), progress=False)
    signal = biases(report)["signal"]
    assert "whole sample" in signal.text
    assert signal.facts["change"] > 1e-6


def test_every_planted_bias_is_caught_with_few_cuts_and_at_other_prices():
    """Not by luck of one path: ten of them, ten moments each."""
    for seed in range(10):
        for function in (future, centred, unclosed_week, whole_sample):
            report = check(planted(function), daily(250, seed), cuts=10, progress=False)
            assert "signal" in biases(report), (seed, function.__name__)


def test_what_on_bar_knows_beside_its_context_is_caught_by_its_orders():
    class Cheat(Planted):
        seen: ClassVar[list[int]] = []

        def on_bar(self, ctx: Context) -> None:
            # The last price of everything there is at the time of the run.
            last = ctx._engine.market.of("AAPL", "1day").raw[3, -1]
            if ctx.close[-1] < last and not ctx.position():
                ctx.order(10)
            elif ctx.close[-1] > last and ctx.position():
                ctx.close_position()

    report = check(Cheat, daily(), progress=False)
    assert set(biases(report)) == {"orders"}
    assert "no indicator moved" in biases(report)["orders"].cure


def test_an_indicator_that_needs_the_later_data_to_run_is_caught():
    length = 500

    def table(bars: BarArrays) -> np.ndarray[Any, Any]:
        if len(bars) < length:
            raise ValueError("operands could not be broadcast together")
        return np.sin(np.arange(length))

    report = check(planted(table), daily(length), progress=False)
    assert biases(report)["data"].facts["error"] == "ValueError"


# ---------------------------------------------------------------------------------- honesty


def test_trailing_versions_of_the_same_ideas_pass():
    def trailing(bars: BarArrays) -> np.ndarray[Any, Any]:
        return bars.close - pd.Series(bars.close).rolling(11).mean().to_numpy()

    def expanding(bars: BarArrays) -> np.ndarray[Any, Any]:
        close = pd.Series(bars.close)
        return (-(close - close.expanding(20).mean()) / close.expanding(20).std()).to_numpy()

    for function in (trailing, (trailing, 10), expanding):
        assert check(planted(function), daily(), progress=False).biases == ()


def test_a_closed_longer_bar_passes():
    class Hourly(Algorithm):
        symbols = ("AAPL",)
        timeframe = "1day"
        indicators = ("rsi_5", "macd")

        def on_bar(self, ctx: Context) -> None:
            if ctx.rsi_5[-1] < 40 and ctx.macd_hist[-1] < 0:
                ctx.order_target_percent(0.9, stop_loss=0.95 * ctx.close[-1])
            elif ctx.rsi_5[-1] > 60:
                ctx.close_position()

    assert check(Hourly, daily(), progress=False).passed


@pytest.mark.parametrize("name", catalogue())
def test_the_catalogue_passes(name: str):
    kind = catalogue()[name]
    frames = {s: bars(sessions(700), seed) for seed, s in enumerate(kind.symbols)}
    report = check(kind, frames, cuts=25, progress=False)
    assert report.biases == (), str(report)
    assert report.decisions > 5


# ------------------------------------------------------------------------------------- state


def test_state_that_outlives_a_run_is_caught():
    class Remembers(Planted):
        bought: ClassVar[list[float]] = []

        def on_bar(self, ctx: Context) -> None:
            self.bought.append(ctx.close[-1])
            if len(self.bought) % 50 == 0:
                ctx.order(len(self.bought))

    report = check(Remembers, daily(), progress=False)
    assert biases(report)["orders"].kind == "state"
    assert "two runs over the same data differ" in biases(report)["orders"].text


def test_random_decisions_and_random_indicators_are_caught():
    rng = np.random.default_rng()

    def noise(bars: BarArrays) -> np.ndarray[Any, Any]:
        return rng.normal(size=len(bars))

    report = check(planted(noise), daily(), progress=False)
    assert {f.kind for f in report.biases} >= {"state"}
    assert "computed twice" in next(f.text for f in report.biases if f.what == "signal")


# ----------------------------------------------------------------------------------- warm-up


def smoothed(bars: BarArrays, span: int = 40) -> np.ndarray[Any, Any]:
    return bars.close - pd.Series(bars.close).ewm(span=span, adjust=False).mean().to_numpy()


def test_a_declared_look_back_that_is_too_short_is_a_bias():
    report = check(planted((smoothed, 20)), daily(900), progress=False)
    found = biases(report)["signal"]
    assert found.kind == "warm-up"
    assert found.facts["declared"] == 20
    assert found.facts["settled"] in (500, None)


def test_a_recursive_indicator_without_look_back_shows_where_it_settles():
    report = check(planted(smoothed), daily(1200), progress=False)
    assert report.passed
    (row,) = report.warm_up
    assert row.declared is None
    assert row.moves[50] > row.moves[100] > row.moves[250]
    assert row.settled == 500
    assert list(report.warm_up_table.index) == ["signal"]


def test_what_never_settles_is_a_warning():
    def since_the_first(bars: BarArrays) -> np.ndarray[Any, Any]:
        return bars.close / bars.close[0] - 1

    report = check(planted(since_the_first), daily(900), progress=False)
    assert report.passed
    assert any("where the data begins" in f.text for f in report.warnings)


# ------------------------------------------------------------------------------- surroundings


class Weekly(Algorithm):
    """Trades often and evenly, whatever the prices."""

    shares = Param(10)

    def on_bar(self, ctx: Context) -> None:
        for symbol in ctx.symbols:
            view = ctx[symbol]
            if view.has_bar and view.bars % 5 == 0:
                ctx.order_target(0 if view.position else self.shares, symbol)


def warned(report: BiasReport, kind: str) -> list[Finding]:
    return [f for f in report.warnings if f.kind == kind]


def test_a_clean_run_has_no_warnings():
    report = check(Weekly(symbols=["A"]), {"A": daily()}, progress=False)
    assert report.findings == ()
    assert "passed" in str(report)


def test_symbols_that_begin_or_end_within_the_run_are_told():
    frames = {"A": daily(), "B": daily(seed=2).iloc[:300], "C": daily(seed=3).iloc[200:]}
    report = check(Weekly(symbols=list(frames)), frames, progress=False)
    found = {f.what: f.text for f in warned(report, "universe")}
    assert "end before the run does" in found["B"]
    assert "begin within the run" in found["C"]


def test_a_large_universe_of_survivors_is_told():
    frames = {f"S{n}": daily(120, n) for n in range(12)}
    report = check(Weekly(symbols=list(frames)), frames, progress=False)
    assert "knowing who would" in warned(report, "universe")[0].text


def test_missing_sessions_and_thin_minutes_are_told():
    frame = daily()
    report = check(Weekly(symbols=["A"]), frame.drop(frame.index[100:103]), progress=False)
    assert warned(report, "gaps")[0].text.startswith("3 sessions without a bar")
    thin = minutes().sample(frac=0.5, random_state=1).sort_index()
    report = check(Weekly(symbols=["A"], timeframe="1min"), thin, progress=False)
    assert "part of the time" in warned(report, "gaps")[0].text


def test_a_split_that_nobody_booked_is_told():
    frame = daily()
    frame.loc[frame.index[250] :, ["open", "high", "low", "close"]] /= 4
    report = check(Weekly(symbols=["A"]), frame, progress=False)
    (found,) = warned(report, "actions")
    assert "4-for-1 split" in found.text
    assert found.facts["day"] == f"{frame.index[250]:%Y-%m-%d}"


def test_fills_that_take_most_of_a_bar_and_limits_touched_are_told():
    frame = daily().assign(volume=50.0)
    report = check(Weekly(symbols=["A"]), frame, progress=False)
    assert "of their bar's volume" in warned(report, "fills")[0].text

    class AtTheLow(Algorithm):
        symbols = ("A",)

        def on_bar(self, ctx: Context) -> None:
            at = ctx["A"].bars
            if at % 5 == 0 and at < 490:
                ctx.order(1, limit=round(float(frame["low"].iloc[at]), 10))

    frame["low"] = frame["low"].round(10)
    report = check(AtTheLow, frame, progress=False)
    assert any("touched the limit" in f.text for f in warned(report, "fills"))


def test_what_a_strategy_reads_past_its_context_is_told():
    class Reads(Weekly):
        symbols = ("A",)
        files: tuple[str, ...] = ()

        def on_start(self, ctx: Context) -> None:
            self.all = [pd.read_csv(name) for name in self.files]

    (found,) = warned(check(Reads, daily(), progress=False), "data")
    assert found.what == "Reads.on_start"
    assert found.facts["calls"] == ["read_csv"]


def test_too_few_trades_and_none_at_all_are_told():
    report = check(Weekly(symbols=["A"]), daily(40), progress=False)
    assert "too few" in warned(report, "sample")[0].text

    class Idle(Algorithm):
        symbols = ("A",)

    assert "ordered nothing" in warned(check(Idle, daily(60), progress=False), "sample")[0].text


# ------------------------------------------------------------------------------------ report


def test_the_report_reads_as_text_and_as_json():
    report = check(planted(future), daily(), progress=False)
    text = str(report)
    assert text.splitlines()[-1].startswith("FAILED: 2 biases")
    assert "BIAS: look-ahead, signal" in text
    assert "New York" in text
    record = json.loads(report.to_json())
    assert record["passed"] is False
    assert record["biases"][0]["facts"]["without_later"] is None, "NaN is null"
    assert record["cuts"] == report.cuts == 40
    assert all(f.level is Level.BIAS for f in report.findings[: len(report.biases)])


def test_what_cannot_be_checked_is_said():
    with pytest.raises(AlgorithmError, match="0 cuts"):
        check(Weekly(symbols=["A"]), daily(40), cuts=0, progress=False)
    with pytest.raises(AlgorithmError, match="cash"):
        check(Weekly(symbols=["A"]), daily(40), cash=0, progress=False)
    with pytest.raises(AlgorithmError, match="without a start"):
        check(Weekly(symbols=["A"]), progress=False)
