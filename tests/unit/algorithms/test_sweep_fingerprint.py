"""What counts as the same strategy and the same data when a sweep goes on."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from algorithms import BasisPoints, PerShare
from algorithms.frames import market_of
from algorithms.lines import NEVER
from algorithms.sweeping.fingerprint import code_of, fingerprint_of, market_fingerprint
from tests.sweep_examples import Cross, Fragile, bars

_SOURCE = """
    import numpy as np
    from algorithms import Algorithm, Param

    LIMIT = 0.5
    WEIGHTS = {"A": 1.0}
    UNUSED = 1

    def half(x):
        return x * LIMIT

    def smooth(given, n=3):
        return np.convolve(given.close, np.ones(n), "same")

    class Mine(Algorithm):
        indicators = {"m": "sma_{n}", "s": smooth}
        n = Param(5, low=2)

        def on_bar(self, ctx):
            if ctx.close[-1] in (1, 2, 3) or ctx.symbols[0] in {"A", "B", "C"}:
                ctx.order(half(WEIGHTS["A"]), limit=self.price(ctx))

        def price(self, ctx):
            return max(value for value in ctx.close[-self.n:])
"""


def _made(source: str = _SOURCE) -> Any:
    space: dict[str, Any] = {"__name__": "a_notebook"}
    exec(textwrap.dedent(source), space)
    return space["Mine"]


def test_the_same_code_made_twice_is_the_same() -> None:
    moved = "\n# A comment.\n\n" + textwrap.dedent(_SOURCE).replace(
        "def price", "\n\n    def price"
    )
    assert fingerprint_of(_made()) == fingerprint_of(_made()) == fingerprint_of(_made(moved))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LIMIT = 0.5", "LIMIT = 0.6"),
        ("x * LIMIT", "x + LIMIT"),
        ('{"A": 1.0}', '{"A": 2.0}'),
        ("n=3", "n=4"),
        ("Param(5, low=2)", "Param(6, low=2)"),
        ('"sma_{n}"', '"ema_{n}"'),
        ("(1, 2, 3)", "(1, 2, 4)"),
        ("max(value", "min(value"),
        ("-self.n:", "-self.n - 1:"),
    ],
)
def test_whatever_decides_the_figures_counts(old: str, new: str) -> None:
    assert _SOURCE.count(old) == 1
    assert fingerprint_of(_made(_SOURCE.replace(old, new))) != fingerprint_of(_made())


def test_what_is_not_used_does_not_count() -> None:
    assert fingerprint_of(_made(_SOURCE.replace("UNUSED = 1", "UNUSED = 2"))) == fingerprint_of(
        _made()
    )


def test_values_of_closures_and_instances_count() -> None:
    def scaled(factor: float) -> Callable[[float], float]:
        return lambda x: x * factor

    assert fingerprint_of(scaled(2.0)) == fingerprint_of(scaled(2.0)) != fingerprint_of(scaled(3.0))
    assert fingerprint_of(PerShare(0.01)) == fingerprint_of(PerShare(0.01))
    assert fingerprint_of(PerShare(0.01)) != fingerprint_of(PerShare(0.02))
    assert fingerprint_of(PerShare(1.0)) != fingerprint_of(BasisPoints(1.0))
    array = np.arange(5.0)
    assert fingerprint_of(array) == fingerprint_of(array.copy()) != fingerprint_of(array + 1)
    assert fingerprint_of({"b", "a", "c"}) == fingerprint_of({"c", "b", "a"})
    loop: list[Any] = []
    loop.append(loop)
    assert fingerprint_of(loop) == fingerprint_of(loop)


def test_a_base_class_counts() -> None:
    assert fingerprint_of(Cross) != fingerprint_of(Fragile)
    assert code_of(Cross) != code_of(Fragile)
    assert code_of(Cross) == code_of(Cross)


def test_data_counts_up_to_the_instant_and_no_later() -> None:
    long, short = bars(1, 100), bars(1, 100).iloc[:60]
    whole, part = (market_of({"A": frame}, ["A"], "1day") for frame in (long, short))
    end = int(part.of("A", "1day").closes[59])
    assert market_fingerprint(whole, end) == market_fingerprint(part, end)
    assert market_fingerprint(whole, NEVER - 1) != market_fingerprint(part, NEVER - 1)
    assert market_fingerprint(whole, end) == market_fingerprint(part, NEVER - 1)
    changed = short.copy()
    changed["open"] += 0.01
    other = market_of({"A": changed}, ["A"], "1day")
    assert market_fingerprint(other, end) != market_fingerprint(part, end)
