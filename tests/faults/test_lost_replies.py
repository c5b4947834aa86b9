"""Answers lost after the request was carried out: what is tried again counts once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psycopg
import pytest

from marketdata.aggregator import Aggregator
from marketdata.cache import RedisCache
from marketdata.indicator_updates import IndicatorUpdater
from marketdata.spans import Span
from marketdata.store import PostgresStore
from marketdata.store.leases import PostgresLeases
from marketdata.store.sealing import Sealer
from marketdata.store.subscriptions import PostgresSubscriptions
from marketdata.testing import COMMIT, FlakyProxy, lab
from marketdata.types import DAY
from tests.block_examples import AAPL as BLOCK_KEY
from tests.block_examples import EPOCH, assert_same_block, grown, some_block, some_growth
from tests.cycles import of_market
from tests.sealed_examples import final_commit, midnight, session_bars, sessions
from tests.stack import Stack, runtime, same, span, tiers
from tests.store_examples import (
    AAPL,
    MSFT,
    assert_same_bars,
    commit_of,
    minutes,
    stored,
)

HOT: dict[str, Any] = {"symbols": "AAPL", "timeframe": "1min", "limit": 500}


@pytest.fixture
def way(database_url: str) -> Iterator[FlakyProxy]:
    with PostgresStore(database_url) as direct:
        direct.migrate()
    with FlakyProxy(database_url) as proxy:
        yield proxy


@pytest.fixture
def store(way: FlakyProxy) -> Iterator[PostgresStore]:
    with PostgresStore(way.url) as made:
        made.states([AAPL])  # connected
        yield made


def count(url: str, table: str = "market_data_bars") -> int:
    with psycopg.connect(url) as plain:
        row = plain.execute(f"SELECT count(*) FROM marketdata.{table}").fetchone()
    assert row is not None
    return int(row[0])


def losing(way: FlakyProxy, work: Callable[[], Any]) -> Any:
    """Do `work` while the answer to its first COMMIT is lost."""
    lost = way.script.add("lose_reply", match=COMMIT)
    found = work()
    assert lost.fired == 1, "nothing was committed"
    return found


# -------------------------------------------------------------------------------- single commits


def test_fault_23_a_commit_whose_reply_is_lost_stores_once(
    way: FlakyProxy, store: PostgresStore, database_url: str
) -> None:
    store.commit([commit_of(minutes(0, 5))])
    raised: list[Any] = []
    found = losing(way, lambda: store.commit([commit_of(minutes(5, 10))], raised.append))
    assert found == {AAPL: 2}
    assert len(raised) == 2, "Redis is told by both attempts"
    assert raised[0] == raised[1]
    assert count(database_url) == 15
    (holding,) = store.holdings()
    assert (holding.bar_count, holding.row_count) == (15, 15)
    assert store.states([AAPL])[AAPL].coverage == [minutes(0, 15)]


def test_fault_23_a_commit_that_never_arrived_is_made(
    way: FlakyProxy, store: PostgresStore, database_url: str
) -> None:
    way.script.add("cut", match=COMMIT)
    assert store.commit([commit_of(minutes(0, 5))]) == {AAPL: 1}
    assert count(database_url) == 5


def test_fault_23_chunks_and_corrections_are_stored_once(
    way: FlakyProxy, store: PostgresStore, database_url: str
) -> None:
    asked = sessions("2024-01-02", "2024-01-13")
    losing(way, lambda: store.commit([final_commit(asked, AAPL, sealed=True)]))
    bars = session_bars(asked)
    changed = bars.take(np.array([5, 700]))
    changed.values[:] *= 2.0
    late = final_commit(Span(0, 0), AAPL, bars=changed, late=DAY)
    losing(way, lambda: store.commit([late]))
    assert count(database_url, "bar_corrections") == 2
    (holding,) = store.holdings()
    assert (holding.bar_count, holding.row_count) == (len(bars), 0)
    bars.values[:, [5, 700]] *= 2.0
    assert_same_bars(stored(store, asked), bars)


def test_fault_23_sealing_and_unsealing_move_every_bar_once(
    way: FlakyProxy, store: PostgresStore, database_url: str
) -> None:
    asked = sessions("2024-01-02", "2024-02-08")
    store.commit([final_commit(asked, AAPL)])
    sealer, before = Sealer(store.database), midnight("2024-02-05")
    losing(way, lambda: list(sealer.seal(AAPL, before)))
    assert count(database_url) == len(session_bars(asked).within(Span(before, asked.end)))
    losing(way, lambda: list(sealer.unseal(AAPL, Span(midnight("2024-01-30"), before))))
    assert_same_bars(stored(store, asked), session_bars(asked))
    (holding,) = store.holdings()
    assert holding.bar_count == len(session_bars(asked))
    assert holding.row_count == count(database_url)


# ------------------------------------------------------------------- claims, leases and the like


def test_fault_23_a_claim_whose_reply_is_lost_is_ours(
    way: FlakyProxy, store: PostgresStore
) -> None:
    ticket = losing(way, lambda: store.board([AAPL, MSFT], minutes(0, 5), 10.0))
    assert (set(ticket.led), ticket.others) == ({AAPL, MSFT}, {})
    losing(way, lambda: store.renew(ticket, 10.0))
    losing(way, lambda: store.land(ticket, None))
    assert store.outcome({AAPL: ticket.id})[AAPL].error is None
    assert store.board([AAPL], minutes(0, 5), 10.0).led == [AAPL]


def test_fault_23_a_lease_whose_reply_is_lost_is_ours(way: FlakyProxy) -> None:
    ours, theirs = PostgresLeases(way.url), PostgresLeases(way.url)
    try:
        theirs.holdings()
        fence = losing(way, lambda: ours.acquire("x", token="a", holder="us", seconds=30))
        assert fence is not None
        assert theirs.acquire("x", token="b", holder="them", seconds=30) is None
        kept = losing(way, lambda: ours.renew({"x": fence}, token="a", seconds=30))
        assert kept == {"x"}
        losing(way, lambda: ours.release("x", token="a", fence=fence))
        assert theirs.acquire("x", token="b", holder="them", seconds=30) is not None
    finally:
        ours.close()
        theirs.close()


def test_fault_23_a_request_whose_reply_is_lost_is_paid_for(
    way: FlakyProxy, store: PostgresStore
) -> None:
    """At most once too often: never is more sent than the budget allows."""
    assert losing(way, lambda: store.take("key", 3)) == 0
    granted = sum(store.take("key", 3) == 0 for _ in range(5))
    assert granted in (1, 2)


def test_fault_23_subscriptions_are_made_once(way: FlakyProxy, store: PostgresStore) -> None:
    log = PostgresSubscriptions(store.database)
    for _ in range(2):
        losing(way, lambda: log.put("owner", "holder", "1min", ["AAPL", "MSFT"], 5, 60.0))
    assert [held.symbol for held in log.held()] == ["AAPL", "MSFT"]
    losing(way, lambda: log.release(["owner"], ["holder"]))
    assert log.held() == []


# -------------------------------------------------------------------------------- the whole stack


@pytest.mark.parametrize("nth", range(1, 8))
def test_fault_23_whichever_commit_of_a_read_loses_its_reply(stack: Stack, nth: int) -> None:
    with lab(stack.settings) as faults:
        with stack.connect(**faults.settings) as client:
            client.get_bars("MSFT", "1day", limit=1)
            stack.forget_calls()
            assert faults.postgresql is not None
            lost = faults.postgresql.script.add("lose_reply", match=COMMIT, nth=nth)
            found = client.get_bars(**HOT)
            assert lost.fired == 1
        assert stack.calls() == 1
    store = runtime(stack.client).store
    (held,) = store.holdings(["AAPL"])
    assert held.bar_count == held.row_count
    same(stack.client.get_bars(**HOT), found)


def test_fault_23_whichever_request_of_a_cycle_loses_its_reply(stack: Stack) -> None:
    """Minute after minute, with another one lost each time, in PostgreSQL and in Redis."""
    symbols = ["AAPL", "MSFT"]
    with lab(stack.settings) as faults, stack.connect(**faults.settings) as client:
        assert faults.postgresql is not None
        assert faults.redis is not None
        running = runtime(client)
        aggregator = Aggregator(
            running,
            threading.Event(),
            wanted=lambda: [(s, "1min") for s in symbols],
            indicators=IndicatorUpdater(running),
        )
        aggregator.cycle()
        fired = []
        for number in range(1, 13):
            stack.clock.advance(minutes=1)
            lost = [
                faults.postgresql.script.add("lose_reply", nth=4 * number),
                faults.redis.script.add("lose_reply", nth=number % 6 + 1),
            ]
            report = aggregator.cycle()
            assert not report.failed, report
            fired += [each.fired for each in lost]
            faults.calm()
        assert sum(fired) >= 12
        asked = span("2024-03-14T10:00-04:00", "2024-03-14T15:12-04:00")
        for symbol in symbols:
            expected = of_market(stack.sandbox.source, symbol, asked)
            key = running.store.series([symbol])
            frame = client.get_bars(symbol, "1min", start="2024-03-14T10:00-04:00")
            assert frame["close"].tolist() == expected.values[3].tolist()
            assert len(key) == 1
    assert count(stack.settings["database_url"], "flights WHERE finished_at IS NULL") == 0


# ------------------------------------------------------------------------------------------ Redis


@pytest.fixture
def redis_way(redis_db: str) -> Iterator[FlakyProxy]:
    with FlakyProxy(redis_db) as proxy:
        yield proxy


@pytest.fixture
def cache(redis_way: FlakyProxy) -> Iterator[RedisCache]:
    made = RedisCache(redis_way.url, EPOCH, timeout=2.0)
    made.get([BLOCK_KEY])
    yield made
    made.close()


def test_fault_23_a_put_whose_reply_is_lost_is_there(
    redis_way: FlakyProxy, cache: RedisCache
) -> None:
    block = some_block()
    lost = redis_way.script.add("lose_reply", match=b"EVAL")
    assert cache.put({BLOCK_KEY: block}, {BLOCK_KEY: 60.0}) == 1
    assert lost.fired == 1
    assert_same_block(cache.get([BLOCK_KEY])[BLOCK_KEY], block)


def test_fault_23_a_growth_whose_reply_is_lost_is_there_once(
    redis_way: FlakyProxy, cache: RedisCache
) -> None:
    """The second try finds a block that has grown already: it is right, or left out."""
    block, growth = some_block(), some_growth(some_block())
    cache.put({BLOCK_KEY: block}, {BLOCK_KEY: 60.0})
    lost = redis_way.script.add("lose_reply", match=b"EVAL")
    cache.grow({BLOCK_KEY: growth}, {BLOCK_KEY: 60.0})
    assert lost.fired == 1
    found = cache.get([BLOCK_KEY]).get(BLOCK_KEY)
    assert found is not None
    assert_same_block(found, grown(block, growth))


def test_fault_23_a_floor_whose_reply_is_lost_is_raised(
    redis_way: FlakyProxy, cache: RedisCache
) -> None:
    block = some_block()
    cache.put({BLOCK_KEY: block}, {BLOCK_KEY: 60.0})
    lost = redis_way.script.add("lose_reply", nth=1)
    cache.raise_floor({BLOCK_KEY: block.revision + 1})
    assert lost.fired == 1
    assert cache.get([BLOCK_KEY]) == {}
    assert cache.put({BLOCK_KEY: block}, {BLOCK_KEY: 60.0}) == 0, "the old one stays out"


def test_after_lost_replies_redis_still_serves(stack: Stack) -> None:
    """One lost answer costs a second try, not the cache."""
    with lab(stack.settings) as faults, stack.connect(**faults.settings) as client:
        first = client.get_bars(**HOT)
        assert faults.redis is not None
        for nth in range(1, 6):
            faults.redis.script.add("lose_reply", nth=nth)
            same(client.get_bars(**HOT), first)
            assert tiers(client.get_bars(**HOT)) == "redis:1"
            faults.calm()
