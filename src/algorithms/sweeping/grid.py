"""The points of a grid: which combinations of parameters a sweep tries, and in what order. Pure."""

from __future__ import annotations

import difflib
import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from algorithms.algorithm import Algorithm
from algorithms.errors import AlgorithmError, ParameterError
from algorithms.params import Value

Grid = Mapping[str, Iterable[Any]]
Constraint = Callable[["Point"], object]

_TRIES: Final = 1_000
"""Draws in a row that a constraint may refuse before a sample is given up."""


class Point(dict[str, Value]):
    """The parameters of one run: a dict whose keys are attributes too, for constraints."""

    def __getattr__(self, name: str) -> Value:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(
                f"the point has no parameter {name!r}; it has: {', '.join(self)}"
            ) from None


def points_of(
    algorithm: Algorithm,
    grid: Grid,
    where: Constraint | None = None,
    sample: int | None = None,
    seed: int = 0,
) -> list[Point]:
    """Return the points of a grid, the last parameter changing fastest.

    Parameters
    ----------
    algorithm : Algorithm
        Parameters that the grid leaves out have its values, and `where` sees them too.
    grid : mapping of str to iterable
        Values by parameter; a value given twice counts once.
    where : callable, optional
        Given a `Point`, says whether to try it.
    sample : int, optional
        No more than so many points, drawn at random without repetition, in the grid's order.
    seed : int
        The same draw for the same seed.

    Raises
    ------
    ParameterError
        A parameter that the algorithm does not have, or a value that it does not take.
    AlgorithmError
        The grid is empty, or nothing of it meets the constraint.
    """
    if sample is not None and sample < 1:
        raise AlgorithmError(f"a sample of {sample} points", cure="give 1 or more")
    values = _checked(algorithm, grid)
    size = math.prod(len(column) for column in values.values())
    base = algorithm.params
    if sample is not None and sample < size:
        found = _sampled(values, size, base, where, sample, random.Random(seed))
    else:
        found = [
            Point(zip(values, combination, strict=True))
            for combination in itertools.product(*values.values())
        ]
        if where is not None:
            found = [point for point in found if where(Point({**base, **point}))]
    if not found:
        raise AlgorithmError(
            f"none of {size:,} points is tried" if size else "the grid has no points",
            cure="loosen `where`" if size else "give each parameter at least one value",
        )
    return found


def _checked(algorithm: Algorithm, grid: Grid) -> dict[str, Sequence[Value]]:
    if not grid:
        raise AlgorithmError("an empty grid", cure='name parameters: {"length": range(10, 60, 5)}')
    declared = algorithm.declared()
    for name in grid:
        if name not in declared:
            near = difflib.get_close_matches(name, declared, 1)
            raise ParameterError(
                f"{type(algorithm).__name__} has no parameter {name!r} to sweep",
                cure=f"did you mean {near[0]!r}?" if near else "it has: " + ", ".join(declared),
            )
    found: dict[str, Sequence[Value]] = {}
    for name, given in grid.items():
        if isinstance(given, str) or not isinstance(given, Iterable):
            given = (given,)  # noqa: PLW2901 - one value is a grid of one
        found[name] = list(dict.fromkeys(declared[name].check(value) for value in given))
    return found


def _sampled(
    values: dict[str, Sequence[Value]],
    size: int,
    base: Mapping[str, Value],
    where: Constraint | None,
    count: int,
    draw: random.Random,
) -> list[Point]:
    """Draw numbers of points: a grid of a million million is never laid out."""
    taken: dict[int, Point] = {}
    for number in _numbers(size, draw):
        point = _numbered(values, number)
        if where is None or where(Point({**base, **point})):
            taken[number] = point
            if len(taken) == count:
                break
    return [taken[number] for number in sorted(taken)]


def _numbers(size: int, draw: random.Random) -> Iterator[int]:
    """Yield numbers below `size`, none twice; all of them where that is within reach."""
    if size <= 1_000_000:
        yield from draw.sample(range(size), size)
        return
    seen: set[int] = set()
    missed = 0
    while missed < _TRIES:
        number = draw.randrange(size)
        if number in seen:
            missed += 1
            continue
        missed = 0
        seen.add(number)
        yield number
        if len(seen) >= 10_000_000:
            return


def _numbered(values: dict[str, Sequence[Value]], number: int) -> Point:
    chosen: dict[str, Value] = {}
    for name, column in reversed(values.items()):
        number, at = divmod(number, len(column))
        chosen[name] = column[at]
    return Point({name: chosen[name] for name in values})
