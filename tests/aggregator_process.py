"""One cycle of the aggregator in a process of its own, to be killed at a pause point.

Run: ``python -m tests.aggregator_process SETTINGS SYMBOL...`` with the settings as JSON.
"""

from __future__ import annotations

import json
import sys
import threading
from datetime import datetime

from marketdata.aggregator import Aggregator
from marketdata.clock import FixedClock
from marketdata.config import Settings
from marketdata.indicator_updates import IndicatorUpdater
from marketdata.wiring import Runtime


def main(settings: str, *symbols: str) -> None:
    chosen = Settings.load(**json.loads(settings))
    clock = FixedClock(datetime.fromisoformat(chosen.clock))
    runtime = Runtime(chosen, clock)
    aggregator = Aggregator(
        runtime,
        threading.Event(),
        wanted=lambda: [(symbol, "1min") for symbol in symbols],
        indicators=IndicatorUpdater(runtime),
    )
    report = aggregator.cycle()
    print(json.dumps(report.summary()))
    runtime.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
