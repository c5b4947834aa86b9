"""What a read of 500 bars from the cache costs, beside a bare GET of the same bytes and beside JSON.

Run: ``PYTHONPATH=src python -m benchmarks.bench_cache redis://127.0.0.1:6379/15`` (the database is
flushed).
"""

from __future__ import annotations

import json
import sys

import numpy as np
import pandas as pd
import redis

from benchmarks.timing import Row, take_turns
from marketdata.cache import RedisCache
from marketdata.codec import encode_block
from marketdata.protocols import BlockGrowth, CachedBlock
from marketdata.spans import Span
from marketdata.types import COLUMNS, MINUTE, Bars, SeriesKey, Timeframe

BARS = 500
SYMBOLS = 100
EPOCH = 1
START = 1_710_000_000_000_000


def block(seed: int = 0) -> CachedBlock:
    random = np.random.default_rng(seed)
    values = np.round(random.uniform(100, 200, (len(COLUMNS), BARS)), 4)
    bars = Bars(START + np.arange(BARS, dtype=np.int64) * MINUTE, values)
    return CachedBlock(Span(START, START + BARS * MINUTE), 1, bars)


def as_json(bars: Bars) -> str:
    columns = zip(bars.timestamp.tolist(), *bars.values.tolist(), strict=True)
    return json.dumps([dict(zip(("t", *COLUMNS), row, strict=True)) for row in columns])


def frame_of_json(text: bytes) -> pd.DataFrame:
    frame = pd.DataFrame(json.loads(text))
    frame.index = pd.DatetimeIndex(pd.to_datetime(frame.pop("t"), unit="us", utc=True))
    return frame


def frame_of_block(found: CachedBlock) -> pd.DataFrame:
    index = pd.DatetimeIndex(found.bars.timestamp.view("M8[us]"), tz="UTC")
    return pd.DataFrame(found.bars.values.copy().T, index=index, columns=list(COLUMNS), copy=False)


def run(redis_url: str) -> list[Row]:
    """Measure on the server at `redis_url`, whose database is flushed."""
    client = redis.Redis.from_url(redis_url)
    client.flushdb()
    cache = RedisCache(redis_url, EPOCH, timeout=5.0)
    keys = [SeriesKey("alpaca", "sip", f"A{n}", Timeframe.MIN_1) for n in range(SYMBOLS)]
    key = keys[0]
    blocks = {k: block(n) for n, k in enumerate(keys)}
    cache.put(blocks, dict.fromkeys(keys, 600.0))
    data = encode_block(blocks[key], key, EPOCH)
    bare_names = [f"bare:{n}" for n in range(SYMBOLS)]
    client.mset({**dict.fromkeys(bare_names, data), "json": as_json(blocks[key].bars)})

    def get_json() -> pd.DataFrame:
        answer = client.get("json")
        assert isinstance(answer, bytes)
        return frame_of_json(answer)

    one = take_turns(
        {
            "bare GET": lambda: client.get("bare:0"),
            "get": lambda: cache.get([key]),
            "get to frame": lambda: frame_of_block(cache.get([key])[key]),
            "bare SET": lambda: client.set("bare:0", data),
            "put": lambda: cache.put({key: blocks[key]}, {key: 600.0}),
        },
        rounds=21,
        repeat=50,
    )
    many = take_turns(
        {
            "JSON": get_json,
            "bare MGET": lambda: client.execute_command("MGET", *bare_names),  # type: ignore[no-untyped-call]
            "get": lambda: cache.get(keys),
        },
        rounds=21,
        repeat=5,
    )
    tails = _with_tails(cache, keys, blocks)
    assert cache.stats.misses == 0
    cache.close()
    client.close()
    bars, all_bars = f"{BARS} bars", f"{SYMBOLS} x {BARS} bars"
    return [
        Row("block from Redis", bars, one["get"], "bare GET", one["bare GET"], 1.6, False),
        Row("block to Redis", bars, one["put"], "bare SET", one["bare SET"], 2.0, False),
        Row("blocks from Redis", all_bars, many["get"], "bare MGET", many["bare MGET"], 2.5, False),
        Row("blocks with tails from Redis", all_bars, tails, "without", many["get"], 2.5, False),
        Row(
            "block from Redis to frame",
            bars,
            one["get to frame"],
            "JSON in Redis",
            many["JSON"],
            8,
            True,
        ),
    ]


def _with_tails(
    cache: RedisCache, keys: list[SeriesKey], blocks: dict[SeriesKey, CachedBlock]
) -> float:
    """Let every block grow by 16 bars, one a commit, as many as a block has grown by on average;
    return the milliseconds to read them all."""
    ttl = dict.fromkeys(keys, 600.0)
    for n in range(16):
        covered = Span(START + (BARS + n) * MINUTE, START + (BARS + n + 1) * MINUTE)
        bars = Bars(np.array([covered.start]), blocks[keys[0]].bars.values[:, n : n + 1])
        cache.raise_floor(dict.fromkeys(keys, n + 2))
        grown = cache.grow(dict.fromkeys(keys, BlockGrowth(n + 1, n + 2, covered, bars)), ttl)
        assert all(grown.values())
    assert all(len(found.bars) == BARS + 16 for found in cache.get(keys).values())
    return take_turns({"get": lambda: cache.get(keys)}, rounds=21, repeat=5)["get"]


if __name__ == "__main__":
    for row in run(sys.argv[1]):
        print(row)
