"""What all pictures have in common: colours, headings, the page they are written to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from marketdata.errors import MissingDependencyError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

UP: Final = "#00897b"
DOWN: Final = "#d1495b"
SEPARATOR: Final = "#c9ced6"
MUTED: Final = "#5f6b7a"
WARNING: Final = "#b3261e"
GAP: Final = "#f2a33a"
PALETTE: Final = (
    "#1565c0", "#ef6c00", "#6a1b9a", "#2e7d32", "#ad1457", "#00838f", "#6d4c41", "#37474f",
    "#9e9d24", "#4527a0", "#c62828", "#0277bd",
)  # fmt: skip
FONT: Final = "system-ui, -apple-system, 'Segoe UI', sans-serif"


def require_plotly() -> None:
    """Raise `MissingDependencyError` where plotly is not installed."""
    try:
        import plotly.graph_objects  # noqa: F401
    except ImportError:
        raise MissingDependencyError(
            "plotting needs plotly, which is not installed", cure="pip install 'marketdata[plot]'"
        ) from None


def nothing(what: str = "no bars") -> Figure:
    """Return a figure that says that there is nothing to draw."""
    from plotly.graph_objects import Figure

    figure = Figure()
    figure.add_annotation(
        text=what, showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper", font_size=24
    )
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return figure


def add_shapes(figure: Figure, shapes: Sequence[Mapping[str, Any]]) -> None:
    """Add shapes in one go: one by one, each costs as much as all before it."""
    if shapes:
        figure.update_layout(shapes=(*figure.layout.shapes, *shapes))


def axis_name(letter: str, row: int) -> str:
    """Return the axis of a row of panels: ``y``, ``y2``."""
    return letter if row == 1 else f"{letter}{row}"


def dress(figure: Figure, title: str, subtitle: str, facts: Mapping[str, Any]) -> None:
    """Give a figure its heading; simulated data is marked, whatever the title says."""
    if facts.get("simulated") or facts.get("provider") == "sandbox":
        title = f'<span style="color:{WARNING}"><b>SIMULATED</b></span>  {title}'
    legend = bool(figure.layout.showlegend)
    height = figure.layout.height
    # Whatever room is left above the panels, as for a legend, the heading is at the top.
    at = {} if height is None else {"y": 1 - 20 / height, "yref": "container", "yanchor": "top"}
    figure.update_layout(
        template="plotly_white",
        title={
            "text": title,
            "subtitle": {"text": subtitle, "font": {"color": MUTED, "size": 13}},
            "x": 0.01,
            "xanchor": "left",
            **at,
        },
        font={"family": FONT, "size": 13},
        hovermode="x",
        margin={"l": 70, "r": 30, "t": 90, "b": 60},
        showlegend=legend,
        # Data stay here: some versions of plotly offer to send a chart to a server by default.
        modebar={"remove": ["sendDataToCloud", "sendChartToCloud"]},
    )


def subtitle_of(facts: Mapping[str, Any], notes: Sequence[str]) -> str:
    """Return where the data of a figure came from, and what is wanting."""
    source = "/".join(dict.fromkeys(str(facts[k]) for k in ("provider", "feed") if facts.get(k)))
    adjustment = facts.get("adjustment")
    said = [
        source,
        "" if not adjustment else "raw prices" if adjustment == "raw" else f"{adjustment}-adjusted",
        f"as known at {facts['as_of']}" if facts.get("as_of") else "",
        f"renamed: {facts['lineage']}" if facts.get("lineage") else "",
        "delayed" if facts.get("delayed") else "",
        "fewer bars than asked for" if facts.get("truncated") else "",
        "last bar still forming" if facts.get("forming") else "",
        *notes,
    ]
    return " · ".join(part for part in said if part)


def finish(figure: Figure, path: str | Path | None, show: bool | None) -> None:
    """Write one self-contained page, and open the figure, as far as asked."""
    if path is not None:
        figure.write_html(path, include_plotlyjs=True, config={"displaylogo": False})
    if show:
        figure.show()
