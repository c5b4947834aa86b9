"""A part of the suite behind flaky proxies, with one seed; `make test-faults` runs all of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUBSET = (
    "tests/integration/test_read_through.py",
    "tests/contracts/test_flight_log.py",
    "tests/faults/test_stack_model.py::test_any_walk_answers_as_the_market_does[1]",
)


def test_reads_survive_a_network_that_loses_what_it_carries(
    postgres_url: str, redis_url: str
) -> None:
    environment = {
        **os.environ,
        "MARKETDATA_TEST_FLAKY": "1",
        "MARKETDATA_TEST_DATABASE_URL": postgres_url,
        "MARKETDATA_TEST_REDIS_URL": redis_url,
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SUBSET]
    ran = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0, ran.stdout[-20_000:]
    (told,) = re.findall(r"^flaky proxies, seed 1: (.*)$", ran.stdout, re.M)
    done = {kind: int(count) for count, kind in re.findall(r"(\d+) (\w+)", told)}
    assert {"cut", "lose_reply", "hang_up", "refuse", "slow"} <= set(done), told
