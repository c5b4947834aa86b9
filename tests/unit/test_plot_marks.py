"""What is drawn beside bars: indicators over their own bars, trades, gaps."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest

from marketdata.errors import RequestError
from marketdata.indicators import resolve
from marketdata.plotting import MAX_CANDLES, plot, series_of
from marketdata.types import Interval


def bars(start="2024-03-08 14:30", count=60, freq="1min", tz="UTC", seed=1, **facts) -> Any:
    random = np.random.default_rng(seed)
    stamps = pd.date_range(start, periods=count, freq=freq, tz="UTC", unit="us", name="timestamp")
    close = 100 + random.normal(0, 0.1, count).cumsum()
    opened = close + random.normal(0, 0.05, count)
    frame = pd.DataFrame(
        {
            "open": opened,
            "high": np.maximum(opened, close) + 0.05,
            "low": np.minimum(opened, close) - 0.05,
            "close": close,
            "volume": random.integers(1, 1000, count).astype(float),
            "vwap": np.nan,
            "trade_count": np.nan,
        },
        index=stamps.tz_convert(tz),
    )
    frame.attrs["marketdata"] = {
        "provider": "alpaca", "feed": "sip", "timeframe": "1min", "symbols": "AAPL",
        "adjustment": "raw", "session": "regular", **facts,
    }  # fmt: skip
    return frame


def two_symbols(count=60) -> Any:
    parts = {s: bars(count=count, seed=n) for n, s in enumerate(("AAPL", "MSFT"))}
    return pd.concat(parts, names=["symbol", "timestamp"])


def traces(figure, name) -> list[Any]:
    return [t for t in figure.data if t.name == name]


def heading(figure) -> str:
    return f"{figure.layout.title.text} {figure.layout.title.subtitle.text}"


def panel(figure, trace) -> str:
    """Return the title of the panel that a trace is in."""
    return str(figure.layout[f"yaxis{(trace.yaxis or 'y')[1:]}"].title.text)


# --------------------------------------------------------------------------------- indicators


def test_indicators_are_those_of_the_frames_own_bars():
    frame = bars()
    figure = plot(frame, indicators=["sma_10", "rsi_14"])
    (sma,) = traces(figure, "sma_10")
    np.testing.assert_allclose(sma.y, frame["close"].rolling(10).mean(), rtol=1e-12)
    assert np.isnan(sma.y[:9]).all(), "the frame does not reach back enough"
    assert list(sma.x) == list(figure.data[0].x)
    (rsi,) = traces(figure, "rsi_14")
    assert np.isnan(rsi.y[:14]).all()
    assert not np.isnan(rsi.y[14:]).any()


def test_prices_lie_on_the_candles_and_oscillators_below():
    asked = ["sma_10", "bbands_20_2", "rsi_14", "rsi_9", "macd_12_26_9", "obv", "vwap"]
    figure = plot(bars(), indicators=asked)
    where = {t.name: panel(figure, t) for t in figure.data}
    assert where == {
        "price": "price", "volume": "volume", "sma_10": "price", "vwap": "price",
        "bbands_20_2_upper": "price", "bbands_20_2_middle": "price", "bbands_20_2_lower": "price",
        "rsi_14": "rsi", "rsi_9": "rsi", "obv": "obv", "macd_12_26_9": "macd_12_26_9",
        "macd_12_26_9_signal": "macd_12_26_9", "macd_12_26_9_hist": "macd_12_26_9",
    }  # fmt: skip
    assert traces(figure, "macd_12_26_9_hist")[0].type == "bar"
    lines = [t for t in figure.data if t.type == "scatter" and t.mode == "lines"]
    colours = {t.name: t.line.color for t in lines}
    assert colours.pop("bbands_20_2_upper") == colours.pop("bbands_20_2_lower")
    assert len(set(colours.values())) == len(colours)


def test_each_symbol_has_its_own_values_and_one_entry_in_the_legend():
    frame = two_symbols()
    figure = plot(frame, indicators="sma_10")
    first, second = traces(figure, "sma_10")
    for trace, symbol in ((first, "AAPL"), (second, "MSFT")):
        expected = frame.loc[symbol, "close"].rolling(10).mean()
        np.testing.assert_allclose(trace.y, expected, rtol=1e-12)
        assert panel(figure, trace) == symbol
    assert [first.showlegend, second.showlegend] == [True, False]
    assert first.line.color == second.line.color


def test_columns_beside_those_of_bars_are_drawn():
    frame = bars()
    frame["fast"] = frame["close"].ewm(3).mean()
    frame["strength"] = np.linspace(-1, 1, len(frame))
    figure = plot(frame)
    assert panel(figure, traces(figure, "fast")[0]) == "price"
    assert panel(figure, traces(figure, "strength")[0]) == "strength"
    assert [t.name for t in plot(frame, indicators=[]).data] == ["price", "volume"]
    assert figure.layout.showlegend
    assert not plot(frame, indicators=[]).layout.showlegend


def test_an_oscillator_in_the_range_of_the_prices_is_no_price():
    frame = bars()
    frame["close"] = frame["close"] / 2  # as an RSI moves
    figure = plot(frame.assign(low=40.0, high=60.0), indicators=["rsi_14"])
    assert panel(figure, traces(figure, "rsi_14")[0]) == "rsi"
    wave = frame.assign(low=40.0, high=60.0, wave=50 + 3 * np.sin(np.arange(len(frame))))
    figure = plot(wave)
    assert panel(figure, traces(figure, "wave")[0]) == "wave"


def test_a_frame_of_indicators_is_matched_by_time_whatever_its_zone():
    frame = bars(tz="America/New_York")
    given = pd.DataFrame({"signal": np.arange(30.0)}, index=bars().index[10:40])
    (trace,) = traces(plot(frame, indicators=given), "signal")
    assert np.isnan(trace.y[:10]).all()
    assert list(trace.y[10:40]) == list(range(30))
    with pytest.raises(RequestError, match="no row at any of the bars"):
        plot(frame, indicators=given.tz_convert(None).tz_localize("Asia/Tokyo"))
    with pytest.raises(RequestError, match="has no times"):
        plot(frame, indicators=given.reset_index(drop=True))


def test_a_frame_of_indicators_is_matched_by_symbol():
    frame = two_symbols()
    given = pd.DataFrame({"score": np.arange(120.0)}, index=frame.index)
    found = traces(plot(frame, indicators=given.iloc[::-1]), "score")
    assert [list(t.y) for t in found] == [list(range(60)), list(range(60, 120))]
    with pytest.raises(RequestError, match="several symbols"):
        plot(bars(), indicators=given)


def test_dates_without_a_zone_are_sessions_of_the_exchange():
    frame = bars("2024-03-04 05:00", count=5, freq="24h", timeframe="1day")
    naive = frame.set_axis(frame.index.tz_convert("America/New_York").tz_localize(None))
    (trace,) = traces(plot(naive, indicators="sma_2"), "sma_2")
    np.testing.assert_allclose(trace.y, frame["close"].rolling(2).mean())


def test_thinned_bars_keep_the_last_value_of_the_whole():
    frame = bars(count=2 * MAX_CANDLES + 1)
    (trace,) = traces(plot(frame, indicators="sma_10"), "sma_10")
    whole = frame["close"].rolling(10).mean()
    assert len(trace.y) <= MAX_CANDLES
    last = whole.groupby(np.arange(len(whole)) // 3).last()
    np.testing.assert_allclose(trace.y, last, rtol=1e-9)


def test_what_is_no_indicator_and_too_many_panels_are_refused():
    with pytest.raises(RequestError, match="nosuch"):
        plot(bars(), indicators="nosuch_14")
    with pytest.raises(RequestError, match="do not fit one figure"):
        plot(two_symbols(), indicators=["rsi_14", "atr_14", "natr_14", "adx_14", "stoch", "willr",
                                        "cci", "mfi"])  # fmt: skip
    with pytest.raises(RequestError, match="computed on bars"):
        plot(bars()["close"], indicators="sma_10")


def test_resolved_indicators_are_taken_too():
    assert traces(plot(bars(), indicators=resolve(["sma_5"])), "sma_5")


def test_each_session_is_parted_once_whatever_the_panels():
    """One line through all panels: one for each of them takes plotly seconds."""
    frame = pd.concat([bars(f"2024-03-{day:02} 14:30", count=20) for day in (4, 5, 6, 7, 8)])
    figure = plot(frame, indicators=["rsi_14", "obv"])
    lines = [s for s in figure.layout.shapes if s.xref == "x" and s.type == "line"]
    assert [s.x0 for s in lines] == [19.5, 39.5, 59.5, 79.5]
    assert {s.yref for s in lines} == {"paper"}


# -------------------------------------------------------------------------------------- trades


def trade(symbol="AAPL", quantity=10.0, entry="14:35", exit_="14:50", pnl=5.0, **other) -> Any:
    def moment(text) -> Any:
        return pd.NaT if text is None else pd.Timestamp(f"2024-03-08T{text}Z")

    row = {
        "symbol": symbol, "quantity": quantity, "entry_time": moment(entry),
        "exit_time": moment(exit_), "entry_price": 100.0, "exit_price": 100.5, "pnl": pnl,
    }  # fmt: skip
    return {**row, **other}


def listed(*rows) -> pd.DataFrame:
    frame = pd.DataFrame(list(rows))
    for name in ("entry_time", "exit_time"):
        frame[name] = pd.to_datetime(frame[name], utc=True)
    return frame


def test_trades_are_marked_where_they_were_and_joined_by_what_they_made():
    trades = listed(
        trade(), trade(quantity=-5.0, entry="14:40", exit_="15:00", pnl=-3.0), trade(entry="15:10")
    )
    figure = plot(bars(), trades=trades.iloc[:2])
    (bought,), (short,) = traces(figure, "entry, long"), traces(figure, "entry, short")
    assert list(bought.x) == ["14:35"]
    assert list(bought.y) == [100.0]
    assert list(bought.text) == ["bought 10 at 100.00"]
    assert list(short.text) == ["sold short 5 at 100.00"]
    (won,), (lost,) = traces(figure, "exit, profit"), traces(figure, "exit, loss")
    assert list(won.text) == ["sold 10 at 100.50: +5.00"]
    assert list(lost.text) == ["bought back 5 at 100.50: -3.00"]
    (line,) = traces(figure, "trade: profit")
    assert list(line.x[:2]) == ["14:35", "14:50"]
    assert list(line.y[:2]) == [100.0, 100.5]
    assert line.line.color == won.marker.color != lost.marker.color
    assert all(panel(figure, t) == "price" for t in figure.data if t.type == "scatter")


def test_a_fill_inside_a_bar_is_marked_at_that_bar():
    hourly = bars("2024-03-08 14:30", count=6, freq="1h", timeframe="1hour")
    figure = plot(hourly, trades=listed(trade(entry="15:29", exit_="15:31")))
    assert list(traces(figure, "entry, long")[0].x) == ["14:30"]
    assert list(traces(figure, "exit, profit")[0].x) == ["15:30"]
    daily = bars("2024-03-08 05:00", count=1, timeframe="1day")
    assert list(traces(plot(daily, trades=listed(trade())), "entry, long")[0].x) == [
        "Mar 8<br>2024"
    ]


def test_an_open_trade_has_no_exit():
    figure = plot(bars(), trades=listed(trade(exit_=None, exit_price=np.nan, pnl=np.nan)))
    assert traces(figure, "entry, long")
    assert not [t for t in figure.data if str(t.name).startswith(("exit", "trade"))]


def test_what_does_not_fit_the_picture_is_counted():
    before = trade(entry="10:00", exit_="10:30")
    figure = plot(bars(), trades=listed(trade(), before, trade("KO"), trade(entry="10:00")))
    assert "1 trades outside the picture" in heading(figure)
    assert "1 trades of other symbols" in heading(figure)
    assert len(traces(figure, "entry, long")[0].x) == 1
    assert len(traces(figure, "exit, profit")[0].x) == 2, "of one entered before the picture"


def test_trades_go_to_their_symbols_panels():
    trades = listed(trade("MSFT"))
    figure = plot(two_symbols(), trades=trades)
    assert [panel(figure, t) for t in traces(figure, "entry, long")] == ["MSFT"]
    lines = plot(two_symbols()["close"].unstack("symbol"), trades=trades)
    assert len(traces(lines, "entry, long")) == 1


def test_of_many_trades_the_largest_are_drawn():
    rows = [trade(pnl=float(n)) for n in range(2_500)]
    figure = plot(bars(), trades=listed(*rows))
    assert "the 2,000 largest of 2,500 trades" in heading(figure)
    said = traces(figure, "exit, profit")[0].text
    assert len(said) == 2_000
    assert said[0].endswith("+500.00")


def test_many_marks_are_small_and_few_are_large():
    def sizes(count) -> set[int]:
        figure = plot(bars(), trades=listed(*[trade()] * count))
        return {t.marker.size for t in figure.data if t.type == "scatter" and t.mode == "markers"}

    assert sizes(3) == {10}
    assert sizes(100) == {7}
    assert sizes(1_000) == {4}


def test_what_are_no_trades_is_refused():
    with pytest.raises(RequestError, match="lacks pnl"):
        plot(bars(), trades=listed(trade()).drop(columns="pnl"))
    naive = listed(trade())
    naive["entry_time"] = naive["entry_time"].dt.tz_localize(None)
    with pytest.raises(RequestError, match="entry_time of the trades has no time zone"):
        plot(bars(), trades=naive)
    with pytest.raises(RequestError, match="of several symbols"):
        plot(bars(symbols=""), trades=listed(trade(), trade("KO")))


# ---------------------------------------------------------------------------------------- gaps


def interval(start, end) -> Interval:
    return Interval(*(datetime.fromisoformat(f"2024-03-{t}+00:00") for t in (start, end)))


def with_hole() -> Any:
    frame = bars(count=390)
    return frame[(frame.index < "2024-03-08 15:30Z") | (frame.index >= "2024-03-08 16:30Z")]


def bands(figure) -> list[Any]:
    return [s for s in figure.layout.shapes if s.type == "rect"]


def test_a_gap_gets_room_a_shade_and_a_name():
    figure = plot(with_hole(), gaps=[interval("08T15:30", "08T16:30")], indicators="sma_5")
    axis = list(figure.layout.xaxis.categoryarray)
    (price, volume) = bands(figure)
    assert (price.x0, price.x1) == (volume.x0, volume.x1)
    assert price.x0 == axis.index("15:29") + 0.5
    assert price.x1 == axis.index("16:30") - 0.5
    assert 10 <= price.x1 - price.x0 < 60, "some room, and less than its bars would take"
    assert [a.text for a in figure.layout.annotations] == ["not stored: Mar 8, 15:30 to 16:29"]
    assert "1 gap" in heading(figure)
    (sma,) = traces(figure, "sma_5")
    hole = np.isnan(sma.y[5:])
    assert hole.any(), "no line is drawn across what is not stored"
    assert len(figure.data[0].x) == 330


def test_a_frame_of_gaps_says_why_and_for_which_symbol():
    frame = two_symbols(count=390)
    gone = frame.index.get_level_values(1)
    frame = frame[(gone < "2024-03-08 15:30Z") | (gone >= "2024-03-08 16:30Z")]
    gap = interval("08T15:30", "08T16:30")
    table = pd.DataFrame(
        {"symbol": "MSFT", "start": [gap.start], "end": [gap.end], "state": "never asked"}
    )
    figure = plot(frame, gaps=table, indicators="sma_5")
    aapl, msft = traces(figure, "sma_5")
    assert np.isnan(msft.y[5:]).any()
    assert not np.isnan(aapl.y[5:]).any()
    assert {s.yref for s in bands(figure)} == {"y3 domain", "y4 domain"}
    assert [a.text for a in figure.layout.annotations] == ["never asked: Mar 8"]
    (pointed,) = traces(figure, "not stored")
    assert set(pointed.text) == {"never asked: Mar 8, 15:30 to 16:29"}
    assert panel(figure, pointed) == "MSFT"


def test_no_line_is_drawn_across_a_gap_in_which_others_have_bars():
    frame = two_symbols(count=390)
    owner, when = frame.index.get_level_values(0), frame.index.get_level_values(1)
    gap = interval("08T15:30", "08T16:30")
    inside = (when >= gap.start) & (when < gap.end)
    kept = frame[(owner == "AAPL") | ~inside]
    table = pd.DataFrame({"symbol": ["MSFT"], "start": [gap.start], "end": [gap.end]})
    aapl, msft = traces(plot(kept, gaps=table, indicators="sma_5"), "sma_5")
    assert np.isnan(msft.y[5:]).sum() == 60
    assert not np.isnan(aapl.y[5:]).any()


def test_days_that_are_missing_are_named_by_their_dates():
    dates = pd.bdate_range("2024-03-04", "2024-03-15", tz="America/New_York", unit="us")
    days = bars(count=len(dates), timeframe="1day").set_axis(dates.tz_convert("UTC"))
    kept = days[(days.index < "2024-03-06") | (days.index >= "2024-03-08")]
    gap = Interval(datetime(2024, 3, 6, 5, tzinfo=UTC), datetime(2024, 3, 7, 21, tzinfo=UTC))
    figure = plot(kept, gaps=[gap])
    assert [a.text for a in figure.layout.annotations] == ["not stored: Mar 6 to Mar 7, 2024"]
    assert "Mar 6<br>2024" in figure.layout.xaxis.categoryarray
    assert "Mar 7<br>2024" in figure.layout.xaxis.categoryarray


def test_gaps_outside_and_none_are_told():
    frame = bars()
    assert "no gaps" in heading(plot(frame, gaps=[]))
    figure = plot(frame, gaps=[interval("01T15:00", "01T16:00")])
    assert "1 gaps outside the picture" in heading(figure)
    assert not bands(figure)
    # The hours before the opening are no part of a frame of regular ones.
    two_days = pd.concat([bars(count=390), bars("2024-03-11 13:30", count=390)])
    two_days.attrs = frame.attrs
    figure = plot(two_days, gaps=[interval("09T00:00", "11T13:30")])
    assert "no gaps" in heading(figure)


def test_a_long_gap_takes_a_twelfth_of_the_room():
    frame = pd.concat([bars(count=120), bars("2024-04-08 13:30", count=120)])
    frame.attrs = bars().attrs
    figure = plot(frame, gaps=[Interval(frame.index[119].to_pydatetime() + pd.Timedelta("1min"),
                                        frame.index[120].to_pydatetime())])  # fmt: skip
    (band, _) = bands(figure)
    assert band.x1 - band.x0 == 20


def test_of_many_gaps_the_longest_are_shaded():
    frame = bars("2024-03-08 09:00", count=900, session="extended")
    kept = frame.iloc[::2]
    minutes = [t.to_pydatetime() for t in frame.index]
    many = [Interval(minutes[n], minutes[n + 1]) for n in range(1, 800, 2)]
    figure = plot(kept, gaps=many)
    assert "the 150 longest of 400 gaps" in heading(figure)
    assert len(bands(figure)) == 300
    assert not figure.layout.annotations, "their names would lie on each other"
    assert len(traces(figure, "not stored")[0].text) == 150


def test_no_name_lies_on_another():
    frame = bars(count=390)
    minutes = [t.to_pydatetime() for t in frame.index]
    kept = frame.drop(frame.index[[100, 103, 300]])
    gaps = [Interval(minutes[n], minutes[n + 1]) for n in (100, 103, 300)]
    figure = plot(kept, gaps=gaps)
    assert len(bands(figure)) == 6
    assert [a.text[-14:] for a in figure.layout.annotations] == ["16:10 to 16:10", "19:30 to 19:30"]


def test_thinned_bars_have_gaps_too():
    frame = bars(count=30_000)
    keep = (frame.index < frame.index[9_000]) | (frame.index >= frame.index[12_000])
    thin = frame[keep]
    thin.attrs = {"marketdata": {**frame.attrs["marketdata"], "session": "extended"}}
    gap = Interval(*(t.to_pydatetime() for t in (frame.index[9_000], frame.index[12_000])))
    figure = plot(thin, gaps=[gap])
    (band, _) = bands(figure)
    assert band.x1 > band.x0
    assert len(figure.data[0].x) <= MAX_CANDLES


def test_what_are_no_gaps_is_refused():
    several: list[Any] = ["gaps", [1, 2], pd.DataFrame({"from": [1]})]
    for wrong in several:
        with pytest.raises(RequestError, match="these are no gaps"):
            plot(bars(), gaps=wrong)


def test_times_without_a_zone_cannot_be_placed():
    frame = bars()
    naive = frame.set_axis(frame.index.tz_localize(None))
    naive.attrs = frame.attrs
    assert plot(naive).data, "but can be drawn"
    with pytest.raises(RequestError, match="have no zone"):
        plot(naive, trades=listed(trade()))


# -------------------------------------------------------------------------------- which series


def test_a_frame_says_which_series_it_shows():
    found = series_of(bars())
    assert found is not None
    assert found[:4] == (["AAPL"], "1min", "alpaca", "sip")
    assert found.end - found.start == 60 * 60_000_000
    several = two_symbols()
    several.attrs = bars().attrs
    assert series_of(several)[0] == ["AAPL", "MSFT"]
    matrix = several["close"].unstack("symbol")
    matrix.attrs = several.attrs
    assert series_of(matrix)[0] == ["AAPL", "MSFT"]
    assert series_of(bars(count=0)) is None
    for facts in ({"symbols": ""}, {"timeframe": ""}, {"symbols": "AAPL MSFT"}):
        with pytest.raises(RequestError, match="does not say which series"):
            series_of(bars(**facts))
