"""Finished points in a file: one JSON line each, appended as they are done.

A line is found again by a key of everything that decides its figures: the strategy's code, its
parameters, the data, the window, the money and the costs. Whatever else is in the file, of other
strategies or other data, stays and is not looked at.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import marketdata as md
from algorithms.errors import AlgorithmError
from algorithms.sweeping.fingerprint import fingerprint_of, market_fingerprint
from algorithms.sweeping.job import Job, Outcome, Task

VERSION: Final = 1


class PointStore:
    """A file of finished points; a context manager.

    A line that a killed process left half-written is passed over. Points that failed are not
    kept: they are tried again.

    Parameters
    ----------
    path : str or Path
        Made where it does not exist; its directory must.

    Raises
    ------
    AlgorithmError
        The file cannot be written, or is none of this kind.
    """

    def __init__(self, path: str | Path, job: Job) -> None:
        self.path = Path(path)
        whole = fingerprint_of(
            VERSION, md.__version__, job.kind, dict(job.given), job.cash, job.costs, job.limits,
            job.risk_free, dict(job.measures),
        )  # fmt: skip
        known: dict[int, str] = {}
        self._spans = []
        for span in job.spans:
            bars = known.setdefault(span.until, market_fingerprint(job.market, span.until))
            self._spans.append(fingerprint_of(whole, bars, tuple(span), job.cut))
        try:
            self._found = self._read()
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            self._file = os.open(self.path, flags, 0o666)
        except OSError as error:
            raise AlgorithmError(
                f"{self.path} cannot be used: {error.strerror}",
                cure="give store= a file in a directory that exists and can be written",
            ) from error

    def figures(self, task: Task) -> dict[str, float] | None:
        """Return what was found of a task earlier; None where it was not done."""
        found = self._found.get(self._key(task))
        if found is None:
            return None
        return {name: math.nan if value is None else value for name, value in found.items()}

    def keep(self, task: Task, outcome: Outcome) -> None:
        """Append a finished point; one that failed is left out."""
        if outcome.error:
            return
        figures = {
            name: value if math.isfinite(value) else None if math.isnan(value) else str(value)
            for name, value in outcome.figures.items()
        }
        line = {"key": self._key(task), "point": dict(task.point), "figures": figures}
        # One write: the lines of two processes never mix.
        os.write(self._file, json.dumps(line, allow_nan=False).encode() + b"\n")

    def _key(self, task: Task) -> str:
        return fingerprint_of(self._spans[task.span], sorted(task.point.items()))

    def _read(self) -> dict[str, Mapping[str, Any]]:
        if not self.path.exists():
            return {}
        data = self.path.read_bytes()
        if data and not data.startswith(b"{"):
            raise AlgorithmError(
                f"{self.path} is no file of a sweep", cure="give store= another path"
            )
        found: dict[str, Mapping[str, Any]] = {}
        for line in data.split(b"\n"):
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                record = json.loads(line)
                found[record["key"]] = _figures(record["figures"])
        if data and not data.endswith(b"\n"):
            # What a killed process left begun must not swallow the next line.
            with self.path.open("ab") as file:
                file.write(b"\n")
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._file)


def _figures(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: float(value) if value is not None else None for name, value in record.items()}
