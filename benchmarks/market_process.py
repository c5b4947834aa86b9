"""A sandbox in a process of its own, with room for ten thousand symbols' sessions.

Run: ``python -m benchmarks.market_process START`` (an ISO instant, the market's fixed time); prints
its URL. Time is moved through ``POST /_sandbox/clock``.
"""

from __future__ import annotations

import sys
from datetime import datetime

from marketdata.clock import FixedClock
from marketdata.sandbox import Sandbox, generated

_ROOM = 4 << 30


def main(start: str) -> None:
    generated._CACHE_BYTES = _ROOM  # type: ignore[misc]
    clock = FixedClock(datetime.fromisoformat(start))
    with Sandbox(clock=clock) as sandbox:
        sys.stdout.write(sandbox.url + "\n")
        sys.stdout.flush()
        sys.stdin.read()  # until the parent closes the pipe or dies


if __name__ == "__main__":
    main(sys.argv[1])
