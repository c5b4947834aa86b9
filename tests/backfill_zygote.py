"""A process that forks backfills on request, so that each is a process that can be killed without
costing the second it takes to import everything.

A line of JSON settings on stdin starts one: its pid comes back on a line, and when it is over its
exit code, or minus the number of the signal that killed it.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

from marketdata.calendars import EXCHANGE, calendar_for
from marketdata.clock import SystemClock


def main() -> None:
    for name in ("alpaca.common.rest", "marketdata.backfill", "marketdata.wiring"):
        importlib.import_module(name)
    calendar_for(EXCHANGE, SystemClock().now_us())
    for line in sys.stdin:
        child = os.fork()
        if not child:
            code = 1
            try:
                code = run(json.loads(line))
            finally:
                os._exit(code)
        say(child)
        say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def run(given: dict[str, Any]) -> int:
    from marketdata.backfill import Backfill, Limits, Wanted
    from marketdata.config import Settings
    from marketdata.wiring import Runtime

    wanted = Wanted(symbols=tuple(given.pop("symbols")), start=given.pop("start"))
    runtime = Runtime(Settings.load(**given))
    report = Backfill(runtime).run(wanted, Limits(max_symbols=0))
    runtime.close()
    return 0 if report.ended == "complete" and report.complete else 3


def say(number: int) -> None:
    print(number, flush=True)


if __name__ == "__main__":
    main()
