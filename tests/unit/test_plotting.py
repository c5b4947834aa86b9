"""Figures of frames: what is drawn, what is merged, what the title must say."""

import sys

import numpy as np
import pandas as pd
import pytest

from marketdata.errors import MissingDependencyError, RequestError
from marketdata.plotting import MAX_CANDLES, plot


def bars(
    start="2024-03-08 14:30", count=10, freq="1min", tz="UTC", seed=1, **facts
) -> pd.DataFrame:
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
        "provider": "alpaca", "feed": "sip", "timeframe": "1min", "adjustment": "raw",
        "simulated": False, **facts,
    }  # fmt: skip
    return frame


def by_symbol(*symbols, count=10) -> pd.DataFrame:
    parts = {s: bars(count=count, seed=n) for n, s in enumerate(symbols)}
    return pd.concat(parts, names=["symbol", "timestamp"])


def heading(figure) -> str:
    return f"{figure.layout.title.text} {figure.layout.title.subtitle.text}"


def test_candles_and_volume_are_the_frames_numbers():
    frame = bars()
    candles, volume = plot(frame).data
    assert candles.type == "candlestick"
    for name in ("open", "high", "low", "close"):
        assert list(candles[name]) == list(frame[name])
    assert list(volume.y) == list(frame["volume"])
    assert list(volume.x) == list(candles.x)


def test_nights_and_missing_bars_take_no_room_and_get_no_price():
    friday, monday = bars(count=5), bars("2024-03-11 13:30", count=5)
    frame = pd.concat([friday, monday])
    frame.iloc[7, :4] = np.nan
    figure = plot(frame)
    axis = figure.layout.xaxis
    assert axis.type == "category"
    assert len(axis.categoryarray) == len(figure.data[0].x) == 9
    assert not np.isnan(np.asarray(figure.data[0].close)).any()
    separators = {shape.x0 for shape in figure.layout.shapes}
    assert separators == {4.5}


def test_labels_are_in_the_frames_zone_and_name_it():
    figure = plot(bars(tz="America/New_York"))
    assert figure.data[0].x[0] == "09:30"
    assert "Mar 8, 2024, times in America/New_York" in heading(figure)
    assert plot(bars()).data[0].x[0] == "14:30"


def test_the_date_is_at_each_label_where_there_are_several():
    assert plot(bars(tz="America/New_York")).data[0].x[0] == "09:30"
    two = plot(bars("2024-03-08 20:00", count=2, freq="24h", tz="America/New_York"))
    assert list(two.data[0].x) == ["15:00<br>Mar 8, 2024", "15:00<br>Mar 9, 2024"]
    assert "2024" not in heading(two)


def test_repeated_hour_keeps_its_bars_apart():
    frame = bars("2024-11-03 05:30", count=4, freq="30min", tz="America/New_York")
    labels = plot(frame).data[0].x
    assert len(set(labels)) == 4
    assert labels[0] == "01:30 EDT"


@pytest.mark.parametrize("tz", ["UTC", "Asia/Tokyo", None])
def test_daily_bars_are_labelled_by_their_session(tz):
    frame = bars("2024-03-08 05:00", count=2, freq="24h").iloc[:1]
    frame = frame.tz_convert(tz) if tz else frame.set_axis(pd.DatetimeIndex(["2024-03-08"]))
    figure = plot(frame)
    assert figure.data[0].x[0] == "Mar 8<br>2024"
    assert "times in" not in heading(figure)


def test_neighbours_are_merged_above_the_limit():
    frame = bars(count=2 * MAX_CANDLES + 1)
    figure = plot(frame)
    candles, volume = figure.data
    assert len(candles.x) <= MAX_CANDLES
    assert "10,001 bars, 3 merged into each candle" in heading(figure)
    first, last = frame.iloc[:3], frame.iloc[9999:]
    assert candles.open[0] == first["open"].iloc[0]
    assert candles.high[0] == first["high"].max()
    assert candles.low[0] == first["low"].min()
    assert candles.close[0] == first["close"].iloc[-1]
    assert volume.y[0] == first["volume"].sum()
    assert candles.close[-1] == last["close"].iloc[-1]
    assert sum(volume.y) == frame["volume"].sum()


def test_exactly_the_limit_is_drawn_whole():
    assert len(plot(bars(count=MAX_CANDLES)).data[0].x) == MAX_CANDLES


