"""Algorithms live on the whole stack: sandbox, PostgreSQL, Redis, one clock that tests move."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pandas as pd
import psycopg
import pytest

from algorithms import backtest
from algorithms.costs import NoSlippage
from algorithms.live.journal import Journal
from algorithms.live.records import Desired, Life
from tests.live_algorithms import Running, Zigzag, registration
from tests.stack import Stack, make_stack, stack

__all__ = ["make_stack", "stack"]

Start = Callable[..., Running]


@pytest.fixture
def journal(stack: Stack) -> Iterator[Journal]:
    database = stack.client.database()
    with ExitStack() as closing:
        made = Journal(database.url, database.schema)
        closing.callback(made.close)
        yield made


@pytest.fixture
def start(stack: Stack, journal: Journal) -> Iterator[Start]:
    """A maker of runners on the stack, all stopped in the end."""
    made: list[Running] = []

    def begin(**more: Any) -> Running:
        made.append(Running(stack, journal, **more))
        return made[-1]

    yield begin
    for running in made:
        running.runner.stop()
        running._thread.join(20)


def orders_of(journal: Journal, name: str) -> list[tuple[Any, ...]]:
    """Return the orders of an algorithm without what differs between runs: prefix, delivery."""

    def bare(identity: str | None) -> str | None:
        return None if identity is None else identity.rsplit(".", 1)[-1]

    found = [(bare(o[0]), *o[1:8], bare(o[8]), bare(o[9]), *o[10:16]) for o in journal.orders(name)]
    return sorted(found, key=lambda row: int(str(row[0])))


def test_the_same_bars_live_and_back_tested_give_the_same_orders_and_fills(
    stack: Stack, journal: Journal, start: Start
):
    journal.register(registration(symbols=("AAPL", "MSFT")))
    running = start()
    running.started()
    began = journal.records()[0].cursor
    assert began is not None
    running.minutes(25)
    running.stop()
    record = journal.records()[0]
    result = backtest(
        Zigzag(symbols=("AAPL", "MSFT")),
        # The first bar that it was called for is the one that was forming.
        start=pd.Timestamp(began, unit="us", tz="UTC").floor("min"),
        client=stack.client,
        slippage=NoSlippage(),
        progress=False,
    )
    live = [tuple(fill[3:7]) for fill in journal.fills("zigzag")]
    tested = [
        (pd.Timestamp(f.time, unit="us", tz="UTC").to_pydatetime(), f.quantity, f.price, f.fee)
        for f in result.run.fills
    ]
    assert live == tested
    assert len(live) > 10
    assert record.equity == pytest.approx(result.run.equity[-1], abs=1e-6)
    assert record.life is Life.STOPPED
    orders = orders_of(journal, "zigzag")
    assert [o[0] for o in orders] == [o.id for o in result.run.orders]
    assert [(o[11], o[12]) for o in orders] == [(str(o.state), o.filled) for o in result.run.orders]


def test_stop_and_go_on_gives_what_going_through_gives(
    stack: Stack, journal: Journal, start: Start
):
    for name in ("through", "stopped"):
        journal.register(registration(name))
    running = start()
    running.started()
    running.minutes(6)
    journal.want("stopped", Desired.STOPPED, reason="lunch")
    running.until(lambda: journal.records(["stopped"])[0].runner is None, "it to be let go")
    assert journal.records(["stopped"])[0].life is Life.STOPPED
    running.minutes(7, "through")
    journal.want("stopped", Desired.RUNNING)
    running.caught_up("stopped")
    running.minutes(5)
    running.stop()
    assert orders_of(journal, "stopped") == orders_of(journal, "through")
    assert journal.positions("stopped") == journal.positions("through")


def test_a_thousand_algorithms_of_which_thirty_misbehave(
    stack: Stack, journal: Journal, start: Start
):
    """20 raise, 5 do not come back in time, 5 give orders without end: the other 970 have exactly
    the orders and fills that each would have alone, at each bar, and the limits hold."""
    symbols = ["AAPL", "MSFT", "NVDA", "TSLA", "SPY", "QQQ"]
    pairs = [(symbols[n % 6], symbols[(n + 1 + n % 5) % 6]) for n in range(30)]
    good = [registration(f"good{n:03}", symbols=pairs[n % 30]) for n in range(970)]
    bad = [
        *(registration(f"raises{n}", "Raises") for n in range(20)),
        *(registration(f"sleeps{n}", "Sleeps", params={"seconds": 1.5}) for n in range(3)),
        *(registration(f"spins{n}", "Spins") for n in range(2)),
        *(registration(f"leaks{n}", "Leaks") for n in range(2)),
        *(registration(f"piles{n}", "Piles") for n in range(3)),
    ]
    mixed = [each for n, each in enumerate(good) for each in (each, *bad[n : n + 1])]
    journal.register_all([*mixed])
    running = start()
    names = [each.name for each in good]
    running.started(*names)
    began = journal.records(["good000"])[0].cursor
    assert began is not None
    running.minutes(6, *names)

    def misbehaved() -> bool:
        """Whether each kind has: the good ones wait for none of them."""
        found = {record.name: record for record in journal.records()}
        given_up = ("raises0", "spins0", "leaks0")
        return (
            all(found[name].life is Life.ERROR for name in given_up)
            and found["sleeps0"].slow_calls > 0
            and found["piles0"].cursor == found["good000"].cursor
        )

    running.until(misbehaved, "all to misbehave")
    running.stop()

    alone: dict[tuple[str, ...], list[Any]] = {}
    for pair in set(pairs):
        result = backtest(
            Zigzag(symbols=pair),
            start=pd.Timestamp(began, unit="us", tz="UTC").floor("min"),
            client=stack.client,
            slippage=NoSlippage(),
            progress=False,
        )
        alone[pair] = [(f.symbol, f.quantity, f.price) for f in result.run.fills]
    records = {record.name: record for record in journal.records()}
    for each in good:
        assert records[each.name].failures == 0, each.name
        assert records[each.name].fills == len(alone[each.symbols])
    for each in good[::97]:
        fills = [(f[2], f[4], f[5]) for f in journal.fills(each.name)]
        assert fills == alone[each.symbols], each.name
        assert len(fills) > 3
    raised = records["raises0"]
    assert raised.life is Life.ERROR
    assert "ValueError: never" in str(raised.error)
    assert (raised.fills, raised.restarts) == (0, 3)
    assert journal.orders("raises0") == []
    assert records["sleeps0"].slow_calls > 0
    assert "interrupted after" in str(records["spins0"].error)
    # Whichever limit it meets first: of the orders, or, where the machine is busy, of the time.
    assert any(
        words in str(records["leaks0"].error)
        for words in ("10,000 orders were given at one moment", "interrupted after")
    )
    piled = journal.orders("piles0")
    accepted = [order for order in piled if order[11] == "open"]
    assert len(accepted) == 500
    assert max(Counter(order[6] for order in accepted).values()) == 100
    refused = Counter(order[15] for order in piled if order[11] == "rejected")
    assert set(refused) == {"max_orders_per_bar is 100", "max_open_orders is 500"}
    assert len(piled) <= 500 + 6 * 100


# ------------------------------------------------------------------------------- what is wanted


def test_kill_cancels_entries_keeps_exits_and_release_lets_it_go_on(
    stack: Stack, journal: Journal, start: Start
):
    journal.register(registration())
    running = start()
    running.started()
    running.minutes(3)
    assert journal.positions("zigzag")
    journal.want("zigzag", Desired.KILLED, reason="news")
    running.until(lambda: journal.records()[0].life is Life.KILLED)
    running.until(lambda: all(o[8] is not None for o in journal.orders("zigzag", open_only=True)))
    given = len(journal.orders("zigzag"))
    running.minutes(4)
    late = journal.orders("zigzag")[given:]
    assert {o[15] for o in late if o[11] == "rejected" and not o[8]} == {"news"}
    assert all(o[11] == "rejected" or o[2] < 0 or o[8] for o in late), "only what closes passes"
    journal.want("zigzag", Desired.RUNNING)
    running.until(lambda: journal.records()[0].life is Life.RUNNING)
    running.minutes(5)
    assert any(o[11] == "filled" and o[2] > 0 for o in journal.orders("zigzag")[given + 4 :])


def test_the_switch_of_all_flattens_and_holds_over_a_restart(
    stack: Stack, journal: Journal, start: Start
):
    journal.register_all([registration("one"), registration("two", symbols=("MSFT",))])
    running = start()
    running.started()
    running.minutes(3)
    assert journal.positions("one")
    assert journal.positions("two")
    journal.kill_all(flatten=True, reason="stop everything")
    running.until(lambda: set(running.runner.hosted.values()) == {Life.KILLED})
    running.minutes(2)
    assert journal.positions("one") == journal.positions("two") == {}
    assert journal.orders("one", open_only=True) == []
    running.stop()
    again = start()
    again.started()
    again.minutes(3)
    assert journal.positions("one") == {}
    assert set(again.runner.hosted.values()) == {Life.KILLED}


def test_a_daily_loss_ends_trading_until_the_next_session(
    stack: Stack, journal: Journal, start: Start
):
    options = {"limits": {"max_daily_loss": 0.01, "flatten": True}}
    journal.register(registration(options=options))
    running = start()
    running.started()
    running.minutes(20)
    assert journal.positions("zigzag") == {}
    reasons = [o[15] for o in journal.orders("zigzag") if o[11] == "rejected" and not o[8]]
    assert reasons
    assert all("no new positions until the next session" in reason for reason in reasons)
    filled = sum(o[11] == "filled" for o in journal.orders("zigzag"))
    stack.set_time("2024-03-15T09:30:30-04:00")
    running.minutes(6)
    assert sum(o[11] == "filled" for o in journal.orders("zigzag")) > filled


def test_what_cannot_run_is_given_up_and_its_neighbours_run(
    stack: Stack, journal: Journal, start: Start
):
    journal.register_all(
        [
            registration("good"),
            registration("nobody", symbols=("AAPL", "NOTHERE")),
            registration("no-such-parameter", params={"speed": 3}),
            registration("no-such-limit", options={"limits": {"max_fun": 1}}),
        ]
    )
    running = start()
    running.started("good")
    running.minutes(2, "good")
    errors = {r.name: r.error for r in journal.records() if r.life is Life.ERROR}
    assert set(errors) == {"nobody", "no-such-parameter", "no-such-limit"}
    assert "NOTHERE" in str(errors["nobody"])
    assert "has no parameter 'speed'" in str(errors["no-such-parameter"])
    assert "no risk limit 'max_fun'" in str(errors["no-such-limit"])


def test_one_that_was_given_up_begins_again_by_hand(stack: Stack, journal: Journal, start: Start):
    journal.register_all([registration("good"), registration("bad", "Raises")])
    running = start()
    running.started("good")
    running.minutes(1, "good")
    running.until(lambda: journal.records(["bad"])[0].life is Life.ERROR)
    restarts = journal.records(["bad"])[0].restarts
    journal.want("bad", Desired.RUNNING)
    running.until(lambda: journal.records(["bad"])[0].restarts > restarts)


def test_newcomers_join_and_a_symbol_nobody_watches_is_followed_no_longer(
    stack: Stack, journal: Journal, start: Start
):
    journal.register(registration("first"))
    running = start()
    running.started()
    running.minutes(2)
    journal.register(registration("second", symbols=("MSFT", "AAPL")))
    running.started("second")
    running.minutes(3)
    journal.want("second", Desired.STOPPED)
    running.until(lambda: journal.records(["second"])[0].life is Life.STOPPED)
    running.minutes(2, "first")
    (feed,) = running.runner._roster._feeds.values()
    assert feed.symbols == {"AAPL"}
    journal.want("second", Desired.RUNNING)
    running.caught_up("second")
    running.minutes(2)
    assert journal.records(["second"])[0].cursor == journal.records(["first"])[0].cursor


def test_one_that_was_named_and_stopped_from_elsewhere_stays_so_until_it_is_wanted(
    stack: Stack, journal: Journal, start: Start
):
    journal.register(registration())
    running = start(names=["zigzag"])
    running.started()
    journal.want("zigzag", Desired.STOPPED)
    running.until(lambda: running.runner.hosted == {})
    running.minutes(2)
    assert journal.records()[0].runner is None
    journal.want("zigzag", Desired.RUNNING)
    running.caught_up("zigzag")


# ------------------------------------------------------------------------------------- outages


def test_who_loses_an_algorithm_to_another_process_writes_nothing_more_of_it(
    stack: Stack, journal: Journal, start: Start, database_url: str
):
    journal.register_all([registration("mine"), registration("taken")])
    running = start(look_every=60.0)
    running.started()
    running.minutes(1)
    with psycopg.connect(database_url, options="-c search_path=marketdata") as admin:
        admin.execute(
            "UPDATE algorithm_states s SET epoch = s.epoch + 1 FROM algorithms a "
            "WHERE a.id = s.algorithm_id AND a.name = 'taken'"
        )
    before = journal.records(["taken"])[0]
    running.minutes(2, "mine")
    running.until(lambda: set(running.runner.hosted) == {"mine"})
    assert journal.records(["taken"])[0].cursor == before.cursor


def test_a_lease_that_ran_out_is_replaced_and_all_goes_on_from_what_is_stored(
    stack: Stack, journal: Journal, start: Start, database_url: str
):
    for name in ("through", "again"):
        journal.register(registration(name))
    running = start(names=["through"])
    other = start(names=["again"], lease_seconds=0.6)
    running.started("through")
    other.started("again")
    for _ in range(4):
        running.minutes(2, "through", "again")
        epoch = journal.records(["again"])[0].epoch
        with psycopg.connect(database_url, options="-c search_path=marketdata") as admin:
            admin.execute(
                "UPDATE algorithm_runners r SET lease_until = clock_timestamp() - interval '1 s' "
                "FROM algorithm_states s JOIN algorithms a ON a.id = s.algorithm_id "
                "WHERE r.id = s.runner_id AND a.name = 'again'"
            )
        other.until(lambda epoch=epoch: journal.records(["again"])[0].epoch > epoch)  # type: ignore[misc]
    running.minutes(3, "through", "again")
    assert orders_of(journal, "again") == orders_of(journal, "through")


def test_an_outage_of_postgresql_is_waited_out_and_caught_up_in_order(
    stack: Stack, journal: Journal, start: Start, database_url: str, postgres_url: str
):
    journal.register_all([registration("one"), registration("two", symbols=("MSFT",))])
    running = start()
    running.started()
    running.minutes(2)
    began = journal.records(["one"])[0].cursor
    with psycopg.connect(database_url) as here:
        name = here.info.dbname
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
        )
        for _ in range(5):
            stack.clock.advance(minutes=1)
            time.sleep(0.1)
        admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    running.caught_up()
    running.minutes(2)
    running.stop()
    assert began is not None
    result = backtest(
        Zigzag(),
        start="2024-03-14T15:00:00-04:00",
        client=stack.client,
        slippage=NoSlippage(),
        progress=False,
    )
    fills = [(f[2], f[4], f[5]) for f in journal.fills("one")]
    assert fills == [(f.symbol, f.quantity, f.price) for f in result.run.fills]
    assert fills
