"""Shares of trading time against the set algebra of spans."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from marketdata.calendars import Hours, calendar_for
from marketdata.completeness import completeness
from marketdata.explaining import KnownParts
from marketdata.spans import Span, intersect, normalise
from marketdata.types import DAY, HOUR

START = 1_700_000_000_000_000
CALENDAR = calendar_for("XNYS", START)
MOMENTS = st.integers(START - 5 * DAY, START + 40 * DAY)
SPANS = st.lists(st.tuples(MOMENTS, MOMENTS), max_size=8).map(
    lambda pairs: normalise(Span(min(a, b), max(a, b)) for a, b in pairs)
)


@given(
    expected=SPANS,
    final=SPANS,
    lacking=SPANS,
    edges=st.lists(st.integers(START, START + 35 * DAY), min_size=2, max_size=9, unique=True),
    hours=st.sampled_from(["regular", "extended", "daily"]),
)
def test_trading_time_is_that_of_spans(
    expected: list[Span], final: list[Span], lacking: list[Span], edges: list[int], hours: Hours
) -> None:
    edges = sorted(edges)
    parts = KnownParts(expected, lacking, [], final)
    found = completeness({"A": parts, "B": KnownParts()}, CALENDAR, hours, np.array(edges))
    assert found.symbols == ("A", "B")
    for name, spans in (("expected", expected), ("final", final), ("never_asked", lacking)):
        values = getattr(found, name)
        assert values.shape == (2, len(edges) - 1)
        assert not values[1].any()
        for number, (start, end) in enumerate(pairwise(edges)):
            trading = CALENDAR.trading_spans(Span(start, end), hours)
            common = intersect(normalise(trading), spans)
            assert abs(values[0, number] - sum(s.end - s.start for s in common)) < 2
    assert not found.unavailable.any()


def test_what_is_neither_final_nor_missing_is_provisional() -> None:
    at = CALENDAR.session_at(START)
    session = CALENDAR.session_span(at, "extended")
    third = 4 * HOUR
    parts = KnownParts(
        expected=[session],
        never_asked=[Span(session.start, session.start + third)],
        unavailable=[Span(session.start + third, session.start + third + HOUR)],
        final=[Span(session.end - third, session.end)],
    )
    edges = np.array([session.start - HOUR, session.end, session.end + HOUR])
    found = completeness({"A": parts}, CALENDAR, "extended", edges)
    assert (found.expected / HOUR).tolist() == [[16, 0]]
    assert (found.missing / HOUR).tolist() == [[5, 0]]
    assert (found.provisional / HOUR).tolist() == [[7, 0]]
