"""Runs the model for as long as asked: ``python -m tests.faults.model --seconds 600 --seed 7``."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback

from tests.faults.model.running import run, servers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3)))
    parser.add_argument("--mutation", default="", help="seed this bug")
    parser.add_argument("--steps", type=int, default=40, help="steps of one example")
    given = parser.parse_args()
    print(f"seed {given.seed}, {given.seconds:g} s {given.mutation}", flush=True)
    with servers() as (database_url, redis_url):
        began = time.monotonic()
        result = run(
            database_url, redis_url, given.seconds, given.seed, given.mutation, given.steps
        )
        took = time.monotonic() - began
    counts = dict(sorted(result.counts.items()))
    print(f"{took:.1f} s, {counts['steps'] / took:.1f} steps/s: {counts}")
    if result.error is None:
        return 0
    print(*result.log, sep="\n")
    traceback.print_exception(result.error)
    print(
        f"replay: python -m tests.faults.model --seed {given.seed} {given.mutation and '--mutation '}{given.mutation}"
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
