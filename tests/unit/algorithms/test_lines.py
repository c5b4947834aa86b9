"""Nothing later than now can be reached by any public way; reading is quick and exact."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import pytest

from algorithms import Context, LookAheadError, crossed_above, crossed_below
from algorithms.lines import NEVER, Cursor, Line
from tests.scripted_runs import Scripted, days, engine_on

VALUES = np.arange(100.0, 110.0)


def line_at(at: int, values: Any = VALUES) -> Line:
    cursor = Cursor("X")
    cursor.bind(np.append(np.arange(len(values)), NEVER))
    cursor.move(at)
    line = Line(cursor)
    line.bind(values)
    return line


@pytest.mark.parametrize("at", range(11))
def test_every_way_of_reading_ends_at_now(at: int) -> None:
    line = line_at(at)
    known = VALUES[:at].tolist()
    assert len(line) == at
    assert list(line) == known
    assert line.values().tolist() == known
    assert np.asarray(line).tolist() == known
    assert np.array(line).tolist() == known
    assert list(reversed(line.values())) == known[::-1]
    for cut in (
        slice(None), slice(-3, None), slice(None, -1), slice(0, 50), slice(-50, 50),
        slice(None, None, -1), slice(5, None), slice(None, None, 2), slice(-1, None, -2),
    ):  # fmt: skip
        assert line[cut].tolist() == known[cut], cut
    for count in (0, 1, 3, 10, 99, -1, -5):
        assert set(line.values(count).tolist()) <= set(known), count
    for back in range(1, 15):
        found = line[-back]
        assert found == known[-back] if back <= at else math.isnan(found)


@pytest.mark.parametrize("index", [0, 1, 9, 10**6, np.int64(0), True, False])
def test_an_index_that_is_not_from_the_end_is_refused(index: Any) -> None:
    with pytest.raises(LookAheadError, match=r"line\[-1\] is the newest"):
        line_at(4)[index]


@pytest.mark.parametrize("index", ["close", None, 1.5, -1.5, (0, 1)])
def test_what_is_no_index_is_a_type_error(index: Any) -> None:
    with pytest.raises((TypeError, LookAheadError)):
        line_at(4)[index]


def test_a_number_is_a_python_float() -> None:
    assert type(line_at(3)[-1]) is float
    assert type(next(iter(line_at(3)))) is float
    assert float(line_at(3)) == 102.0
    assert math.isnan(float(line_at(0)))
    assert line_at(3)[np.int64(-1)] == 102.0


@pytest.mark.parametrize(
    "read",
    [
        lambda line: line.values(),
        lambda line: line.values(2),
        lambda line: line[-2:],
        np.asarray,
    ],
)
def test_what_is_read_cannot_be_written(read: Any) -> None:
    found = read(line_at(4))
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1.0
    with pytest.raises(ValueError, match="WRITEABLE"):
        found.flags.writeable = True


def test_a_copy_is_the_reader_s_own() -> None:
    found = np.array(line_at(4), copy=True)
    found[0] = -1.0
    assert VALUES[0] == 100.0
    assert np.asarray(line_at(4), dtype=np.int64).tolist() == [100, 101, 102, 103]


def test_crossing() -> None:
    up, down = line_at(2, np.array([1.0, 3.0])), line_at(2, np.array([2.0, 2.0]))
    assert crossed_above(up, down)
    assert crossed_below(down, up)
    assert not crossed_below(up, down)
    assert crossed_above(up, 2.0)
    assert crossed_below(line_at(2, np.array([3.0, 1.0])), 2.0)
    # Touching is not crossing, leaving what was touched is.
    assert not crossed_above(line_at(2, np.array([1.0, 2.0])), 2.0)
    assert crossed_above(line_at(2, np.array([2.0, 3.0])), 2.0)
    assert not crossed_above(line_at(1, np.array([3.0])), 2.0)


def test_all_that_a_strategy_is_shown_ends_at_now() -> None:
    bars = [(float(n), n + 0.5, n - 0.5, float(n)) for n in range(10, 30)]

    def look(ctx: Context) -> list[float]:
        view = ctx["X"]
        frame = view.history()
        assert len(frame) == len(view.history(10**6)) == view.bars == len(ctx.close)
        assert len(view.history(3)) == min(3, view.bars)
        assert view.history(0).empty
        assert view.history(-2).empty
        assert frame.index[-1] == view.time
        assert frame.index[-1] < ctx.now
        assert view.time.tz is not None
        assert view.has_bar
        assert view.price == ctx.close[-1]
        numbers = [*frame["close"], *ctx.close, *view.open, *np.asarray(ctx.high), view.price]
        numbers += [ctx.twice[-1], *ctx.twice.values()]
        return numbers

    algorithm = Scripted()
    algorithm.indicators = {"twice": (lambda bars: bars.close * 1.0, 0)}
    algorithm.look = look
    engine_on(days(bars), algorithm)
    assert len(algorithm.seen) == 20
    for count, numbers in enumerate(algorithm.seen, 1):
        assert max(numbers) <= 9 + count + 0.5


def test_the_context_says_what_it_has() -> None:
    def look(ctx: Context) -> None:
        for wrong in ("clse", "sma_9"):
            with pytest.raises(AttributeError, match="its lines are open, high"):
                getattr(ctx, wrong)
            with pytest.raises(AttributeError, match="it has: open, high"):
                getattr(ctx["X"], wrong)
        with pytest.raises(Exception, match="does not watch 'Z'"):
            operator.getitem(ctx, "Z")
        assert "Z" not in ctx
        assert "X" in ctx

    algorithm = Scripted()
    algorithm.look = look
    engine_on(days([(1.0, 1.0, 1.0, 1.0)] * 2), algorithm)
    assert algorithm.calls == 2
