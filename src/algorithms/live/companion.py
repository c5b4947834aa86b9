"""``python -m algorithms.live.companion``: the live algorithms within ``marketdata up``.

The leading daemon keeps this process running (entry point of the group ``marketdata.companions``). It
runs every algorithm that is wanted running and that nobody runs, and looks for new ones every few
seconds; where there are none that is all it does. It ends after its cycle at SIGTERM, and when the
daemon is gone: its stdin ends then.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from contextlib import ExitStack, closing

import marketdata as md
from algorithms.errors import RealMoneyError
from algorithms.live.journal import Journal
from algorithms.live.runner import LiveRunner
from algorithms.live.signals import run_until_signalled
from algorithms.venues import BrokerVenue
from algorithms.venues.alpaca_paper import AlpacaPaper

log = logging.getLogger("algorithms.live")


def main() -> int:
    """Run until a signal or the end of stdin; return the exit code."""
    from marketdata.cli.exits import exit_code
    from marketdata.cli.logs import send_daemon_logs

    settings = md.Settings.load()
    level = settings.log if settings.source_of("log") != "default" else "info"
    send_daemon_logs("auto", level)
    try:
        with ExitStack() as closing_all:
            client = closing_all.enter_context(md.Client(settings))
            database = client.database()
            journal = closing_all.enter_context(closing(Journal(database.url, database.schema)))
            venues = venues_of(settings, closing_all)
            runner = LiveRunner(client, journal, venues=venues)
            threading.Thread(target=_watch_stdin, args=(runner,), daemon=True).start()
            return run_until_signalled(runner)
    except md.MarketDataError as error:
        log.error("%s", error)
        return exit_code(error)


def venues_of(settings: md.Settings, closing_all: ExitStack) -> dict[str, BrokerVenue]:
    """Return the brokers that there are keys for."""
    try:
        venue = AlpacaPaper.configured(settings)
    except (md.ConfigurationError, RealMoneyError) as error:
        log.info("no algorithm can run at alpaca: %s", error)
        return {}
    closing_all.callback(venue.close)
    return {"alpaca": venue}


def _watch_stdin(runner: LiveRunner) -> None:
    while os.read(0, 4096):
        pass
    log.info("the daemon is gone")
    runner.stop()


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of authors that never come back must not hold the interpreter.
    os._exit(code)
