"""A life of two series in steps, run by a process that can be killed at every write it makes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from marketdata.spans import Span
from marketdata.store import PostgresStore, chunk_table, corrections, rows, sealed, series_table
from marketdata.store.retention import Retention
from marketdata.store.sealing import Sealer
from marketdata.types import DAY, Bars, SeriesKey
from tests.sealed_examples import final_commit, midnight, session_bars, sessions, without
from tests.store_examples import AAPL, MSFT

SPAN = sessions("2024-01-02", "2024-02-08")
CHANGED = np.array([5, 700, 1500])
GONE = np.array([6, 900])
LATER = np.array([10, 2000])
FIRST_KEPT = "2024-01-10"


def changed(places: np.ndarray[Any, np.dtype[np.int64]], factor: float) -> Bars:
    bars = session_bars(SPAN).take(places)
    bars.values[:] *= factor
    return bars


def corrected(key: SeriesKey, late: int) -> Any:
    gone = session_bars(SPAN).timestamp[GONE]
    bars = changed(CHANGED, 2.0)
    return final_commit(Span(0, 0), key, bars=bars, withdrawn=gone, late=late)


def seal(store: PostgresStore, before: str) -> None:
    sealer = Sealer(store.database)
    for key in sealer.candidates(midnight(before)):
        for _ in sealer.seal(key, midnight(before)):
            pass


def unseal(store: PostgresStore) -> None:
    span = Span(midnight("2024-01-30"), midnight("2024-02-02"))
    for key in (AAPL, MSFT):
        for _ in Sealer(store.database).unseal(key, span):
            pass


def seal_again(store: PostgresStore) -> None:
    Sealer(store.database).unpin()
    seal(store, "2024-02-09")


def later(store: PostgresStore) -> None:
    bars = changed(LATER, 3.0)
    commits = [
        final_commit(Span(0, 0), k, bars=bars, late=2 * DAY, sealed=True) for k in (AAPL, MSFT)
    ]
    store.commit(commits)


STEPS: list[Callable[[PostgresStore], Any]] = [
    lambda store: store.commit([final_commit(SPAN, AAPL)]),
    lambda store: store.commit([final_commit(SPAN, MSFT, sealed=True)]),
    lambda store: seal(store, "2024-02-05"),
    lambda store: store.commit([corrected(AAPL, DAY), corrected(MSFT, DAY)]),
    lambda store: seal(store, "2024-02-06"),
    unseal,
    later,
    seal_again,
    lambda store: Retention(store.database).cut(AAPL, midnight(FIRST_KEPT)),
]


def expected(steps: int, key: SeriesKey) -> Bars:
    """What is stored of a series after so many steps."""
    bars = session_bars(SPAN)
    if steps < (1 if key == AAPL else 2):
        return Bars.empty()
    if steps >= 4:
        bars.values[:, CHANGED] *= 2.0
    if steps >= 7:
        bars.values[:, LATER] *= 3.0
    if steps >= 4:
        bars = without(bars, session_bars(SPAN).timestamp[GONE])
    if steps >= 9 and key == AAPL:
        bars = bars.take(bars.timestamp >= midnight(FIRST_KEPT))
    return bars


WRITES: tuple[tuple[Any, str], ...] = (
    (chunk_table, "store"),
    (chunk_table, "delete"),
    (rows, "write"),
    (rows, "delete_spans"),
    (rows, "delete_labels"),
    (rows, "refresh_ends"),
    (corrections, "write"),
    (corrections, "merged"),
    (corrections, "recount"),
    (sealed, "refresh_bounds"),
    (series_table, "update"),
)


def live(url: str, first: int, kill_at: int, telling: Connection) -> None:
    """Take the steps from number `first` on, telling of each that is done; die at the `kill_at`-th
    write (from 1), after it was made and before what follows; 0 lives on, telling how many there are.
    """
    writes = 0

    def wrapped(write: Callable[..., Any]) -> Callable[..., Any]:
        def made(*arguments: Any, **named: Any) -> Any:
            nonlocal writes
            result = write(*arguments, **named)
            writes += 1
            if writes == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return made

    for module, name in WRITES:
        setattr(module, name, wrapped(getattr(module, name)))
    with PostgresStore(url) as store:
        for number, step in enumerate(STEPS[first:], start=first + 1):
            step(store)
            telling.send(number)
    telling.send(writes)