def test_order_of_rows_does_not_matter():
    frame = bars(count=MAX_CANDLES + 10)
    assert plot(frame.iloc[::-1]).data[0].to_plotly_json().keys()
    forward, backward = plot(frame).data[0], plot(frame.iloc[::-1]).data[0]
    assert list(forward.open) == list(backward.open)
    assert list(forward.x) == list(backward.x)


def test_each_symbol_has_its_panels():
    figure = plot(by_symbol("AAPL", "MSFT", "SPY"))
    assert [t.name for t in figure.data if t.type == "candlestick"] == ["AAPL", "MSFT", "SPY"]
    assert len({t.yaxis for t in figure.data}) == 6
    assert "AAPL, MSFT, SPY" in heading(figure)


def test_merging_keeps_symbols_apart():
    frame = by_symbol("AAPL", "MSFT", count=4000)
    traces = [t for t in plot(frame).data if t.type == "candlestick"]
    assert sum(len(t.x) for t in traces) <= MAX_CANDLES
    assert traces[1].open[0] == frame.loc["MSFT", "open"].iloc[0]


def test_too_many_symbols_is_refused_with_a_way_out():
    with pytest.raises(RequestError, match="at most 6") as caught:
        plot(by_symbol(*"ABCDEFG"))
    assert 'field="close"' in str(caught.value)


@pytest.mark.parametrize("nothing", [np.nan, 0.0])
def test_symbol_without_volume_has_no_volume_panel(nothing):
    frame = by_symbol("AAPL", "VIX")
    frame.loc["VIX", "volume"] = nothing
    assert [t.type for t in plot(frame).data] == ["candlestick", "bar", "candlestick"]
    assert [t.type for t in plot(bars(), volume=False).data] == ["candlestick"]


def test_matrix_of_one_field_becomes_lines_with_holes():
    matrix = by_symbol("AAPL", "MSFT")["close"].unstack("symbol")
    matrix.iloc[3, 1] = np.nan
    figure = plot(matrix)
    assert [t.name for t in figure.data] == ["AAPL", "MSFT"]
    assert figure.data[1].connectgaps is False
    assert np.isnan(figure.data[1].y[3])
    assert [t.name for t in plot(bars()["close"]).data] == ["close"]


def test_not_a_frame_of_bars():
    with pytest.raises(RequestError, match="not a frame of bars"):
        plot(pd.DataFrame({"open": [1.0], "high": [1.0], "low": [1.0], "close": [1.0]}))
    with pytest.raises(RequestError, match="not a frame of bars"):
        plot(pd.DataFrame({"name": ["x"]}, index=bars(count=1).index))
    wide = pd.DataFrame(np.ones((1, 41)), index=bars(count=1).index)
    with pytest.raises(RequestError, match="at most 40"):
        plot(wide)


@pytest.mark.parametrize("frame", [bars(count=0), bars().assign(open=np.nan)])
def test_no_bars_says_so(frame):
    figure = plot(frame)
    assert [a.text for a in figure.layout.annotations] == ["no bars"]
    assert not figure.data


@pytest.mark.parametrize("facts", [{"simulated": True}, {"provider": "sandbox"}])
def test_simulated_prices_are_marked_whatever_the_title(facts):
    assert "SIMULATED" in plot(bars(**facts)).layout.title.text
    assert "SIMULATED" in plot(bars(**facts), title="Mine").layout.title.text
    assert "SIMULATED" in plot(bars(**facts)["close"]).layout.title.text
    assert "SIMULATED" in plot(bars(count=0, **facts)).layout.title.text
    assert "SIMULATED" not in heading(plot(bars()))


def test_subtitle_says_source_and_what_is_wanting():
    said = heading(plot(bars(truncated=True, delayed=True, forming=True, adjustment="split")))
    assert "alpaca/sip" in said
    assert "split-adjusted" in said
    assert "delayed" in said
    assert "fewer bars than asked for" in said
    assert "forming" in said


def test_page_opens_without_a_network(tmp_path):
    target = tmp_path / "aapl.html"
    figure = plot(bars(), title="AAPL", path=target)
    page = target.read_text("utf-8")
    assert figure.layout.title.text == "AAPL"
    assert "<script src=" not in page
    assert "Plotly.newPlot" in page
    assert len(page) > 1_000_000


def test_frame_is_left_as_it_was():
    frame = bars()
    before = frame.copy()
    plot(frame)
    pd.testing.assert_frame_equal(frame, before)
    assert frame.attrs == before.attrs


def test_missing_plotly_names_its_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'marketdata\[plot\]'"):
        plot(bars())
