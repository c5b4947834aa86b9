"""Measuring side by side: every figure is a ratio to an anchor measured in the same run.

Machines are shared and noisy. Contenders take turns, round by round, and the best round of each
counts: what disturbs one disturbs its neighbour, and the best is what the code can do.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the report."""

    what: str
    size: str
    ours_ms: float
    anchor: str
    anchor_ms: float
    bar: float | None
    """What the ratio is held against; None for a figure that only shows how cost grows."""
    faster: bool
    """True: the ratio is anchor / ours and must reach the bar; False: ours / anchor, at most."""

    @property
    def ratio(self) -> float:
        return self.anchor_ms / self.ours_ms if self.faster else self.ours_ms / self.anchor_ms

    @property
    def reached(self) -> bool:
        if self.bar is None:
            return True
        return self.ratio >= self.bar if self.faster else self.ratio <= self.bar

    def __str__(self) -> str:
        sign = ">=" if self.faster else "<="
        verdict = "ok" if self.reached else "MISSED"
        held = "" if self.bar is None else f"({sign} {self.bar:g}x {verdict})"
        return (
            f"{self.what:<44} {self.size:>14}  {self.ours_ms:>10.3f} ms  "
            f"{self.anchor:<30} {self.anchor_ms:>10.3f} ms  "
            f"{self.ratio:>7.2f}x  {held}"
        )


def take_turns(
    contenders: Mapping[str, Callable[[], object]], rounds: int = 7, repeat: int = 1
) -> dict[str, float]:
    """Return the best milliseconds per call of each contender."""
    best = dict.fromkeys(contenders, float("inf"))
    for contender in contenders.values():
        contender()
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, contender in contenders.items():
                began = time.perf_counter()
                for _ in range(repeat):
                    contender()
                best[name] = min(best[name], (time.perf_counter() - began) / repeat * 1000)
    finally:
        gc.enable()
    return best
