"""Pictures of what the tiers hold: gaps of a frame, and the heat-map of coverage."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import marketdata as md
from marketdata.clock import to_micros
from marketdata.plotting.coverage import CLASSES
from marketdata.protocols import Commit
from marketdata.sandbox import Action, GeneratedMarket
from marketdata.spans import Span
from marketdata.types import Bars, SeriesKey, Timeframe
from tests.stack import Stack, runtime

NOTHING, LITTLE, MOST, NEARLY, PROVISIONAL, FINAL = range(len(CLASSES))


def heading(figure: Any) -> str:
    return f"{figure.layout.title.text} {figure.layout.title.subtitle.text}"


def moment(text: str) -> int:
    return to_micros(pd.Timestamp(text, tz="America/New_York").to_pydatetime())


def cells(figure: Any) -> pd.DataFrame:
    """Return the classes of a heat-map: symbols by the label of each column."""
    (trace,) = figure.data
    return pd.DataFrame(np.asarray(trace.z), index=list(trace.y), columns=list(trace.x))


# ---------------------------------------------------------------------------------------- gaps


def with_hole(stack: Stack) -> pd.DataFrame:
    """Return minutes of a Monday and of a Thursday; what lies between was never asked for."""
    parts = [
        stack.client.get_bars("KO", "1min", start="2024-03-11", end="2024-03-12"),
        stack.client.get_bars("KO", "1min", start="2024-03-14", end="2024-03-14T12:00-04:00"),
    ]
    frame = pd.concat(parts)
    frame.attrs = parts[0].attrs
    return frame


def test_the_gaps_of_a_frame_are_asked_of_the_store_and_nobody_else(stack: Stack) -> None:
    frame = with_hole(stack)
    stack.forget_calls()
    figure = stack.client.plot(frame, gaps=True)
    assert len(stack.sandbox.requests) == 0
    names = [a.text for a in figure.layout.annotations]
    assert names == ["never asked: Mar 12, 08:00 to Mar 13, 23:59"]
    assert "1 gap" in heading(figure)
    assert "SIMULATED" in heading(figure)
    assert "gap" not in heading(stack.client.plot(frame, gaps=False))
    whole = stack.client.get_bars("KO", "1min", start="2024-03-11", end="2024-03-14T12:00-04:00")
    assert "no gaps" in heading(stack.client.plot(whole, gaps=True))
    asked = stack.client.gaps(["KO"], "1min", start="2024-03-11", end="2024-03-14")
    assert "no gaps" in heading(stack.client.plot(whole, gaps=asked))


def test_gaps_of_several_symbols_and_of_a_field(stack: Stack) -> None:
    stack.client.get_bars(["AAPL", "KO"], limit=20)
    days = stack.client.get_bars(["AAPL", "KO"], limit=20)
    assert "no gaps" in heading(stack.client.plot(days, gaps=True))
    closes = stack.client.get_bars(["AAPL", "KO"], limit=20, field="close")
    assert "no gaps" in heading(stack.client.plot(closes, gaps=True))
    empty = stack.client.get_bars("KO", start="2024-03-09", end="2024-03-10")
    assert [a.text for a in stack.client.plot(empty, gaps=True).layout.annotations] == ["no bars"]


def test_gaps_of_what_is_not_this_clients_are_refused(stack: Stack) -> None:
    frame = stack.client.get_bars("KO", limit=20)
    plain = frame.copy()
    plain.attrs = {}
    with pytest.raises(md.RequestError, match="does not say which series"):
        stack.client.plot(plain, gaps=True)
    foreign = frame.copy()
    foreign.attrs = {"marketdata": {**frame.attrs["marketdata"], "provider": "elsewhere"}}
    with pytest.raises(md.RequestError, match="the bars are elsewhere's"):
        stack.client.plot(foreign, gaps=True)


def test_indicators_computed_on_the_frame_are_those_of_the_library(stack: Stack) -> None:
    """Over the same bars; only the look-back is lacking."""
    bars = stack.client.get_bars("KO", "15min", limit=200, adjustment="split")
    known = stack.client.get_indicators("KO", ["sma_20", "vwap"], "15min", limit=200)
    figure = stack.client.plot(bars, indicators=["sma_20", "vwap"])
    drawn = {t.name: np.asarray(t.y) for t in figure.data if t.type == "scatter"}
    np.testing.assert_allclose(drawn["sma_20"][19:], known["sma_20"][19:], rtol=1e-9)
    first = int((bars.index >= bars.index[-1].normalize()).argmax())
    np.testing.assert_allclose(drawn["vwap"][first:], known["vwap"][first:], rtol=1e-9)
    beside = stack.client.get_indicators("KO", ["sma_20", "rsi_14"], "15min", limit=50, bars=True)
    names = [trace.name for trace in stack.client.plot(beside).data]
    assert names == ["price", "volume", "sma_20", "rsi_14"]


# ------------------------------------------------------------------------------------ coverage


def test_a_cell_says_how_much_is_stored_and_how_settled(stack: Stack) -> None:
    """Thursday afternoon: Monday to Wednesday of KO are final, today is provisional."""
    stack.client.get_bars("KO", "1min", start="2024-03-11", end="2024-03-13", session="extended")
    stack.client.get_bars("KO", "1min", start="2024-03-13T12:00-04:00", session="extended")
    stack.client.get_bars("AAPL", "1min", start="2024-03-11T15:00-04:00", end="2024-03-12")
    stack.forget_calls()
    figure = stack.client.plot_coverage(timeframe="1min", start="2024-03-08")
    assert len(stack.sandbox.requests) == 0
    found = cells(figure)
    assert [label.split("<")[0] for label in found.columns] == [
        "Mar 8", "Mar 11", "Mar 12", "Mar 13", "Mar 14",
    ]  # fmt: skip
    assert found.loc["KO"].tolist() == [NOTHING, FINAL, FINAL, MOST, PROVISIONAL]
    assert found.loc["AAPL"].tolist() == [NOTHING, LITTLE, NOTHING, NOTHING, NOTHING]
    (trace,) = figure.data
    final, provisional, missing, unavailable = np.asarray(trace.customdata)[1, 3]
    assert (final, provisional, missing, unavailable) == (0.5, 0.0, 0.5, 0.0)
    assert np.allclose(np.asarray(trace.customdata)[1, 4, :3], [0, 1, 0])
    assert trace.text[0][1] == "Mon Mar 11, 2024"
    for said in ("SIMULATED", "1min bars, 2 symbols", "by session", "missing"):
        assert said in heading(figure)


def test_missing_cells_are_the_gaps(stack: Stack) -> None:
    stack.client.get_bars(["AAPL", "KO"], "1day", start="2024-02-01")
    stack.client.get_bars("KO", "1day", start="2023-10-02", end="2023-11-01")
    window: dict[str, Any] = {"start": "2023-09-15", "end": "2024-03-14"}
    found = cells(stack.client.plot_coverage(["KO", "AAPL"], "1day", **window))
    sessions = stack.client.sessions(**window)
    gone = stack.client.gaps(["KO", "AAPL"], "1day", **window)
    assert list(found.index) == ["KO", "AAPL"]
    for symbol in found.index:
        lacking = pd.Series(False, sessions.index)
        for start, end in gone.loc[gone["symbol"] == symbol, ["start", "end"]].to_numpy():
            lacking |= (sessions["open"] >= start) & (sessions["open"] < end)
        assert (found.loc[symbol] == NOTHING).tolist() == lacking.tolist()
        assert (found.loc[symbol] == FINAL).tolist() == (~lacking).tolist()
    assert (found == NOTHING).sum(axis=1).tolist() == [73, 95]


def test_what_the_broker_no_longer_gives_is_said(make_stack: Callable[..., Stack]) -> None:
    """Yahoo gives minutes of thirty days."""
    stack = make_stack(broker="yahoo")
    client = stack.connect(broker="yahoo", yahoo_url=stack.sandbox.url)
    with client:
        figure = client.plot_coverage(["KO"], "1min", start="2024-01-02")
        shares = np.asarray(figure.data[0].customdata)[0]
        assert shares[0, 3] == 1.0
        assert shares[-2, 3] == 0.0
        assert shares[-2, 2] == 1.0


def test_a_symbol_is_expected_while_it_traded(make_stack: Callable[..., Stack]) -> None:
    market = GeneratedMarket(seed=3)
    market.add_action(Action("KO", date(2024, 2, 5), kind="worthless_removal"))
    client = make_stack(source=market).client
    client.get_bars("KO", "1day", start="2024-01-08", adjustment="all")
    figure = client.plot_coverage(["KO"], "1day", start="2024-01-08")
    row = cells(figure).loc["KO"]
    assert row.notna().sum() == len(client.sessions("2024-01-08", "2024-02-05"))
    assert (row.dropna() == FINAL).all()


def test_columns_grow_with_the_range(stack: Stack) -> None:
    stack.client.get_bars("KO", limit=5)

    def units(start: str) -> tuple[str, int]:
        figure = stack.client.plot_coverage(["KO"], "1day", start=start)
        return heading(figure).rpartition("by ")[2], len(figure.data[0].x)

    assert units("2023-12-01") == ("session", 71)
    assert units("2022-03-14") == ("week", 105)
    assert units("1990-01-02") == ("month", 34 * 12 + 3)
    labels = stack.client.plot_coverage(["KO"], "1day", start="2022-03-14").data[0].x
    assert len(set(labels)) == len(labels)


def test_without_symbols_it_is_all_that_is_stored(stack: Stack, tmp_path: Path) -> None:
    client = stack.client
    figure = client.plot_coverage()
    assert [a.text for a in figure.layout.annotations] == ["nothing to show"]
    client.get_bars(["KO", "AAPL"], "1day", limit=3)
    client.get_bars("MSFT", "1min", limit=3)
    target = tmp_path / "coverage.html"
    assert list(client.plot_coverage(timeframe="1day", path=target).data[0].y) == ["AAPL", "KO"]
    assert "Plotly.newPlot" in target.read_text("utf-8")
    assert list(client.plot_coverage(timeframe="5min").data[0].y) == ["MSFT"]


@pytest.mark.parametrize(
    "asked",
    [
        {"symbols": []},
        {"timeframe": "7min"},
        {"start": "2024-03-15", "end": "2024-03-14"},
        {"symbols": [f"A{a}{b}{c}" for a in "ABCDEFGHIJKLM" for b in "ABCDEFGHIJKLM"
                     for c in "ABCDEFGHIJKLM"]},
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(stack: Stack, asked: dict[str, Any]) -> None:
    with pytest.raises(md.RequestError):
        stack.client.plot_coverage(**asked)


def test_two_years_of_minutes_of_500_symbols_take_seconds(stack: Stack) -> None:
    known = runtime(stack.client)
    letters = "ABCDEFGH"
    symbols = [f"{a}{b}{c}" for a in letters for b in letters for c in letters][:500]
    observed = moment("2024-03-14 15:00")
    stretches = [("2022-03-14", "2023-06-01 12:00"), ("2023-06-05", "2024-03-13 20:00")]
    for start, end in stretches:
        span = Span(moment(start), moment(end))
        known.store.commit(
            [
                Commit(
                    SeriesKey(known.provider, known.source.feed, symbol, Timeframe.MIN_1),
                    Bars.empty(), span, observed, settled_until=span.end, final_until=span.end,
                )
                for symbol in symbols
            ]
        )  # fmt: skip
    began = time.perf_counter()
    figure = stack.client.plot_coverage(symbols, "1min", start="2022-03-14")
    took = time.perf_counter() - began
    print(f"\n500 symbols x 2 years of minutes: {took:.2f} s")
    assert took < 5
    found = cells(figure)
    assert found.shape == (500, 105)
    assert (found == FINAL).sum(axis=1).eq(103).all()
    assert found.iloc[0, -1] == MOST, "today is not stored yet"
    assert figure.layout.height < 2_000
