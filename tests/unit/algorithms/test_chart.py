"""The picture and the report: what is drawn, what is thinned, what must be said."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import marketdata as md
from algorithms.chart import MAX_POINTS, MAX_TRADES
from algorithms.orders import Fill
from algorithms.result import BacktestResult
from tests.algorithm_runs import crossing_run, run_of, session_closes


def result(days: int = 300, symbols: int = 1, **facts: Any) -> BacktestResult:
    return BacktestResult(crossing_run(days, symbols, **facts))


def traces(figure: Any, panel: int) -> list[Any]:
    axis = "y" if panel == 1 else f"y{panel}"
    return [t for t in figure.data if (t.yaxis or "y") == axis]


def title(figure: Any) -> str:
    return f"{figure.layout.title.text} {figure.layout.title.subtitle.text}"


def test_the_account_stands_against_buy_and_hold() -> None:
    found = result()

    held, account = traces(found.plot(), 1)

    assert (held.name, account.name) == ("buy and hold", "strategy")
    assert list(account.y) == list(found.equity)
    assert list(held.y) == list(found.buy_and_hold)
    assert pd.DatetimeIndex(account.x)[0] == pd.Timestamp("2023-01-03")


def test_drawdown_and_exposure_are_the_runs() -> None:
    found = result()
    figure = found.plot()

    assert list(traces(figure, 2)[0].y) == list(found.drawdown)
    (long,) = traces(figure, 4)
    expected = (found.positions["AAPL"] * found.closes["AAPL"] / found.equity).to_list()
    assert list(long.y) == pytest.approx(expected)


def test_trades_are_marked_where_they_were_filled() -> None:
    found = result()
    trades = found.trades

    marks = [t for t in traces(found.plot(), 3) if t.mode == "markers"]

    entries = [y for t in marks if t.marker.symbol != "circle" for y in t.y]
    exits = [y for t in marks if t.marker.symbol == "circle" for y in t.y]
    assert sorted(entries) == pytest.approx(sorted(trades["entry_price"]))
    assert sorted(exits) == pytest.approx(sorted(trades.loc[trades["closed"], "exit_price"]))


def test_a_short_entry_points_down() -> None:
    times = session_closes(10)
    fills = [Fill(int(times[2]), "a", "KO", -10, 60.0), Fill(int(times[5]), "b", "KO", 10, 55.0)]
    found = BacktestResult(run_of(times, {"KO": np.linspace(62, 54, 10)}, fills))
    figure = found.plot()

    symbols = [t.marker.symbol for t in traces(figure, 3) if t.mode == "markers"]
    assert symbols == ["circle", ("triangle-down",)]
    assert [t.name for t in traces(figure, 4)] == ["long", "short"]


def test_a_split_is_no_crash() -> None:
    times = session_closes(10)
    closes = np.array([400.0] * 5 + [100.0] * 5)
    fills = [
        Fill(int(times[1]), "a", "NVDA", 10, 400.0),
        Fill(int(times[2]), "b", "NVDA", -5, 400.0),
        Fill(int(times[4]) + 1, "c", "NVDA", -8, 100.0),  # at the very open of the ex-date
        Fill(int(times[7]), "d", "NVDA", -12, 100.0),
    ]
    run = run_of(times, {"NVDA": closes}, fills, splits={(5, "NVDA"): 4.0})

    figure = BacktestResult(run).plot()

    drawn = [y for t in traces(figure, 3) for y in t.y if np.isfinite(y)]
    assert drawn == [100.0] * len(drawn)
    assert "adjusted for splits" in title(figure)


def test_several_symbols_get_a_menu() -> None:
    found = result(300, 10)
    figure = found.plot()

    (menu,) = [m for m in figure.layout.updatemenus if m.type == "dropdown"]
    traded = found.fills.assign(value=lambda f: (f["quantity"] * f["price"]).abs())
    largest = traded.groupby("symbol")["value"].sum().sort_values(ascending=False).index[:8]
    assert [b.label for b in menu.buttons] == list(largest)
    for button in menu.buttons:
        visible, places = button.args[0]["visible"], button.args[1]
        shown = [figure.data[p] for p, on in zip(places, visible, strict=True) if on]
        assert button.label in {t.name for t in shown}
        assert len(shown) < len(places)
    first = [t for t in traces(figure, 3) if t.visible is not False]
    assert first[0].name == largest[0]


def test_symbols_can_be_chosen() -> None:
    figure = result(300, 10).plot(symbols="KO")

    assert {t.name for t in traces(figure, 3) if t.name} == {"KO"}
    with pytest.raises(md.RequestError, match="TSLA"):
        result().plot(symbols=["TSLA"])


def test_the_scale_switches() -> None:
    figure = result().plot(log=True)

    (menu,) = [m for m in figure.layout.updatemenus if m.type == "buttons"]
    assert figure.layout.yaxis.type == "log"
    assert menu.active == 1
    assert [b.args[0]["yaxis.type"] for b in menu.buttons] == ["linear", "log"]


def test_long_runs_are_thinned_and_keep_their_extremes() -> None:
    run = crossing_run(50_000, minutes=True)
    found = BacktestResult(run)
    figure = found.plot()

    account = traces(figure, 1)[1]
    assert len(account.y) <= MAX_POINTS * 1.05
    assert (max(account.y), min(account.y)) == (run.equity.max(), run.equity.min())
    assert min(traces(figure, 2)[0].y) == found.metrics["max_drawdown"]


def test_of_many_trades_the_largest_are_drawn_and_it_says_so() -> None:
    run = crossing_run(60_000, minutes=True)
    found = BacktestResult(run)
    assert len(found.trades) > MAX_TRADES

    figure = found.plot()

    entries = [t for t in traces(figure, 3) if t.mode == "markers" and t.marker.symbol != "circle"]
    assert sum(len(t.y) for t in entries) == MAX_TRADES
    assert f"the {MAX_TRADES:,} largest of {len(found.trades):,} trades" in title(figure)


def test_few_sessions_of_minutes_leave_the_nights_out() -> None:
    few, many = result(390 * 5, minutes=True).plot(), result(390 * 40, minutes=True).plot()

    bounds = [b.bounds for b in few.layout.xaxis.rangebreaks]
    assert bounds == [("sat", "mon"), (16.0, pytest.approx(9 + 31 / 60))]
    assert not many.layout.xaxis.rangebreaks
    assert "New York time" in title(few)


def test_simulated_prices_say_so() -> None:
    assert "SIMULATED" in title(result(simulated=True).plot())
    assert "SIMULATED" not in title(result().plot())


@pytest.mark.parametrize("days", [0, 1, 2])
def test_next_to_nothing_can_be_drawn(days: int, tmp_path: Path) -> None:
    result(days).plot()
    assert result(days).report(tmp_path / "r.html").exists()


def test_nothing_can_be_sent_to_a_server() -> None:
    """Plotly's toolbar has a button that uploads the figure unless it is taken out."""
    assert "sendcharttocloud" in result().plot().layout.modebar.remove


