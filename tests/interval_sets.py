"""What tests ask of spans, and the library does not."""

from __future__ import annotations

from collections.abc import Iterable

from marketdata.spans import Span


def total(spans: Iterable[Span]) -> int:
    """Return the summed length in microseconds."""
    return sum(s.end - s.start for s in spans)


def covers(one: Span, other: Span) -> bool:
    """Return whether all of `other` lies in `one`."""
    return other.empty or (one.start <= other.start and other.end <= one.end)
