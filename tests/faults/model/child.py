"""Processes that do one operation each and can be killed in the middle of it.

A process that has imported everything forks them on request, at a few milliseconds each. A line of
JSON on stdin orders one (`Order`); its exit code, or minus the number of the signal that ended it,
comes back on a line.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
import traceback
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).absolute().parents[3]
PATIENCE: Final = 60.0


class Zygote:
    """Orders such processes, one at a time.

    Parameters
    ----------
    mutation : str
        The bug that they are to have.
    """

    def __init__(self, mutation: str = "") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.model.child", mutation],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT))),
                "OPENBLAS_NUM_THREADS": "1",  # a process with threads is not to be forked
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, settings: dict[str, Any], pause: str, what: str, **arguments: Any) -> int:
        """Let a process do `what` and return how it ended: 0, its exit code, or minus a signal."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {"settings": settings, "pause": pause, "what": what, "arguments": arguments}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        watch = threading.Timer(PATIENCE, self._process.kill)
        watch.start()
        line = self._process.stdout.readline()
        watch.cancel()
        assert line, f"no process came to an end: {order}"
        return int(line)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def main(mutation: str) -> None:
    from tests.faults.model.mutations import MUTATIONS

    for name in ("alpaca.common.rest", "marketdata.backfill", "marketdata.wiring", "pandas"):
        importlib.import_module(name)
    # The one thread there is belongs to pyarrow's allocator, which knows about forks.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    with MUTATIONS[mutation]() if mutation else nullcontext():
        for line in sys.stdin:
            child = os.fork()
            if not child:
                code = 1
                try:
                    code = run(json.loads(line))
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            print(ended, flush=True)


def run(order: dict[str, Any]) -> int:
    """Do what is ordered, in this process."""
    from datetime import datetime

    from marketdata import fetching, pausing
    from marketdata.client import Client
    from marketdata.config import Settings
    from marketdata.errors import MarketDataError
    from tests.faults.model import jobs

    fetching.LEASE = jobs.LEASE  # type: ignore[misc]
    client = Client(Settings.load(**order["settings"]))
    runtime = client._lazy.get()
    pausing.arm_from(order["pause"])
    arguments = order["arguments"]
    try:
        if order["what"] == "read":
            for end in ("start", "end"):
                if end in arguments:
                    arguments[end] = datetime.fromisoformat(arguments[end])
            client.get_bars(**arguments)
        else:
            jobs.JOBS[order["what"]](runtime, **arguments)
    except MarketDataError:
        return 3
    finally:
        client.close()
    return 0


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
