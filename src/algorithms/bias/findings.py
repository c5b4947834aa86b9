"""What an analysis of a strategy found: findings, and the report they make."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import pandas as pd


class Level(StrEnum):
    """A bias makes the results wrong; a warning says what to keep in mind when reading them."""

    BIAS = "bias"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found.

    Attributes
    ----------
    level : Level
    kind : str
        ``look-ahead``, ``state``, ``warm-up``, ``universe``, ``gaps``, ``actions``, ``fills`` or
        ``sample``.
    what : str
        The indicator (by its name in the strategy), ``orders``, or the symbol it is about.
    text : str
        What was seen, with where, when and how much.
    cure : str
    facts : dict
        The same in numbers: ``symbol``, ``at`` and ``cut`` (ISO 8601, UTC), ``with_later``,
        ``without_later``, ``cuts_moved``, ... as far as they apply. JSON-representable.
    """

    level: Level
    kind: str
    what: str
    text: str
    cure: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WarmUp:
    """How far an indicator is from its settled value with only so many bars before it.

    Attributes
    ----------
    indicator, timeframe : str
    declared : int or None
        The look-back said for it, in bars; None where every bar there is counts.
    moves : dict of int to float
        By bars of warm-up: the greatest relative difference from the value with all bars.
    settled : int or None
        The fewest of these bars after which it moved by less than a millionth; None where it did
        not.
    """

    indicator: str
    timeframe: str
    declared: int | None
    moves: dict[int, float]
    settled: int | None


@dataclass(frozen=True)
class BiasReport:
    """What `check` found.

    Attributes
    ----------
    algorithm : str
    params : dict
    symbols : tuple of str
    timeframe : str
    start, end : Timestamp
        The first and the last moment of the run, UTC.
    moments, decisions : int
        Calls of `on_bar`, and orders and cancellations of the whole run.
    cuts : int
        Moments after which the data was taken away and the strategy run again.
    findings : tuple of Finding
        Biases first.
    warm_up : tuple of WarmUp
        One for each indicator.
    simulated : bool
    fingerprint : str
        Of the data.
    """

    algorithm: str
    params: dict[str, Any]
    symbols: tuple[str, ...]
    timeframe: str
    start: pd.Timestamp
    end: pd.Timestamp
    moments: int
    decisions: int
    cuts: int
    findings: tuple[Finding, ...]
    warm_up: tuple[WarmUp, ...]
    simulated: bool = False
    fingerprint: str = ""

    @property
    def passed(self) -> bool:
        """Whether no bias was found; warnings do not count."""
        return not self.biases

    @property
    def biases(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.level is Level.BIAS)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.level is Level.WARNING)

    @property
    def warm_up_table(self) -> pd.DataFrame:
        """By indicator: how much its value moves with so many bars before it, relative."""
        rows = {row.indicator: row.moves for row in self.warm_up}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("indicator")

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-representable values."""
        return {
            "algorithm": self.algorithm,
            "params": self.params,
            "symbols": list(self.symbols),
            "timeframe": self.timeframe,
            "start": self.start.isoformat(),
            "end": self.end.isoformat(),
            "moments": self.moments,
            "decisions": self.decisions,
            "cuts": self.cuts,
            "passed": self.passed,
            "biases": [_record(f) for f in self.biases],
            "warnings": [_record(f) for f in self.warnings],
            "warm_up": [asdict(row) for row in self.warm_up],
            "simulated": self.simulated,
            "fingerprint": self.fingerprint,
        }

    def to_json(self) -> str:
        """Return the report as one JSON object; what is not a number is null."""
        return json.dumps(_finite(self.to_dict()), ensure_ascii=False, allow_nan=False)

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def _record(finding: Finding) -> dict[str, Any]:
    return {k: v for k, v in asdict(finding).items() if v not in ("", {}) and k != "level"}


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


def _lines(report: BiasReport) -> Iterator[str]:
    if report.simulated:
        yield "SIMULATED prices: not a market's"
    inner = ", ".join(f"{k}={v!r}" for k, v in report.params.items())
    some = ", ".join(report.symbols[:6])
    more = f" and {len(report.symbols) - 6} more" if len(report.symbols) > 6 else ""
    named = f"{report.algorithm} ({inner})" if inner else report.algorithm
    yield f"{named} on {some}{more}, {report.timeframe} bars"
    yield (
        f"{report.start:%Y-%m-%d} to {report.end:%Y-%m-%d}, {report.moments:,} moments, "
        f"{report.decisions:,} decisions; run again without later data at {report.cuts} moments"
    )
    yield ""
    for title, found in (("BIAS", report.biases), ("warning", report.warnings)):
        for finding in found:
            yield f"{title}: {finding.kind}, {finding.what}"
            yield f"    {finding.text}"
            if finding.cure:
                yield f"    -> {finding.cure}"
    if report.findings:
        yield ""
    yield from _warm_up_lines(report.warm_up)
    count, warned = len(report.biases), len(report.warnings)
    verdict = "passed: no bias found" if report.passed else f"FAILED: {_counted(count, 'bias')}"
    yield f"{verdict}, {_counted(warned, 'warning')}"


def _warm_up_lines(rows: Sequence[WarmUp]) -> Iterator[str]:
    if not rows:
        return
    lengths = sorted({n for row in rows for n in row.moves})
    width = max(len("bars before the value"), *(len(row.indicator) for row in rows))
    yield "How much a value moves with more bars before it"
    yield f"{'bars before the value':<{width}}" + "".join(f"{n:>10,}" for n in lengths)
    for row in rows:
        cells = [_moved(row.moves[n]) if n in row.moves else "" for n in lengths]
        yield f"{row.indicator:<{width}}" + "".join(f"{cell:>10}" for cell in cells)
    yield ""


def _moved(share: float) -> str:
    if share != share:  # noqa: PLR0124 - NaN: no value yet with so few
        return "none"
    return "-" if share < 1e-9 else f"{share:.1e}" if share < 1e-4 else f"{share:.2%}"


def _counted(count: int, noun: str) -> str:
    plural = "biases" if noun == "bias" else f"{noun}s"
    return f"{count} {noun if count == 1 else plural}"
