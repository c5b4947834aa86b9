"""The heat-map of what is stored: symbols down, sessions or weeks along, coloured by how settled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from marketdata.completeness import Completeness
from marketdata.plotting.appearance import dress, finish, nothing, require_plotly, subtitle_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

CLASSES: Final = (
    ("nothing stored", "#b3261e"),
    ("less than half", "#e5734f"),
    ("more than half", "#f6b44f"),
    ("99% or more", "#fce9a8"),
    ("all, provisional", "#90caf9"),
    ("all, final", "#00897b"),
)
_ROW: Final = (18, 3)
"""Pixels of a row, of few symbols and of many."""
_TALL: Final = 1100
_HEADING: Final = 190
_SLACK: Final = 1e-9
"""A share of the expected time below which nothing is missing: rounding."""


def plot_coverage(
    found: Completeness,
    periods: Sequence[str],
    names: Sequence[str],
    *,
    title: str,
    facts: Mapping[str, Any],
    notes: Sequence[str] = (),
    path: str | Path | None = None,
    show: bool | None = None,
) -> Figure:
    """Draw how complete series are; see `Client.plot_coverage`.

    Parameters
    ----------
    found : Completeness
    periods : sequence of str
        Labels of the axis, each of them once.
    names : sequence of str
        What the pointer says of each period.
    """
    require_plotly()
    from plotly.graph_objects import Figure, Heatmap

    if not found.symbols or not len(periods):
        figure = nothing("nothing to show")
        dress(figure, title, subtitle_of(facts, notes), facts)
        finish(figure, path, show)
        return figure
    figure = Figure(
        Heatmap(
            x=list(periods),
            y=list(found.symbols),
            z=_classes(found),
            customdata=_shares(found),
            text=np.tile(np.array(names, object), (len(found.symbols), 1)),
            hovertemplate=(
                "<b>%{y}</b>, %{text}<br>final %{customdata[0]:.2%}<br>"
                "provisional %{customdata[1]:.2%}<br>missing %{customdata[2]:.2%}, "
                "of it no longer given %{customdata[3]:.2%}<extra></extra>"
            ),
            hoverongaps=False,
            zmin=-0.5,
            zmax=len(CLASSES) - 0.5,
            colorscale=_scale(),
            xgap=1 if len(periods) <= _DENSE else 0,
            ygap=1 if len(found.symbols) <= _DENSE else 0,
            colorbar={
                "tickvals": list(range(len(CLASSES))),
                "ticktext": [name for name, _ in CLASSES],
                "orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom",
                "lenmode": "pixels", "len": 700, "thickness": 12, "ypad": 6,
                "ticks": "", "outlinewidth": 0,
            },
        )
    )  # fmt: skip
    dress(figure, title, subtitle_of(facts, [_whole(found), *notes]), facts)
    figure.update_layout(
        height=_HEADING + _height(len(found.symbols)), hovermode="closest",
        margin={"l": 80, "r": 30, "t": 140, "b": 50}, plot_bgcolor="#f3f4f6",
    )  # fmt: skip
    figure.update_xaxes(
        type="category", nticks=12, tickangle=0, showgrid=False, ticks="outside", ticklen=4
    )
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, ticksuffix=" ")
    finish(figure, path, show)
    return figure


_DENSE: Final = 130


def _height(rows: int) -> int:
    wide, narrow = _ROW
    return max(wide * 3, min(rows * wide, max(_TALL, rows * narrow)))


def _classes(found: Completeness) -> Any:
    """Return the class of each cell; NaN where nothing is expected."""
    with np.errstate(divide="ignore", invalid="ignore"):
        missing = found.missing / found.expected
        provisional = found.provisional / found.expected
    chosen = np.select(
        [
            missing >= 1 - _SLACK,
            missing > 0.5,
            missing > 0.01 + _SLACK,
            missing > _SLACK,
            provisional > _SLACK,
        ],
        [0.0, 1.0, 2.0, 3.0, 4.0],
        5.0,
    )
    return np.where(found.expected > 0, chosen, np.nan)


def _shares(found: Completeness) -> Any:
    parts = (found.final, found.provisional, found.missing, found.unavailable)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (np.stack(parts, axis=-1) / found.expected[..., None]).astype(np.float32)


def _scale() -> list[tuple[float, str]]:
    """Return a scale of plain colours, one for each class."""
    width = 1 / len(CLASSES)
    return [
        (min(1.0, edge), colour)
        for number, (_, colour) in enumerate(CLASSES)
        for edge in (number * width, (number + 1) * width)
    ]


def _whole(found: Completeness) -> str:
    expected = float(found.expected.sum())
    if not expected:
        return "no trading time"
    parts = (("final", found.final), ("provisional", found.provisional), ("missing", found.missing))
    return ", ".join(f"{_percent(float(p.sum()) / expected)} {name}" for name, p in parts)


def _percent(share: float) -> str:
    """Return a share in per cent: 100 and 0 are said of exactly these."""
    if _SLACK < share < 1 - _SLACK:
        return f"{min(max(share, 0.0001), 0.9999):.2%}"
    return f"{share:.0%}"
