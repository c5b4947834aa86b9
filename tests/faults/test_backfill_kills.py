"""Invariant 30: killed at any point and run again, a backfill ends in the same state and asks
again for one chunk at most."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from marketdata.backfill import Backfill, BackfillPlan, Limits, Wanted
from marketdata.protocols import ReadRequest
from marketdata.spans import Span
from marketdata.store import PostgresStore
from tests.stack import Stack, runtime

ROOT = Path(__file__).resolve().parents[2]
SYMBOLS = ["AAPL", "S00011"]
"""A busy one, and one that rests for minutes at a time."""
START = "2023-12-28"
ALL = Limits(max_symbols=0)
KILLS = 20
SEED = 20240314


class Backfills:
    """Runs backfills of one stack as processes of their own."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        settings = {**stack.settings, "clock": repr(stack.clock)}
        self._order = json.dumps({**settings, "symbols": SYMBOLS, "start": START})
        self._zygote = subprocess.Popen(
            [sys.executable, "-m", "tests.backfill_zygote"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self) -> int:
        """Start one; return its pid."""
        assert self._zygote.stdin is not None
        self._zygote.stdin.write(self._order + "\n")
        self._zygote.stdin.flush()
        return self._number()

    def end(self) -> int:
        """Return the exit code of the one that runs, or minus the signal that killed it."""
        return self._number()

    def whole(self) -> int:
        self.start()
        return self.end()

    def _number(self) -> int:
        assert self._zygote.stdout is not None
        return int(self._zygote.stdout.readline())

    def close(self) -> None:
        self._zygote.kill()
        self._zygote.communicate()


@pytest.fixture
def backfills(stack: Stack) -> Iterator[Backfills]:
    found = Backfills(stack)
    yield found
    found.close()


def plan(stack: Stack) -> BackfillPlan:
    return Backfill(runtime(stack.client)).plan(Wanted(symbols=tuple(SYMBOLS), start=START), ALL)


def state(stack: Stack) -> dict[str, Any]:
    """Return coverage and every bit of every bar of every series."""
    store: PostgresStore = runtime(stack.client).store
    keys = store.series()
    found = store.read([ReadRequest(key, Span(0, stack.clock.now_us())) for key in keys])
    return {
        str(key): (held.coverage, held.sealed, bars.timestamp.tobytes(), bars.values.tobytes())
        for key, (held, bars) in found.items()
    }


def forget_everything(connection: psycopg.Connection[Any]) -> None:
    connection.execute(
        "TRUNCATE marketdata.series, marketdata.market_data_bars, marketdata.bar_chunks,"
        " marketdata.bar_corrections, marketdata.backfill_failures, marketdata.flights"
    )


def let_leases_run_out(connection: psycopg.Connection[Any]) -> None:
    """Let the ten seconds pass for which a killed process' claim lasts."""
    connection.execute("UPDATE marketdata.flights SET lease_until = now() - interval '1 s'")


def kill_after(backfills: Backfills, requests: int, pause: float) -> int:
    """Start one, and kill it `pause` seconds after so many requests; return how it ended."""
    backfills.stack.forget_calls()
    pid = backfills.start()
    deadline = time.monotonic() + 10
    while backfills.stack.calls() < requests and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(pause)
    os.kill(pid, signal.SIGKILL)  # a zombie at worst: the zygote has not waited for it yet
    return backfills.end()


def test_invariant_30_killed_anywhere_and_run_again(stack: Stack, backfills: Backfills) -> None:
    priced = plan(stack)
    one_chunk = max(chunk.calls for chunk in priced.chunks)
    assert len(priced.chunks) > 4
    assert backfills.whole() == 0
    requests, expected = stack.calls(), state(stack)
    drawn = random.Random(SEED)
    killed = 0
    with psycopg.connect(stack.settings["database_url"], autocommit=True) as connection:
        for number in range(KILLS):
            forget_everything(connection)
            at = drawn.randint(0, requests), drawn.uniform(0, 0.05)
            killed += kill_after(backfills, *at) == -signal.SIGKILL
            before = stack.calls()
            let_leases_run_out(connection)
            assert backfills.whole() == 0
            told = f"kill {number} of seed {SEED}: after {at}"
            assert state(stack) == expected, told
            assert stack.calls() - requests <= one_chunk, f"{told}: {before} requests before"
    assert killed >= KILLS // 2


def test_a_killed_backfills_claim_is_waited_for(stack: Stack, backfills: Backfills) -> None:
    """The others wait for its lease, and for no longer."""
    held = stack.sandbox.faults.add("hold", match="1Day")
    pid = backfills.start()
    assert held.wait_fired()
    os.kill(pid, signal.SIGKILL)
    assert backfills.end() == -signal.SIGKILL
    stack.sandbox.faults.clear()
    with psycopg.connect(stack.settings["database_url"], autocommit=True) as connection:
        in_flight = "SELECT count(*) FROM marketdata.flights WHERE finished_at IS NULL"
        assert connection.execute(in_flight).fetchone() == (len(SYMBOLS),)
        backfills.start()
        connection.execute("SELECT pg_sleep(1)")
        assert plan(stack).chunks, "it does not work on what somebody else may still be fetching"
        let_leases_run_out(connection)
        assert backfills.end() == 0
    assert not plan(stack).chunks
