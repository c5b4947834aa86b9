"""docs/INVARIANTS.md and the tests name each other, number by number."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = {"invariant": range(1, 41), "fault": range(1, 26)}
TO_COME = {("invariant", n) for n in (35, 36, 37)} | {("fault", 22)}
"""About streams, which do not exist yet."""

Number = tuple[str, int]


def numbers_of(test: str) -> set[Number]:
    """Return the numbers a test's name carries: ``test_fault_14_and_15_...`` has two."""
    named = re.findall(r"(invariant|fault)s?((?:_(?:and_)?\d{2}(?!\d))+)", test)
    return {(kind, int(n)) for kind, listed in named for n in re.findall(r"\d{2}", listed)}


@cache
def every_test() -> dict[str, set[Number]]:
    """Return every test by its node id below ``tests``, and the numbers it carries."""
    found = {}
    for file in (ROOT / "tests").rglob("test_*.py"):
        for name in re.findall(r"^ *(?:async )?def (test_\w+)", file.read_text("utf-8"), re.M):
            found[f"{file.relative_to(ROOT / 'tests')}::{name}"] = numbers_of(name)
    return found


def rows() -> Iterator[tuple[Number, str, list[str]]]:
    """Yield number, promise and node ids of each row of the page."""
    text = (ROOT / "docs" / "INVARIANTS.md").read_text("utf-8")
    for kind, number, promise, cells in re.findall(
        r"^\| (invariant|fault) (\d{2}) \| (.+?) \| (.*) \|$", text, re.M
    ):
        yield (kind, int(number)), promise, re.findall(r"`([^`]+::[^`]+)`", cells)


def test_the_page_has_every_number_once() -> None:
    listed = [number for number, _, _ in rows()]
    assert listed == [(kind, n) for kind, numbers in NUMBERS.items() for n in numbers]


def test_every_number_that_exists_by_now_has_a_test() -> None:
    without = {number for number, _, ids in rows() if not ids}
    assert without <= TO_COME


@pytest.mark.parametrize("kind", list(NUMBERS))
def test_the_page_lists_just_the_tests_that_carry_a_number(kind: str) -> None:
    for number, _, ids in rows():
        if number[0] == kind:
            named = sorted(test for test, numbers in every_test().items() if number in numbers)
            assert sorted(ids) == named, number


def test_numbers_are_read_from_names() -> None:
    assert numbers_of("test_fault_14_and_15_invariant_05_killed") == {
        ("fault", 14), ("fault", 15), ("invariant", 5)
    }  # fmt: skip
    assert numbers_of("test_invariants_06_09_200_callers") == {("invariant", 6), ("invariant", 9)}
    assert numbers_of("test_10_000_symbols") == set()
    assert all(
        kind in NUMBERS and n in NUMBERS[kind] for t in every_test().values() for kind, n in t
    )
