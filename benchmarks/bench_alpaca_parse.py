"""Broker bars to one frame: our parsing beside alpaca-py's own models, on the same answers.

Run: ``python -m benchmarks.bench_alpaca_parse``. Both begin with the answer's text, which each has
to decode; the second row of a size begins with the decoded JSON, so that only the parsing counts.
Ours includes the quality gates.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.timing import Row, take_turns
from marketdata.brokers.alpaca_wire import parse_bars
from marketdata.calendars import TradingCalendar, calendar_for
from marketdata.quality import gate
from marketdata.sandbox.encoding import encode_bars
from marketdata.spans import Span
from marketdata.types import COLUMNS, MINUTE, Bars, Timeframe

START = 1_710_000_000_000_000 // MINUTE * MINUTE
SIZES = (1_000, 10_000, 100_000)
BAR = 5.0
"""How many times faster than alpaca-py's models ours has to be."""


def answer(count: int) -> str:
    """Return a page of `count` one-minute bars as Alpaca writes it."""
    random = np.random.default_rng(7)
    values = np.round(random.uniform(100, 101, (len(COLUMNS), count)), 4)
    values[1] += 1
    values[2] -= 1
    values[4] = random.integers(1, 100_000, count)
    values[6] = random.integers(1, 1_000, count)
    bars = Bars(START + MINUTE * np.arange(count, dtype=np.int64), values)
    (encoded,) = encode_bars([bars])
    return '{"bars":{"AAPL":[' + encoded.decode() + ']},"next_page_token":null}'


def ours(page: dict[str, Any], span: Span, calendar: TradingCalendar) -> pd.DataFrame:
    bars = parse_bars(page["bars"]["AAPL"])
    report = gate(bars, span=span, timeframe=Timeframe.MIN_1, calendar=calendar, now_us=span.end)
    clean = report.bars
    index = pd.DatetimeIndex(clean.timestamp.view("M8[us]"), tz="UTC", name="timestamp")
    return pd.DataFrame(clean.values.T, index=index, columns=list(COLUMNS), copy=False)


def theirs(page: dict[str, Any]) -> pd.DataFrame:
    from alpaca.data.models import BarSet

    return BarSet(page["bars"]).df


def rows() -> list[Row]:
    """Measure every size and return the lines of the report."""
    calendar = calendar_for("XNYS", START)
    found: list[Row] = []
    for count in SIZES:
        text = answer(count)
        page = json.loads(text)
        span = Span(START, START + count * MINUTE)
        _assert_same(ours(page, span, calendar), theirs(page))
        best = take_turns(
            {
                "ours": partial(_decoded, text, partial(ours, span=span, calendar=calendar)),
                "theirs": partial(_decoded, text, theirs),
                "ours parsing": partial(ours, page, span, calendar),
                "their parsing": partial(theirs, page),
            },
            rounds=3 if count > 50_000 else 7,
        )
        size = f"{count} bars"
        found += [
            Row("broker answer to frame", size, best["ours"], "alpaca-py models", best["theirs"],
                BAR, faster=True),
            Row("decoded answer to frame", size, best["ours parsing"], "alpaca-py models",
                best["their parsing"], BAR, faster=True),
        ]  # fmt: skip
    return found


def _decoded(text: str, frame: Callable[[dict[str, Any]], pd.DataFrame]) -> pd.DataFrame:
    return frame(json.loads(text))


def _assert_same(mine: pd.DataFrame, other: pd.DataFrame) -> None:
    other = other.droplevel("symbol")[list(COLUMNS)].astype(float)
    np.testing.assert_array_equal(mine.to_numpy(), other.to_numpy())
    assert list(mine.index) == list(other.index)


def run() -> list[dict[str, Any]]:
    """Return the figures: what, size, ours_ms, anchor_ms, ratio, bar, reached."""
    return [
        {"what": r.what, "size": r.size, "ours_ms": r.ours_ms, "anchor": r.anchor,
         "anchor_ms": r.anchor_ms, "ratio": r.ratio, "bar": r.bar, "reached": r.reached}
        for r in rows()
    ]  # fmt: skip


if __name__ == "__main__":
    for line in rows():
        print(line)
