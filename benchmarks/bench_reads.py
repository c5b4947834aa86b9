"""Reads through the whole stack: hot calls against a bare Redis GET, frames, import time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import redis

from benchmarks.timing import Row, take_turns
from marketdata.client import Client, connect
from marketdata.clock import FixedClock
from marketdata.frames import Provenance, field_matrix, multi_frame, single_frame
from marketdata.sandbox import Sandbox, simulated
from marketdata.store import PostgresStore
from marketdata.types import COLUMNS, MINUTE, Bars

_NOW = "2024-03-14T15:00:30-04:00"


@contextmanager
def client_on_sandbox(database_url: str, redis_url: str) -> Iterator[Client]:
    """Yield a client on the generated market at a fixed moment of a session."""
    with PostgresStore(database_url) as store:
        store.migrate()
    clock = FixedClock(datetime.fromisoformat(_NOW))
    with (
        Sandbox(clock=clock) as sandbox,
        connect(
            database_url=database_url,
            redis_url=redis_url,
            broker="sandbox",
            alpaca_url=sandbox.url,
            alpaca_trading_url=sandbox.url,
            clock=_NOW,
            progress="off",
        ) as client,
    ):
        yield client


def hot_read(database_url: str, redis_url: str) -> list[Row]:
    """500 bars through `get_bars` from Redis, against GET of the same block."""
    rows = []
    with client_on_sandbox(database_url, redis_url) as client:
        bare = redis.Redis.from_url(redis_url)
        bare.flushdb()
        frame = client.get_bars("AAPL", "1min", limit=500)
        (name,) = [k for k in bare.scan_iter("md:*1min*") if len(bare.get(k) or b"") > 1000]
        as_json = json.dumps(
            [[t.isoformat(), *row] for t, row in zip(frame.index, frame.to_numpy(), strict=True)]
        )
        bare.set("json", as_json)

        def from_json() -> pd.DataFrame:
            loaded = json.loads(bare.get("json") or "")
            index = pd.to_datetime([row[0] for row in loaded], utc=True)
            return pd.DataFrame([row[1:] for row in loaded], index=index, columns=list(COLUMNS))

        best = take_turns(
            {
                "ours": lambda: client.get_bars("AAPL", "1min", limit=500),
                "GET": lambda: bare.get(name),
                "JSON": from_json,
            },
            rounds=9,
            repeat=200,
        )
        size = f"500 bars, {len(bare.get(name) or b'') // 1024} KB"
        rows.append(Row("hot get_bars", size, best["ours"], "bare GET", best["GET"], 4, False))
        rows.append(Row("hot get_bars", size, best["ours"], "JSON in Redis", best["JSON"], 1, True))
        for limit in (10, 100, 500):
            best = take_turns(
                {
                    "ours": lambda n=limit: client.get_bars("AAPL", "1min", limit=n),  # type: ignore[misc]
                    "GET": lambda: bare.get(name),
                },
                repeat=100,
            )
            rows.append(
                Row(
                    "hot get_bars by limit",
                    f"{limit} bars",
                    best["ours"],
                    "bare GET",
                    best["GET"],
                    4,
                    False,
                )
            )
    return rows


def hot_reads_in_turn(database_url: str, redis_url: str) -> list[Row]:
    """The same for 300 symbols one after another: more than a process remembers."""
    with client_on_sandbox(database_url, redis_url) as client:
        symbols = [*simulated(400)]
        client.get_bars(symbols, "1min", limit=500, missing="skip")
        bare = redis.Redis.from_url(redis_url)
        names = [k for k in bare.scan_iter("md:*1min*") if len(bare.get(k) or b"") > 1000][:300]
        held = [k.decode().split("{")[1].split("}")[0] for k in names]

        def ours() -> None:
            for symbol in held:
                client.get_bars(symbol, "1min", limit=500)

        def gets() -> None:
            for name in names:
                bare.get(name)

        best = take_turns({"ours": ours, "GET": gets}, rounds=7)
    size = f"{len(names)} symbols"
    return [Row("hot get_bars in turn", size, best["ours"], "bare GETs", best["GET"], 4, False)]


def _series(symbols: int, bars: int) -> dict[str, Bars]:
    source = np.random.default_rng(7)
    stamps = np.arange(bars, dtype=np.int64) * MINUTE + 1_700_000_000_000_000 // MINUTE * MINUTE
    return {
        f"S{n:02}": Bars(stamps.copy(), source.random((len(COLUMNS), bars))) for n in range(symbols)
    }


def frame_building() -> list[Row]:
    """20 symbols x 2 years of minutes to one frame and to a close matrix."""
    rows = []
    for symbols, bars in ((20, 20_000), (20, 195_000)):
        series = _series(symbols, bars)
        frames = {s: single_frame(b, "UTC") for s, b in series.items()}
        whole = multi_frame(series, "UTC")

        def from_tuples(frames: dict[str, pd.DataFrame] = frames) -> pd.MultiIndex:
            tuples = [(s, t) for s, f in frames.items() for t in f.index]
            return pd.MultiIndex.from_tuples(tuples, names=["symbol", "timestamp"])

        size = f"{symbols} x {bars:,}"
        bar = 20 if bars > 50_000 else None  # two years; the smaller size shows the growth
        few = 1 if bars > 50_000 else 3
        best = take_turns(
            {"ours": lambda s=series: multi_frame(s, "UTC"), "from_tuples": from_tuples},  # type: ignore[misc]
            rounds=few,
        )
        rows.append(
            Row(
                "MultiIndex frame",
                size,
                best["ours"],
                "MultiIndex.from_tuples",
                best["from_tuples"],
                bar,
                True,
            )
        )
        best = take_turns(
            {
                "ours": lambda s=series: field_matrix(s, list(s), "close", "UTC"),  # type: ignore[misc]
                "unstack": lambda w=whole: w["close"].unstack(level=0),  # type: ignore[misc]
            },
            rounds=few,
        )
        rows.append(Row("close matrix", size, best["ours"], "unstack", best["unstack"], bar, True))
    return rows


def provenance_cost() -> list[Row]:
    """The usual operations on a frame with provenance, against the same frame without."""
    (bars,) = _series(1, 10_000).values()
    with_it, without = single_frame(bars, "UTC"), single_frame(bars, "UTC")
    facts: dict[str, Any] = {f"fact{n}": "x" * 30 for n in range(16)}
    with_it.attrs["marketdata"] = Provenance(facts)

    def use(frame: pd.DataFrame) -> None:
        close = frame["close"]
        close.rolling(20).mean()
        close.pct_change()
        frame[["high", "low"]].max(axis=1)
        frame.loc[frame["volume"] > 0.5].tail(100)
        frame.resample("5min").agg({"open": "first", "close": "last"})

    best = take_turns(
        {"with": lambda: use(with_it), "without": lambda: use(without)}, rounds=15, repeat=5
    )
    return [
        Row(
            "pandas operations",
            "10,000 bars",
            best["with"],
            "no provenance",
            best["without"],
            1.1,
            False,
        )
    ]


def import_time() -> list[Row]:
    """``import marketdata`` against ``import pandas``, each in a fresh process."""

    def fresh(module: str) -> float:
        code = (
            f"import time; b = time.perf_counter(); import {module}; print(time.perf_counter() - b)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        return float(done.stdout) * 1000

    best = {"marketdata": float("inf"), "pandas": float("inf")}
    for _ in range(5):
        best = {module: min(taken, fresh(module)) for module, taken in best.items()}
    return [
        Row(
            "import marketdata", "", best["marketdata"], "import pandas", best["pandas"], 1.5, False
        )
    ]


def run(database_url: str, redis_url: str) -> list[Row]:
    """Run every benchmark of this file."""
    return [
        *hot_read(database_url, redis_url),
        *hot_reads_in_turn(database_url, redis_url),
        *frame_building(),
        *provenance_cost(),
        *import_time(),
    ]
