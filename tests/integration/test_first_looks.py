"""What a user sees at first of renamed, adjusted and past prices: provenance and plots."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date

import marketdata as md
from marketdata.sandbox import GeneratedMarket
from tests.stack import Stack


def test_provenance_stays_under_a_kilobyte_however_often_everything_was_renamed(
    make_stack: Callable[..., Stack],
) -> None:
    market = GeneratedMarket()
    newest = [f"NEWER.{letter}" for letter in "ABCDEFGHIJKL"]
    for number, name in enumerate(newest, 1):
        market.rename(f"S{number:05d}", f"S{number + 20000:05d}", date(2024, 1, 4))
        market.rename(f"S{number + 20000:05d}", name, date(2024, 2, 7))
    stack = make_stack(source=market)
    frame = stack.client.get_indicators(newest, limit=300, as_of="2024-03-01", adjustment="all")
    facts = frame.attrs["marketdata"]
    assert len(json.dumps(facts)) < 1024
    assert facts["lineage"].startswith("S00001<2024-01-04<S20001<2024-02-07<NEWER.A ")
    assert facts["lineage"].endswith(" more")


def test_a_plot_says_what_its_prices_are(make_stack: Callable[..., Stack]) -> None:
    market = GeneratedMarket()
    market.rename("FB", "META", date(2024, 2, 7))
    stack = make_stack(source=market)
    frame = stack.client.get_bars("META", start="2024-01-02", as_of="2024-03-01", adjustment="all")
    said = md.plot(frame).layout.title.subtitle.text
    assert "all-adjusted" in said
    assert "as known at 2024-03-01T05:00:00+00:00" in said
    assert "renamed: FB<2024-02-07<META" in said
