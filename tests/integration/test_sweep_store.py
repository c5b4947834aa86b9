"""A sweep's finished points in a file: found again, never mistaken, whoever ends the sweep."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from algorithms import AlgorithmError, Percent, sweep
from algorithms.sweep_result import SweepResult
from tests.sweep_examples import Cross, Fragile, market

DATA = market()
GRID: Any = {"quick": range(2, 8), "steady": [10, 20, 30]}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def serial() -> SweepResult:
    return sweep(Cross, GRID, DATA, workers=1)


def _same(found: SweepResult, expected: SweepResult) -> None:
    pd.testing.assert_frame_equal(found.frame, expected.frame, check_exact=True)


def test_a_store_saves_all_that_was_done(tmp_path: Path, serial: SweepResult) -> None:
    store = tmp_path / "points.jsonl"
    part = sweep(Cross, {**GRID, "quick": [2, 3]}, DATA, workers=1, store=store)
    assert part.resumed == 0
    assert len(store.read_text().splitlines()) == 6
    whole = sweep(Cross, GRID, DATA, workers=2, store=store)
    assert whole.resumed == 6
    _same(whole, serial)
    again = sweep(Cross, GRID, DATA, workers=2, store=store)
    assert again.resumed == again.tried == 18
    _same(again, serial)


@pytest.mark.parametrize(
    "changed",
    [
        {"data": market(2, 239)},
        {"data": {"S0": DATA["S1"], "S1": DATA["S0"]}},
        {"cash": 50_000.0},
        {"fees": Percent(0.001)},
        {"leverage": 2.0},
        {"start": "2022-03-01"},
        {"algorithm": Fragile},
        {"algorithm": Cross(share=0.2)},
        {"risk_free": 0.02},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_store_never_takes_one_sweep_for_another(tmp_path: Path, changed: dict[str, Any]) -> None:
    store = tmp_path / "points.jsonl"
    given: dict[str, Any] = {"algorithm": Cross, "data": DATA}
    grid = {"quick": [2, 3], "steady": [20]}
    sweep(**given, grid=grid, workers=1, store=store)
    other = sweep(**{**given, **changed}, grid=grid, workers=1, store=store)
    assert other.resumed == 0
    assert sweep(**given, grid=grid, workers=1, store=store).resumed == 2


def test_failed_points_are_tried_again(tmp_path: Path) -> None:
    store = tmp_path / "points.jsonl"
    grid = {"quick": [3, 4], "steady": [20]}
    sweep(Fragile, grid, DATA, workers=1, store=store)
    again = sweep(Fragile, grid, DATA, workers=1, store=store)
    assert again.resumed == 1
    assert len(again.failed) == 1


def test_a_line_that_was_cut_is_done_again_and_swallows_nothing(
    tmp_path: Path, serial: SweepResult
) -> None:
    store = tmp_path / "points.jsonl"
    sweep(Cross, GRID, DATA, workers=1, store=store)
    data = store.read_bytes()
    store.write_bytes(data[: len(data) - 40])
    again = sweep(Cross, GRID, DATA, workers=1, store=store)
    assert again.resumed == 17
    _same(again, serial)
    assert sweep(Cross, GRID, DATA, workers=1, store=store).resumed == 18


def test_another_file_is_not_written_into(tmp_path: Path) -> None:
    other = tmp_path / "notes.csv"
    other.write_text("a,b\n")
    with pytest.raises(AlgorithmError, match="no file of a sweep"):
        sweep(Cross, GRID, DATA, workers=1, store=other)
    assert other.read_text() == "a,b\n"
    with pytest.raises(AlgorithmError, match="cannot be used: No such file"):
        sweep(Cross, GRID, DATA, workers=1, store=tmp_path / "absent" / "points")


# ----------------------------------------------------------------------------- being ended

_SLOW = """
    import sys, time
    import algorithms.sweeping.workers
    from algorithms import sweep
    from tests.sweep_examples import Cross, market

    algorithms.sweeping.workers._SHORT = 0

    class Slow(Cross):
        def on_start(self, ctx):
            time.sleep(0.06)

    try:
        found = sweep(Slow, {"quick": range(2, 12), "steady": [20, 30, 40]}, market(1),
                      workers=2, store=sys.argv[1])
    except KeyboardInterrupt as stopped:
        print(stopped.result.tried, "kept:", *stopped.__notes__)
        raise
    print(found.resumed, found.tried)
"""


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Any]:
    """A sweep of some seconds in a process of its own, when its first points are done."""
    script = tmp_path / "slow.py"
    script.write_text(textwrap.dedent(_SLOW))
    store = tmp_path / "points.jsonl"
    started = []

    def start() -> tuple[subprocess.Popen[str], Path]:
        process = subprocess.Popen(
            [sys.executable, str(script), str(store)], env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        return process, store

    yield start
    for process in started:
        process.kill()
        process.communicate()


def _some_done(process: subprocess.Popen[str], store: Path, count: int) -> None:
    until = time.monotonic() + 40
    while time.monotonic() < until and process.poll() is None:
        if store.exists() and store.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.01)
    raise AssertionError(f"{store} has not {count} lines")


def _all_gone(family: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(family, timeout=5)
    return not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def test_a_sweep_that_was_killed_goes_on(slow: Any) -> None:
    process, store = slow()
    _some_done(process, store, 4)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) == 3  # the foreman and two workers
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert _all_gone(family)
    kept = [json.loads(line)["point"] for line in store.read_text().splitlines()]
    assert 4 <= len(kept) < 30
    again, _ = slow()
    told, errors = again.communicate(timeout=60)
    assert told.split() == [str(len(kept)), "30"], errors
    assert len(store.read_text().splitlines()) == 30


def test_ctrl_c_stops_at_once_keeps_what_is_done_and_leaves_no_process(slow: Any) -> None:
    process, store = slow()
    _some_done(process, store, 2)
    family = psutil.Process(process.pid).children(recursive=True)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    told, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 2.5
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    done = store.read_bytes().count(b"\n")
    assert told.startswith(f"{done} kept: {done} of 30 points were done")
    assert _all_gone(family)
