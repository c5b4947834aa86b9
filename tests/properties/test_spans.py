"""The span algebra against sets of integers."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from marketdata.spans import Span, intersect, normalise, subtract
from tests.interval_sets import total

loose = st.lists(st.builds(Span, st.integers(0, 40), st.integers(0, 40)), max_size=10)
normal = loose.map(normalise)


def points(spans: list[Span]) -> set[int]:
    return {n for span in spans for n in range(span.start, span.end)}


def is_normal(spans: list[Span]) -> bool:
    return all(not s.empty for s in spans) and all(a.end < b.start for a, b in pairwise(spans))


@settings(max_examples=300, deadline=None)
@given(loose)
def test_normalise_keeps_every_point_in_the_fewest_spans(spans: list[Span]):
    merged = normalise(spans)
    assert points(merged) == points(spans)
    assert is_normal(merged)
    assert normalise(merged) == merged
    assert total(merged) == len(points(spans))


@settings(max_examples=300, deadline=None)
@given(normal, normal)
def test_intersect_is_that_of_sets(left: list[Span], right: list[Span]):
    common = intersect(left, right)
    assert points(common) == points(left) & points(right)
    assert is_normal(common)
    assert common == intersect(right, left)


@settings(max_examples=300, deadline=None)
@given(normal, normal)
def test_subtract_is_that_of_sets(left: list[Span], right: list[Span]):
    rest = subtract(left, right)
    assert points(rest) == points(left) - points(right)
    assert is_normal(rest)


@settings(max_examples=200, deadline=None)
@given(normal, normal)
def test_gaps_and_held_parts_make_up_what_was_asked(asked: list[Span], held: list[Span]):
    parts = [*subtract(asked, held), *intersect(asked, held)]
    assert normalise(parts) == asked
    assert total(parts) == total(asked)


@settings(max_examples=200, deadline=None)
@given(*[st.builds(Span, st.integers(0, 40), st.integers(0, 40)) for _ in range(2)])
def test_clip(one: Span, other: Span):
    assert points([one.clip(other)]) == points([one]) & points([other])
