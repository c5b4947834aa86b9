"""ArcticDB on local files, as an anchor: the same bars written and read on the same machine.

ArcticDB wants pandas below 3, so it lives in an environment of its own, ``.venv-arctic`` beside
``.venv``, made when it is first asked for; `ARCTIC_PYTHON` names another interpreter that has it.
Without it (no network, no wheel for the platform) the anchor is absent and the figure says so.

This file is two things: imported, it measures; run by ArcticDB's interpreter, it is measured, and
imports nothing of this project.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from marketdata.types import Bars

REQUIREMENTS = ("arcticdb==6.28.2", "pandas==2.3.3")
ENVIRONMENT = Path(__file__).resolve().parents[1] / ".venv-arctic"
INSTALL_SECONDS = 600
RUN_SECONDS = 300
COLUMNS = ("open", "high", "low", "close", "volume", "vwap", "trade_count")


class ArcticTimes(NamedTuple):
    """Best milliseconds of several rounds, and what lay on the disk."""

    read_ms: float
    write_ms: float
    bytes_per_bar: float


class ArcticAbsentError(Exception):
    """ArcticDB cannot be installed or run here; the text says why."""


def measure(bars: Bars, rounds: int = 7) -> ArcticTimes:
    """Return what ArcticDB takes for `bars`, as one symbol of an LMDB library on local files.

    Raises
    ------
    ArcticAbsentError
        It cannot be installed or run here.
    """
    python = interpreter()
    with tempfile.TemporaryDirectory(prefix="marketdata-arctic-") as directory:
        source = Path(directory) / "bars.npz"
        np.savez(source, timestamp=bars.timestamp, values=bars.values)
        command = [python, __file__, str(source), directory, str(rounds)]
        try:
            done = _run(command, RUN_SECONDS)
            return ArcticTimes(**json.loads(done.splitlines()[-1]))
        except (ValueError, TypeError, IndexError) as error:
            raise ArcticAbsentError(f"its answer cannot be read: {error}") from error


def interpreter() -> str:
    """Return a Python that has ArcticDB, making one if need be."""
    named = os.environ.get("ARCTIC_PYTHON")
    if named:
        return named
    python = ENVIRONMENT / "bin" / "python"
    made = ENVIRONMENT / ".made"
    wanted = "\n".join((*REQUIREMENTS, str(ENVIRONMENT)))
    if made.is_file() and made.read_text() == wanted:
        return str(python)
    print(f"  Installing {REQUIREMENTS[0]} into {ENVIRONMENT.name} (once) ...", file=sys.stderr)
    _run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], INSTALL_SECONDS)
    install = ["-m", "pip", "install", "-q", "--disable-pip-version-check", *REQUIREMENTS]
    _run([str(python), *install], INSTALL_SECONDS)
    made.write_text(wanted)
    return str(python)


def _run(command: list[str], seconds: float) -> str:
    try:
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=seconds
        ).stdout
    except subprocess.CalledProcessError as error:
        last = (error.stderr or error.stdout).strip().splitlines()[-1:] or ["no message"]
        raise ArcticAbsentError(last[0]) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ArcticAbsentError(str(error)) from error


def main(source: str, directory: str, rounds: int) -> None:
    """Write and read; runs under ArcticDB's interpreter."""
    import arcticdb  # type: ignore[import-not-found]
    import pandas as pd

    with np.load(source) as file:
        index = pd.DatetimeIndex(file["timestamp"].astype("datetime64[us]").astype("M8[ns]"))
        frame = pd.DataFrame(dict(zip(COLUMNS, file["values"], strict=True)), index=index)
    library = arcticdb.Arctic(f"lmdb://{directory}/lmdb").get_library(
        "minutes", create_if_missing=True
    )
    read_ms = write_ms = float("inf")
    for number in range(rounds):
        began = time.perf_counter()
        library.write(f"S{number}", frame)
        write_ms = min(write_ms, (time.perf_counter() - began) * 1000)
    # LMDB sizes its file ahead; what it has allocated is what the disk holds.
    stored = sum(p.stat().st_blocks * 512 for p in Path(directory, "lmdb").rglob("*.mdb"))
    for _ in range(3 * rounds):
        began = time.perf_counter()
        read = library.read("S0").data
        read_ms = min(read_ms, (time.perf_counter() - began) * 1000)
    assert len(read) == len(frame)
    per_bar = stored / (rounds * len(frame))
    print(json.dumps({"read_ms": read_ms, "write_ms": write_ms, "bytes_per_bar": per_bar}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
