"""Pictures of sweeps and walk-forward analyses: what they leave room for, and their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from algorithms import sweep, walk_forward
from algorithms.walk_forward_result import WalkForwardResult
from tests.sweep_examples import Cross, market

GRID: Any = {"quick": [3, 6], "steady": [10, 20]}


@pytest.fixture(scope="module")
def forward() -> WalkForwardResult:
    return walk_forward(Cross, GRID, market(), train=120, test=60, workers=1)


def test_nothing_is_drawn_behind_the_words_of_a_window(forward: WalkForwardResult) -> None:
    figure = forward.plot()
    low, high = figure.layout.yaxis.range
    drawn = [trace for trace in figure.data if trace.type == "scatter"]
    highest = max(max(trace.y) for trace in drawn)
    bottom, top = figure.layout.yaxis.domain
    plotted = figure.layout.height - figure.layout.margin.t - figure.layout.margin.b
    pixels = (high - highest) / (high - low) * (top - bottom) * plotted
    lines = figure.layout.annotations[0].text.count("<br>") + 1
    assert pixels > 12 * lines
    assert low < min(min(trace.y) for trace in drawn)


def test_a_path_gets_a_page_of_its_own(forward: WalkForwardResult, tmp_path: Path) -> None:
    forward.plot(path=tmp_path / "forward.html")
    sweep(Cross, GRID, market(), workers=1).heatmap(path=tmp_path / "heat.html")
    for name in ("forward.html", "heat.html"):
        page = (tmp_path / name).read_text("utf-8")
        assert "Plotly.newPlot" in page
        assert '"displaylogo": false' in page
