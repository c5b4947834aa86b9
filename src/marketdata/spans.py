"""Half-open spans of time in microseconds, and the set algebra that planning needs.

A list of spans is *normal* when it is sorted, disjoint, non-adjacent and holds no empty span.
Every function returns normal lists. Pure: no I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """``[start, end)`` in microseconds since 1970-01-01T00:00Z."""

    start: int
    end: int

    @property
    def empty(self) -> bool:
        return self.end <= self.start

    def clip(self, other: Span) -> Span:
        """Return the part of this span inside `other` (possibly empty)."""
        return Span(max(self.start, other.start), min(self.end, other.end))


def normalise(spans: Iterable[Span]) -> list[Span]:
    """Sort, drop empty spans, merge overlapping and adjacent ones."""
    merged: list[Span] = []
    for span in sorted(s for s in spans if s.end > s.start):
        if merged and span.start <= merged[-1].end:
            if span.end > merged[-1].end:
                merged[-1] = Span(merged[-1].start, span.end)
        else:
            merged.append(Span(*span))
    return merged


def intersect(left: Sequence[Span], right: Sequence[Span]) -> list[Span]:
    """Return what two normal lists have in common."""
    common: list[Span] = []
    i = j = 0
    while i < len(left) and j < len(right):
        start = max(left[i].start, right[j].start)
        end = min(left[i].end, right[j].end)
        if start < end:
            common.append(Span(start, end))
        if left[i].end < right[j].end:
            i += 1
        else:
            j += 1
    return common


def subtract(left: Sequence[Span], right: Sequence[Span]) -> list[Span]:
    """Return what of the normal list `left` lies outside the normal list `right`."""
    rest: list[Span] = []
    j = 0
    for span in left:
        start = span.start
        while j < len(right) and right[j].end <= start:
            j += 1
        k = j
        while k < len(right) and right[k].start < span.end:
            if right[k].start > start:
                rest.append(Span(start, right[k].start))
            start = max(start, right[k].end)
            k += 1
        if start < span.end:
            rest.append(Span(start, span.end))
    return rest
