"""Callers in processes of their own, for tests of what several processes do at once.

A `Crew` is a few processes that live as long as a test module; each makes a fresh client for every
task, lets many threads ask the same question through it, and reports what each thread got. Before
the answers it reports that its callers have *gathered*: one leads the process' flight, all others
wait for it. So a test can hold the broker's answer back until everybody truly waits.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pandas as pd

from marketdata import fetching
from marketdata.client import Client, connect
from marketdata.errors import MarketDataError
from marketdata.wiring import Runtime
from tests.stack import Stack

SPAWN = multiprocessing.get_context("spawn")


def digest(frame: pd.DataFrame) -> str:
    """Return a fingerprint of index and values, bit for bit."""
    values = np.ascontiguousarray(frame.to_numpy(np.float64))
    found = hashlib.sha256(values.tobytes())
    found.update(repr(list(frame.columns)).encode())
    for level in range(frame.index.nlevels):
        found.update(pd.util.hash_array(frame.index.get_level_values(level).to_numpy()).tobytes())
    return found.hexdigest()


@dataclass(frozen=True)
class Outcome:
    """What one thread got."""

    digest: str = ""
    rows: int = 0
    tiers: str = ""
    pages: int = 0
    error: str = ""
    words: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def ask(client: Client, question: Mapping[str, Any]) -> Outcome:
    """Ask one `get_bars` question; an error of ours is an outcome, any other is not caught."""
    started = time.monotonic()
    try:
        frame = client.get_bars(**question)
    except MarketDataError as error:
        return Outcome(
            error=type(error).__name__,
            words=str(error),
            facts=dict(error.facts),
            seconds=time.monotonic() - started,
        )
    told = frame.attrs["marketdata"]
    return Outcome(
        digest(frame), len(frame), told["tiers"], told["broker_pages"],
        seconds=time.monotonic() - started,
    )  # fmt: skip


def ask_together(client: Client, questions: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    """Ask every question on a thread of its own, all at once."""
    found: list[Outcome | BaseException] = [Outcome(error="never answered")] * len(questions)

    def one(at: int) -> None:
        try:
            found[at] = ask(client, questions[at])
        except BaseException as error:
            found[at] = error

    threads = [threading.Thread(target=one, args=(at,)) for at in range(len(questions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for each in found:
        if isinstance(each, BaseException):
            raise each
    return [each for each in found if isinstance(each, Outcome)]


class Gathering:
    """Counts the callers of one client that wait for somebody else's flight, or lead one."""

    def __init__(self, running: Runtime) -> None:
        self._lock = threading.Lock()
        self._waiting = self._boarded = 0
        fetcher: Any = running.fetcher
        self._wait, self._board = fetcher._local.wait, fetcher._flights.board
        fetcher._local.wait, fetcher._flights.board = self.wait, self.board

    def wait(self, *arguments: Any) -> Any:
        with self._lock:
            self._waiting += 1
        return self._wait(*arguments)

    def board(self, *arguments: Any) -> Any:
        ticket = self._board(*arguments)
        with self._lock:
            self._boarded += 1
        return ticket

    def complete(self, callers: int) -> bool:
        """Whether all `callers` of one series are there: one boarded, all others wait."""
        return self._boarded >= 1 and self._waiting >= callers - 1


@contextmanager
def gathered_client(settings: Mapping[str, Any]) -> Iterator[tuple[Client, Gathering]]:
    with connect(**settings) as client:
        yield client, Gathering(client._lazy.get())


def long_listed(stack: Stack, count: int) -> list[str]:
    """Return symbols of the generated market that are old enough for any test, liquid and
    sparse ones."""
    names = (f"S{n:05}" for n in range(1, 10_001))
    first_day = stack.sandbox.source.first_day
    return list(islice((n for n in names if first_day(n).year < 2023), count))


def block_names(server: Any) -> list[bytes]:
    """Return the keys of all blocks in a Redis, floors left out."""
    return [name for name in server.scan_iter() if not name.endswith(b":floor")]


def until(condition: Any, seconds: float = 60.0) -> None:
    """Wait until `condition()` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.005)


def _member(pipe: Connection) -> None:
    """The life of one process of the crew."""
    while (task := pipe.recv()) is not None:
        settings, questions, lease = task
        fetching.LEASE = lease  # type: ignore[misc]
        try:
            with gathered_client(settings) as (client, gathering):
                answers = _answer(pipe, client, gathering, questions)
            pipe.send(answers)
        except BaseException as error:
            pipe.send(repr(error))


def _answer(
    pipe: Connection, client: Client, gathering: Gathering, questions: list[dict[str, Any]]
) -> list[Outcome]:
    """Ask all at once; say "gathered" when one leads and all others wait, and return the answers."""
    done = threading.Event()

    def report() -> None:
        until(lambda: gathering.complete(len(questions)) or done.is_set())
        pipe.send("gathered" if not done.is_set() else "over")

    watcher = threading.Thread(target=report)
    watcher.start()
    try:
        return ask_together(client, questions)
    finally:
        done.set()
        watcher.join()


class Member:
    """One process of the crew, seen from the test."""

    def __init__(self) -> None:
        self._pipe, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=_member, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def start(
        self,
        settings: Mapping[str, Any],
        questions: Sequence[Mapping[str, Any]],
        lease: float = 30.0,
    ) -> None:
        """Let the member ask `questions` at once, each on its own thread."""
        self._pipe.send((dict(settings), [dict(q) for q in questions], lease))

    def gathered(self) -> None:
        """Wait until one of its callers leads the flight and all others wait."""
        assert self._receive() == "gathered", "a caller had its answer before all had asked"

    def answers(self) -> list[Outcome]:
        """Return what each caller got."""
        found = self._receive()
        if found in ("gathered", "over"):
            found = self._receive()
        assert isinstance(found, list), found
        return found

    def _receive(self) -> Any:
        assert self._pipe.poll(90), "the process does not answer"
        return self._pipe.recv()

    def kill(self) -> None:
        self.process.kill()
        self.process.join(10)

    def close(self) -> None:
        if self.process.is_alive():
            self._pipe.send(None)
            self.process.join(10)
        if self.process.is_alive():
            self.kill()
        self._pipe.close()


@contextmanager
def crew(size: int) -> Iterator[list[Member]]:
    members = [Member() for _ in range(size)]
    try:
        yield members
    finally:
        for member in members:
            member.close()
