"""What a frame says of its origin, in ``frame.attrs["marketdata"]``: strings, numbers and booleans
only, under 1 KB, because pandas copies attrs with every operation."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from marketdata.clock import from_micros
from marketdata.frames import ATTRS_KEY, Provenance

if TYPE_CHECKING:
    import pandas as pd

    from marketdata.answers import Answer, SeriesAnswer
    from marketdata.arguments import Request
    from marketdata.queries import BarsQuery

_SHOWN: Final = 8
_LINEAGE_ROOM: Final = 100
"""Characters for former symbols."""


def provenance_of(
    request: Request,
    answer: Answer,
    *,
    action_version: str,
    delayed: bool,
    forming: bool,
    simulated: bool,
    indicators: Sequence[str] = (),
    unstabilised: bool = False,
) -> Provenance:
    """Return the facts about one answer.

    Parameters
    ----------
    indicators : sequence of str
        Names of the indicators computed from the bars, if that is what was asked for.
    unstabilised : bool
        Whether some of their values rest on less history than they declare.
    """
    query, trace = request.query, answer.trace
    found = answer.series.values()
    fetched = [f.fetched_us for f in found if f.fetched_us is not None]
    facts: dict[str, str | int | float | bool] = {
        "tiers": " ".join(f"{t}:{n}" for t, n in Counter(f.tier for f in found).items()),
        "provider": _providers(query, answer),
        "feed": " ".join(dict.fromkeys(feed for _, feed in origins(query, answer))),
        "symbols": shortened(query.symbols),
        "timeframe": query.timeframe.value,
        "adjustment": request.adjustment,
        "session": query.session,
        "broker_pages": trace.pages,
        "answered_at": from_micros(request.now_us).isoformat(),
        "delayed": delayed,
        "truncated": any(f.truncated for f in found),
        "forming": forming,
        "simulated": simulated,
        "fingerprint": fingerprint(query, answer, action_version),
    }
    if indicators:
        facts["fingerprint"] = f"{facts['fingerprint']}/i{_word_for(indicators)}"
        facts["indicators"] = shortened(indicators)
        facts["action_version"] = action_version
        facts["unstabilised"] = unstabilised
    if request.as_of_us is not None:
        facts["as_of"] = from_micros(request.as_of_us).isoformat()
        facts["as_of_rests_on"] = _rests_on(answer.series.values())
    if renamed := {s: f.lineage for s, f in answer.series.items() if f.lineage}:
        facts["lineage"] = _lineages(renamed)
    if answer.served_by:
        facts["fallback"] = _fallback(answer)
    if fetched:
        facts["fetched_at"] = from_micros(min(fetched)).isoformat()
    if trace.rejected:
        facts["rejected_bars"] = sum(trace.rejected.values())
    if trace.flagged:
        facts["flagged_bars"] = trace.flagged
    if answer.unknown:
        facts["missing"] = shortened(answer.unknown)
    if trace.unverified:
        facts["unverified"] = shortened(sorted(trace.unverified))
    return Provenance(facts)


def origins(query: BarsQuery, answer: Answer) -> list[tuple[str, str]]:
    """Return provider and feed of each symbol of the answer, the query's own first; these alone
    where it has no symbols."""
    own = (query.provider, query.feed)
    if not answer.served_by:
        return [own]
    found = [answer.served_by.get(symbol, own) for symbol in answer.series]
    return sorted(found, key=lambda each: each != own)


def _providers(query: BarsQuery, answer: Answer) -> str:
    """Return the provider, or the number of symbols of each of several."""
    counts = Counter(origins(query, answer))
    if len(counts) == 1:
        return next(iter(counts))[0]
    same = len({provider for provider, _ in counts}) < len(counts)
    return " ".join(
        f"{provider}/{feed}:{n}" if same else f"{provider}:{n}"
        for (provider, feed), n in counts.items()
    )


def _fallback(answer: Answer) -> str:
    """Return which symbols another broker than the first one has answered, shortened."""
    by: dict[str, list[str]] = {}
    for symbol, (provider, _) in answer.served_by.items():
        by.setdefault(provider, []).append(symbol)
    return "; ".join(f"{provider}: {shortened(sorted(by[provider]))}" for provider in by)


def _lineages(renamed: Mapping[str, str]) -> str:
    """Return under which symbols renamed instruments have traded: as many as there is room for."""
    told = list(dict.fromkeys(renamed.values()))
    return shortened(told, max(1, bisect_right(list(accumulate(map(len, told))), _LINEAGE_ROOM)))


def shortened(names: Sequence[str], most: int = _SHOWN) -> str:
    """Return the first few names and how many more there are."""
    most = min(most, _SHOWN)
    text = " ".join(names[:most])
    return text if len(names) <= most else f"{text} and {len(names) - most} more"


def fingerprint(query: BarsQuery, answer: Answer, action_version: str) -> str:
    """Return what the answer depends on, in a word: key, range, revision and action version.

    Composed from those, never a hash of the answer; equal fingerprints mean equal bars.
    """
    window = query.window
    series = answer.series
    if len(series) == 1:
        ((symbol, found),) = series.items()
        what = f"{symbol}@{_state_of(found)}"
    else:
        digest = hashlib.blake2b(digest_size=8)
        for symbol in sorted(series):
            other = "/".join(answer.served_by.get(symbol, ()))
            digest.update(f"{symbol}@{_state_of(series[symbol])}{other};".encode())
        what = f"{len(series)}x{digest.hexdigest()}"
    start = "" if window.start is None else window.start // 1_000_000
    asked = dict.fromkeys(origins(query, answer))
    provider, feed = ("+".join(dict.fromkeys(names)) for names in zip(*asked, strict=True))
    return (
        f"{provider}/{feed}/{what}/{query.timeframe}/{query.session}"
        f"/{start}-{window.end // 1_000_000}/n{window.limit or ''}/a{action_version}"
        + ("" if query.as_of_us is None else f"/t{query.as_of_us}")
    )


def _state_of(found: SeriesAnswer) -> str:
    """Return what the bars of one series depend on besides key and range: the revision; or, as of
    an earlier moment, up to where bars had closed, and when those came that were observed later.
    """
    resting = found.resting
    if resting is None and found.pieces:
        return "+".join(f"{symbol}r{revision}" for symbol, revision in found.pieces)
    if resting is None:
        return f"r{found.revision}"
    known = f"r{found.revision}" if resting.untrailed else f"b{resting.arrivals}"
    return f"{known}c{resting.closed_until // 1_000_000}"


def _rests_on(found: Iterable[SeriesAnswer]) -> str:
    """Return what an answer as of an earlier moment rests on, in words."""
    found = list(found)
    rests = [each.resting for each in found if each.resting is not None]
    late = sum(resting.late for resting in rests)
    actions = sum(each.late_actions for each in found)
    untrailed = sum(resting.untrailed for resting in rests)
    parts = []
    if late:
        parts.append(f"{late} stored bars first observed later")
    if untrailed:
        of = (
            "the newest revisions" if len(rests) == 1 else f"newest revisions of {untrailed} series"
        )
        parts.append(f"{of}, without a trail back to then")
    if actions:
        parts.append(f"{actions} corporate action{'s'[: actions > 1]} first observed later")
    return "; ".join(parts) or "what was observed by then"


def _word_for(names: Sequence[str]) -> str:
    text = ",".join(names)
    if len(text) <= 40:
        return text
    return f"{len(names)}x{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"


def print_provenance(frame: pd.DataFrame) -> None:
    """Print a frame's provenance, one fact a line."""
    facts = dict(getattr(frame, "attrs", {}).get(ATTRS_KEY) or {})
    if not facts:
        print("no provenance: not a frame of marketdata")  # noqa: T201
    if facts.get("simulated"):
        print("SIMULATED data: generated by the sandbox, not real prices")  # noqa: T201
    width = max((len(k) for k in facts), default=0)
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")  # noqa: T201