def test_plotly_missing_names_the_pip_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("plotly", "plotly.subplots", "plotly.graph_objects"):
        monkeypatch.setitem(sys.modules, name, None)

    for call in (result().plot, lambda: result().report(tmp_path / "r.html")):
        with pytest.raises(md.MissingDependencyError, match=re.escape("marketdata[plot]")):
            call()
    assert not (tmp_path / "r.html").exists()


def test_a_path_gets_the_figure_as_a_file(tmp_path: Path) -> None:
    result().plot(path=tmp_path / "figure.html")

    assert "<html>" in (tmp_path / "figure.html").read_text()


# ---------------------------------------------------------------------------------- report


class Page(HTMLParser):
    """What a browser would load, and the text of every table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [v or "" for k, v in attrs if k in ("src", "href", "action", "data")]
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th") and self.rows:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[BacktestResult, str]:
    found = result(
        400, 3, simulated=True, warnings=["KO has <b>gaps</b>"],
        settings={"fees": "0.005 a share", "slippage": "1 basis point"},
    )  # fmt: skip
    path = found.report(tmp_path_factory.mktemp("report") / "report.html")
    return found, path.read_text(encoding="utf-8")


def test_the_report_loads_nothing(written: tuple[BacktestResult, str]) -> None:
    page = Page(written[1])

    assert page.loaded == []
    assert page.open == []
    assert "@import" not in written[1].split("<body>")[0]


def test_the_report_says_it_all(written: tuple[BacktestResult, str]) -> None:
    found, text = written
    rows = Page(text).rows

    assert "SIMULATED" in text
    assert "KO has &lt;b&gt;gaps&lt;/b&gt;" in text
    for row in (
        ["fast", "10"], ["slow", "30"], ["fees", "0.005 a share"], ["slippage", "1 basis point"],
        ["data fingerprint", found.fingerprint], ["Final equity", f"{found.equity.iloc[-1]:,.2f}"],
    ):  # fmt: skip
        assert row in rows
    months = [row for row in rows if row and row[0] in ("2023", "2024") and len(row) == 14]
    assert len(months) == 2
    expected = found.monthly_returns.loc[2023, "Jun"] * 100
    assert float(months[1][6]) == pytest.approx(expected, abs=0.051)


def test_the_report_lists_best_worst_and_all_trades(written: tuple[BacktestResult, str]) -> None:
    found, text = written
    gains = [row[6] for row in Page(text).rows if len(row) == 11 and row[0] != "symbol"]

    closed = found.trades.loc[found.trades["closed"], "pnl"].sort_values()
    best = [f"{p:+,.2f}" for p in closed.iloc[::-1] if p > 0][:5]
    worst = [f"{p:+,.2f}" for p in closed if p < 0][:5]
    assert gains[: len(best)] == best
    assert gains[len(best) : len(best) + len(worst)] == worst
    assert gains[len(best) + len(worst) :] == [f"{p:+,.2f}" for p in found.trades["pnl"]]


def test_the_report_of_many_trades_stays_small(tmp_path: Path) -> None:
    found = BacktestResult(crossing_run(80_000, minutes=True))
    assert len(found.trades) > 1_000
    trades = found.run.fills * 3
    many = BacktestResult(replace(found.run, fills=trades))

    path = many.report(tmp_path / "many.html")

    assert path.stat().st_size < 9e6
    assert "2,000 largest of" in path.read_text(encoding="utf-8")


def test_importing_results_loads_no_plotly() -> None:
    code = "import sys, algorithms.result; sys.exit('plotly' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": "src"}, check=True)
