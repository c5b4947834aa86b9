"""A client in a process of its own that reads bars and is killed at a pause point on its way."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Mapping, Sequence
from typing import Any

import psycopg

import marketdata as md
from marketdata import pausing
from tests.stack import Stack

# One process imports everything, and those to be killed are forked from it.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.killed_reader", "marketdata.wiring", "alpaca"])


def read(settings: Mapping[str, Any], order: str, questions: Sequence[Mapping[str, Any]]) -> None:
    """Ask the questions, with pause points armed as the environment variable would."""
    pausing.arm_from(order)
    with md.connect(**settings) as client:
        for question in questions:
            client.get_bars(**question)


def killed_at(stack: Stack, point: str, *questions: Mapping[str, Any], nth: int = 1) -> None:
    """Ask `questions` in another process, which must be killed at its `nth` passing of `point`."""
    settings = {**stack.settings, "clock": repr(stack.clock)}
    child = _PROCESSES.Process(target=read, args=(settings, f"{point}=kill:{nth}", questions))
    child.start()
    child.join(60)
    code = child.exitcode
    child.kill()
    assert code == -signal.SIGKILL, f"ended with {code} and not at {point}"


def forget_the_dead(stack: Stack) -> None:
    """Let the leases of the dead run out now; they do on real time, and nobody waits here."""
    with psycopg.connect(stack.settings["database_url"], autocommit=True) as connection:
        connection.execute("UPDATE marketdata.flights SET lease_until = now() - interval '1 s'")
