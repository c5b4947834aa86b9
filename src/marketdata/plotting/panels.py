"""Panels of candles: for each symbol its price, its volume, and what does not lie on the price."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from marketdata.errors import RequestError
from marketdata.plotting.appearance import (
    DOWN,
    MUTED,
    PALETTE,
    UP,
    add_shapes,
    axis_name,
)
from marketdata.plotting.studies import LEVELS, Study

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from marketdata.plotting.time_axis import TimeAxis
    from marketdata.spans import Span

MAX_PANELS: Final = 18
MAX_STUDIES: Final = 40
_PRICES: Final = ["open", "high", "low", "close"]
_ALONE: Final = (330, 100, 115)
"""Pixels of a price, a volume and a study, of one symbol."""
_AMONG_OTHERS: Final = (205, 65, 90)
_HEADING: Final = 170
_LONGEST: Final = 14


class Panels:
    """The panels of a figure, symbol by symbol.

    Parameters
    ----------
    symbols : sequence of str
    parts : sequence of DataFrame
        Each symbol's candles, with a column ``volume`` where it is drawn.
    studies : sequence of Study
    """

    def __init__(
        self, symbols: Sequence[str], parts: Sequence[pd.DataFrame], studies: Sequence[Study]
    ) -> None:
        from plotly.subplots import make_subplots

        self.symbols = symbols
        self.parts = parts
        self._studies = studies
        self._below = list(dict.fromkeys(study.panel for study in studies if study.panel))
        price, volume, study = _ALONE if len(symbols) == 1 else _AMONG_OTHERS
        heights: list[int] = []
        self._first: list[int] = []
        for part in parts:
            self._first.append(len(heights) + 1)
            heights += [price, *([volume] if "volume" in part else []), *[study] * len(self._below)]
        if len(heights) > MAX_PANELS or len(studies) > MAX_STUDIES:
            raise RequestError(
                f"{len(heights)} panels with {len(studies)} indicators do not fit one figure",
                cure=f"draw fewer symbols or indicators: at most {MAX_PANELS} panels, "
                f"{MAX_STUDIES} indicators",
            )
        self.figure: Figure = make_subplots(
            rows=len(heights),
            cols=1,
            shared_xaxes="all",
            vertical_spacing=0.16 / (len(heights) + 2),
            row_heights=heights,
        )
        self._height = _HEADING + sum(heights)

    def add(self, number: int, axis: TimeAxis) -> list[int]:
        """Add a symbol's candles and volume; return all its rows, that of the price first."""
        from plotly.graph_objects import Bar, Candlestick

        symbol, part, figure = self.symbols[number], self.parts[number], self.figure
        x = axis.labels_of(part.index.to_numpy())
        first = self._first[number]
        figure.add_trace(
            Candlestick(
                x=x,
                **{name: part[name].to_numpy() for name in _PRICES},
                name=symbol or "price",
                showlegend=False,
                increasing={"line": {"color": UP, "width": 1}, "fillcolor": UP},
                decreasing={"line": {"color": DOWN, "width": 1}, "fillcolor": DOWN},
            ),
            row=first,
            col=1,
        )
        figure.update_yaxes(title_text=symbol or "price", row=first, col=1)
        if "volume" in part:
            colours = np.where(part["close"] >= part["open"], UP, DOWN)
            figure.add_trace(
                Bar(
                    x=x,
                    y=part["volume"].to_numpy(),
                    marker={"color": colours, "line": {"width": 0}},
                    opacity=0.6,
                    name=f"{symbol} volume".strip(),
                    showlegend=False,
                ),
                row=first + 1,
                col=1,
            )
            figure.update_yaxes(title_text="volume", rangemode="tozero", row=first + 1, col=1)
        last = first + ("volume" in part) + len(self._below)
        return list(range(first, last + 1))

    def add_studies(
        self, number: int, axis: TimeAxis, values: pd.DataFrame, gaps: Sequence[Span]
    ) -> None:
        """Add a symbol's indicators: on its price, or in their panels below."""
        first = self._first[number]
        below = first + ("volume" in self.parts[number])
        colours = _colours(self._studies)
        x, values = axis.with_breaks(values, gaps)
        for study in self._studies:
            row = below + 1 + self._below.index(study.panel) if study.panel else first
            self._add(study, row, x, values[study.name].to_numpy(), colours)
        for at, panel in enumerate(self._below):
            row = below + 1 + at
            family = next(s.family for s in self._studies if s.panel == panel)
            self.figure.update_yaxes(
                title_text=_shown(panel), title_font_size=11, nticks=4, row=row, col=1
            )
            line = {
                "type": "line", "xref": "paper", "x0": 0, "x1": 1, "opacity": 0.5,
                "yref": axis_name("y", row), "line": {"color": MUTED, "width": 1, "dash": "dot"},
            }  # fmt: skip
            levels = LEVELS.get(family, ())
            add_shapes(self.figure, [{**line, "y0": level, "y1": level} for level in levels])

    def _add(self, study: Study, row: int, x: Any, y: Any, colours: dict[str, str]) -> None:
        from plotly.graph_objects import Bar, Scatter

        known = any(trace.name == study.name for trace in self.figure.data)
        shared: dict[str, Any] = {
            "x": x, "y": y, "name": study.name, "legendgroup": study.name,
            "showlegend": not known,
        }  # fmt: skip
        if study.bars:
            colour = np.where(np.nan_to_num(y) >= 0, UP, DOWN)
            trace = Bar(**shared, marker={"color": colour, "line": {"width": 0}}, opacity=0.5)
        else:
            outer = study.family == "bbands" and not study.name.endswith("_middle")
            line = {
                "width": 1.3, "color": colours[study.name], "dash": "dash" if outer else "solid",
            }  # fmt: skip
            trace = Scatter(**shared, mode="lines", connectgaps=False, line=line)
        self.figure.add_trace(trace, row=row, col=1)

    def finished(self) -> Figure:
        """Return the figure, with the room that its panels need."""
        named = any(trace.showlegend for trace in self.figure.data)
        self.figure.update_layout(height=self._height, bargap=0.2, showlegend=named)
        return self.figure


def _colours(studies: Sequence[Study]) -> dict[str, str]:
    """Return a colour for each line: each its own as far as they go, and one for a pair of bands."""
    found: dict[str, str] = {}
    used: dict[str, str] = {}
    for study in studies:
        key = study.name.rsplit("_", 1)[0] if study.family == "bbands" else study.name
        found[study.name] = used.setdefault(key, PALETTE[len(used) % len(PALETTE)])
    return found


def _shown(panel: str) -> str:
    """Return a panel's name in lines that its height has room for."""
    words, lines = panel.split("_"), [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) >= _LONGEST:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]}_{word}" if lines[-1] else word
    return "<br>".join(lines[:2])
