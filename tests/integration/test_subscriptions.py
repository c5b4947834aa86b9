"""Subscriptions: counted by owner, leased, mirrored in Redis, and bulk all the way."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import psycopg
import pytest
import redis

import marketdata as md
from marketdata.errors import UnknownSymbolError
from marketdata.renewing import LeaseKeeper
from marketdata.store.subscriptions import Change
from marketdata.subscriptions import SubscriptionManager, default_owner
from marketdata.types import Timeframe
from tests.stack import Stack, runtime
from tests.store_examples import overtaken

MINUTE = Timeframe.MIN_1


@pytest.fixture
def manager(stack: Stack) -> SubscriptionManager:
    return runtime(stack.client).subscriptions


@pytest.fixture
def strangers(stack: Stack) -> Iterator[Callable[..., md.Client]]:
    """A maker of further clients, as other programs have."""
    made: list[md.Client] = []

    def make(**settings: object) -> md.Client:
        made.append(stack.connect(**settings))
        return made[-1]

    yield make
    for client in made:
        client.close()


def wanted(manager: SubscriptionManager) -> set[str]:
    return {f"{s.symbol} {s.timeframe}" for s in manager.wanted()}


def rows(stack: Stack, statement: str, *values: object) -> list[tuple[object, ...]]:
    with psycopg.connect(stack.settings["database_url"], autocommit=True) as connection:
        connection.execute("SET search_path = marketdata")
        found = connection.execute(statement, values)
        return list(found.fetchall()) if found.description else []


# ------------------------------------------------------------------------------------- calls


def test_subscribe_says_what_it_did_and_is_idempotent(
    stack: Stack, manager: SubscriptionManager
) -> None:
    made = stack.client.subscribe(["msft", "BRK/B", "AAPL", "aapl"], "1m", owner="mine", priority=7)
    assert (made.owner, made.timeframe, made.priority) == ("mine", "1min", 7)
    assert made.symbols == ("MSFT", "BRK.B", "AAPL")
    assert made.lease == 900
    again = stack.client.subscribe(["MSFT", "BRK.B", "AAPL"], "1min", owner="mine", priority=7)
    assert again == made
    assert [s.symbol for s in manager.wanted()] == ["AAPL", "BRK.B", "MSFT"]
    assert {s.priority for s in manager.wanted()} == {7}
    (left,) = {round(h.seconds_left or 0) for h in manager.held("mine")}
    assert 890 <= left <= 900


def test_the_default_owner_names_user_host_and_program(stack: Stack) -> None:
    made = stack.client.subscribe("AAPL")
    assert made.owner == default_owner()
    assert "@" in made.owner
    assert made.owner.rpartition("/")[2] in ("pytest", "__main__.py", "pytest.py")
    assert stack.client.unsubscribe("AAPL") == 1


def test_owners_do_not_touch_each_other(
    stack: Stack, manager: SubscriptionManager, strangers: Callable[..., md.Client]
) -> None:
    other = strangers()
    stack.client.subscribe(["AAPL", "MSFT"], owner="one")
    other.subscribe(["AAPL", "KO"], owner="two", priority=5)
    assert [(s.symbol, s.priority) for s in manager.wanted()] == [
        ("AAPL", 5), ("KO", 5), ("MSFT", 0)
    ]  # fmt: skip
    assert stack.client.unsubscribe(["AAPL", "MSFT", "KO"], owner="one") == 2
    assert wanted(manager) == {"AAPL 1min", "KO 1min"}
    assert stack.client.unsubscribe(owner="one") == 0
    assert stack.client.unsubscribe(owner="nobody") == 0
    other.close()
    assert wanted(manager) == set()


def test_the_last_lease_gone_keeps_the_bars(stack: Stack, manager: SubscriptionManager) -> None:
    stack.client.subscribe("AAPL", owner="one")
    stack.client.subscribe("AAPL", owner="two")
    bars = stack.client.get_bars("AAPL", "1min", limit=20)
    stack.client.unsubscribe("AAPL", owner="one")
    assert wanted(manager) == {"AAPL 1min"}
    stack.client.unsubscribe("AAPL", owner="two")
    assert wanted(manager) == set()
    stack.forget_calls()
    assert stack.client.get_bars("AAPL", "1min", limit=20).equals(bars)
    assert stack.calls() == 0


def test_timeframes_are_apart_and_none_means_all(
    stack: Stack, manager: SubscriptionManager
) -> None:
    for timeframe in ("1min", "1hour", "1day"):
        stack.client.subscribe(["AAPL", "KO"], timeframe, owner="one")
    assert stack.client.unsubscribe("KO", "1hour", owner="one") == 1
    assert stack.client.unsubscribe("AAPL", owner="one") == 3
    assert wanted(manager) == {"KO 1min", "KO 1day"}
    assert stack.client.unsubscribe(None, "1d", owner="one") == 1
    assert wanted(manager) == {"KO 1min"}


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        ({"symbols": ["AAPL", "A!", "MSFT", "^GSPC"]}, md.InvalidSymbolError, "'A!', '.GSPC'"),
        ({"symbols": "AAPL MSFT"}, md.InvalidSymbolError, "pass a list"),
        ({"symbols": []}, md.InvalidSymbolError, "no symbols"),
        ({"symbols": "AAPL", "timeframe": "1M"}, md.InvalidTimeframeError, "1month"),
        ({"symbols": "AAPL", "owner": " "}, md.RequestError, "owner"),
        ({"symbols": "AAPL", "owner": "a\nb"}, md.RequestError, "owner"),
        ({"symbols": "AAPL", "owner": 7}, md.RequestError, "owner"),
        ({"symbols": "AAPL", "priority": 101}, md.RequestError, "-100 to 100"),
        ({"symbols": "AAPL", "priority": True}, md.RequestError, "priority"),
        ({"symbols": ["AAPL", "APPL", "MSFF"]}, md.UnknownSymbolError, "APPL .*MSFF .*MSFT"),
    ],
)
def test_what_cannot_be_subscribed_is_named_and_nothing_is(
    stack: Stack,
    manager: SubscriptionManager,
    call: dict[str, object],
    error: type[md.MarketDataError],
    said: str,
) -> None:
    with pytest.raises(error, match=said):
        stack.client.subscribe(**call)  # type: ignore[arg-type]
    assert manager.wanted() == []


def test_without_a_broker_nothing_is_refused(
    manager: SubscriptionManager, strangers: Callable[..., md.Client]
) -> None:
    strangers(broker="none").subscribe("QZZQ")
    assert wanted(manager) == {"QZZQ 1min"}


# ------------------------------------------------------------------------------ one owner, many clients


def test_closing_a_client_ends_its_own_leases_and_no_others_of_its_owner(
    stack: Stack, manager: SubscriptionManager, strangers: Callable[..., md.Client]
) -> None:
    worker = strangers()
    worker.subscribe(["AAPL", "KO"], owner="shared")
    stack.client.subscribe(["AAPL", "MSFT"], owner="shared")
    worker.close()
    assert wanted(manager) == {"AAPL 1min", "MSFT 1min"}
    worker.subscribe("KO", owner="shared")  # a closed client may be used again
    assert wanted(manager) == {"AAPL 1min", "MSFT 1min", "KO 1min"}


def test_an_unsubscribe_reaches_the_owners_other_clients(
    stack: Stack, manager: SubscriptionManager, strangers: Callable[..., md.Client]
) -> None:
    worker = strangers()
    worker.subscribe(["AAPL", "KO"], owner="shared")
    assert stack.client.unsubscribe("KO", owner="shared") == 1
    assert runtime(worker).leases.renew() == 1, "a renewal does not bring back what was ended"
    assert wanted(manager) == {"AAPL 1min"}
    assert runtime(worker).leases.renew() == 1
    worker.subscribe("KO", owner="shared")
    assert wanted(manager) == {"AAPL 1min", "KO 1min"}
    assert runtime(worker).leases.renew() == 2


@pytest.mark.parametrize("pinned", [False, True])
def test_what_is_being_renewed_is_unsubscribed_all_the_same(
    stack: Stack, manager: SubscriptionManager, pinned: bool
) -> None:
    if pinned:
        manager.pin("one", ["AAPL", "KO"], Timeframe.MIN_1)
    else:
        stack.client.subscribe(["AAPL", "KO"], owner="one")
    renewal = "UPDATE symbol_subscriptions SET renewed_at = clock_timestamp()"
    url = stack.settings["database_url"]
    ended = overtaken(url, renewal, lambda: manager.unsubscribe("one"))
    assert ended == [("AAPL", "1min"), ("KO", "1min")]
    assert wanted(manager) == set()


def test_what_is_being_renewed_is_released_all_the_same(
    stack: Stack, manager: SubscriptionManager
) -> None:
    stack.client.subscribe(["AAPL", "KO"], owner="one")
    renewal = "UPDATE symbol_subscriptions SET renewed_at = clock_timestamp()"
    overtaken(stack.settings["database_url"], renewal, runtime(stack.client).leases.close)
    assert wanted(manager) == set()


def test_renewals_extend_and_revive(stack: Stack, manager: SubscriptionManager) -> None:
    stack.client.subscribe(["AAPL", "KO"], owner="one", priority=3)
    keeper = runtime(stack.client).leases
    rows(stack, "UPDATE symbol_subscriptions SET lease_until = now() + interval '3 s'")
    assert keeper.renew() == 2
    assert all((h.seconds_left or 0) > 800 for h in manager.held())
    # Away for so long that the lease ran out and was deleted: the process lives, so it is remade.
    rows(stack, "UPDATE symbol_subscriptions SET lease_until = now() - interval '1 s'")
    assert manager.reconcile().summary() == {"wanted": 0, "expired": 2, "owners_expired": 1}
    assert rows(stack, "SELECT * FROM symbol_subscriptions") == []
    assert keeper.renew() == 2
    manager.reconcile()
    assert [(s.symbol, s.priority) for s in manager.wanted()] == [("AAPL", 3), ("KO", 3)]


def test_a_thread_renews_while_the_process_lives(
    stack: Stack, manager: SubscriptionManager
) -> None:
    renewed = threading.Event()
    original = manager.renew

    def renew(*arguments: object) -> object:
        found = original(*arguments)  # type: ignore[arg-type]
        renewed.set()
        return found

    manager.renew = renew  # type: ignore[method-assign, assignment]
    keeper = LeaseKeeper(manager, lease=0.6)
    keeper.hold("one", ["AAPL"], MINUTE)
    assert renewed.wait(5), "nobody renewed it"
    assert wanted(manager) == {"AAPL 1min"}
    keeper.close()
    assert manager.held() == []
    keeper.close()


def test_a_forked_child_renews_and_ends_nothing_of_its_parents(
    stack: Stack, manager: SubscriptionManager
) -> None:
    stack.client.subscribe("AAPL", owner="parent")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            leases = runtime(stack.client).leases
            os.write(writing, f"{leases.renew()} {leases._thread}".encode())
            stack.client.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 100) == b"0 None"
    for end in (reading, writing):
        os.close(end)
    assert wanted(manager) == {"AAPL 1min"}


# ------------------------------------------------------------------------------------- pinned


def test_a_replaced_set_is_equal_to_what_was_given(
    stack: Stack, manager: SubscriptionManager, strangers: Callable[..., md.Client]
) -> None:
    worker = strangers()
    worker.subscribe(["KO", "SPY"], owner="nightly")
    stack.client.subscribe(["KO"], owner="somebody else")
    assert manager.pin("nightly", ["AAPL", "MSFT"], MINUTE).added == ("AAPL", "MSFT")
    expected = Change(added=("NVDA",), removed=("KO", "MSFT"), kept=("AAPL", "SPY"))
    before = rows(stack, "SELECT * FROM symbol_subscriptions ORDER BY 1, 2, 3")
    new = ["AAPL", "NVDA", "SPY"]
    assert manager.replace("nightly", new, MINUTE, dry_run=True) == expected
    assert rows(stack, "SELECT * FROM symbol_subscriptions ORDER BY 1, 2, 3") == before
    assert manager.replace("nightly", new, MINUTE) == expected
    assert {h.symbol for h in manager.held("nightly") if h.pinned} == set(new)
    runtime(worker).leases.renew()
    assert {h.symbol for h in manager.held("nightly")} == set(new)
    assert "KO 1min" in wanted(manager), "somebody else wants it"
    assert manager.replace("nightly", new, MINUTE) == Change(kept=tuple(sorted(new)))


def test_pinned_ones_outlive_their_client_and_never_expire(
    stack: Stack, manager: SubscriptionManager
) -> None:
    manager.pin("nightly", ["AAPL"], MINUTE)
    stack.client.subscribe("AAPL", owner="nightly")
    stack.client.close()
    fresh = runtime(stack.client).subscriptions
    assert fresh.reconcile().expired == {}
    assert wanted(fresh) == {"AAPL 1min"}
    assert stack.client.unsubscribe("AAPL", owner="nightly") == 1
    assert rows(stack, "SELECT * FROM symbol_subscriptions WHERE pinned") == []


def test_two_replacements_at_once_end_as_one_after_the_other(
    stack: Stack, manager: SubscriptionManager
) -> None:
    sets = [["AAPL", "MSFT"], ["KO", "SPY"], ["NVDA"], ["AAPL", "KO"]]

    def replace(symbols: list[str]) -> None:
        for _ in range(5):
            manager.replace("nightly", symbols, MINUTE)

    threads = [threading.Thread(target=replace, args=(s,)) for s in sets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(h.symbol for h in manager.held("nightly")) in [sorted(s) for s in sets]


# -------------------------------------------------------------------------------------- mirror


def test_wanted_is_read_from_redis_and_from_postgres_alike(
    stack: Stack, manager: SubscriptionManager
) -> None:
    stack.client.subscribe(["AAPL", "KO"], owner="one", priority=2)
    stack.client.subscribe(["SPY"], "1day", owner="one")
    truth = manager.wanted()
    rows(stack, "DELETE FROM symbol_subscriptions")
    assert manager.wanted() == truth, "it was not read from Redis"
    stack.flush_redis()
    assert manager.wanted() == [], "rebuilt from PostgreSQL after a flush"


def test_a_change_is_seen_at_once_by_every_reader(
    manager: SubscriptionManager, strangers: Callable[..., md.Client]
) -> None:
    other = runtime(strangers()).subscriptions
    for count in range(1, 6):
        manager.pin("one", [f"S{count:05}"], MINUTE)
        assert len(manager.wanted()) == len(other.wanted()) == count
    manager.unsubscribe("one")
    assert other.wanted() == []


def test_what_was_read_before_a_change_is_not_mirrored_after_it(
    stack: Stack, manager: SubscriptionManager
) -> None:
    mirror = runtime(stack.client).mirror
    token = mirror.begin()
    manager.pin("one", ["AAPL"], MINUTE)
    mirror.put(token, [("1min", ["OLD"], [0])], None)
    assert wanted(manager) == {"AAPL 1min"}
    token = mirror.begin()
    stack.flush_redis()
    mirror.put(token, [("1min", ["OLD"], [0])], None)
    assert wanted(manager) == {"AAPL 1min"}


def test_the_mirror_ends_with_the_first_lease_in_it(
    stack: Stack, manager: SubscriptionManager
) -> None:
    stack.client.subscribe("AAPL", owner="one")
    manager.pin("two", ["KO"], MINUTE)
    manager.wanted()
    with redis.Redis.from_url(stack.settings["redis_url"]) as server:
        (name,) = server.keys("md:*{subscriptions}*:wanted")
        assert 290_000 < server.pttl(name) <= 300_000
        rows(stack, "UPDATE symbol_subscriptions SET lease_until = now() + '20 s' WHERE NOT pinned")
        manager.reconcile()
        assert 15_000 < server.pttl(name) <= 20_000
        server.set(name, b"not a mirror")
        assert wanted(manager) == {"AAPL 1min", "KO 1min"}


# -------------------------------------------------------------------------------------- rights


def as_role(stack: Stack, role: str) -> str:
    url = str(stack.settings["database_url"])
    return f"{url}{'&' if '?' in url else '?'}options=-c%20role%3D{role}"


def test_writers_subscribe_and_readers_look(
    stack: Stack, strangers: Callable[..., md.Client]
) -> None:
    writer = strangers(database_url=as_role(stack, "marketdata_writer"))
    writer.subscribe(["AAPL", "KO"], owner="one")
    writer.unsubscribe("KO", owner="one")
    manager = runtime(writer).subscriptions
    manager.replace("two", ["MSFT"], MINUTE)
    assert manager.reconcile().wanted == 2
    reader = strangers(database_url=as_role(stack, "marketdata_reader"))
    assert wanted(runtime(reader).subscriptions) == {"AAPL 1min", "MSFT 1min"}
    with pytest.raises(md.StoreReadOnlyError, match="marketdata_writer"):
        reader.subscribe("SPY")
    stack.client.get_bars("AAPL", "1min", limit=5)
    with reader.follow("AAPL", start="2024-03-14T14:59-04:00") as following:
        assert len(next(following)) == 1, "following needs no right to subscribe"


# ---------------------------------------------------------------------------------------- bulk


def test_ten_thousand_symbols_of_one_owner(manager: SubscriptionManager) -> None:
    symbols = [f"S{n:05}" for n in range(10_000)]
    assert len(manager.replace("nightly", symbols, MINUTE).added) == 10_000
    assert [s.symbol for s in manager.wanted()] == symbols
    assert [s.symbol for s in manager.wanted()] == symbols
    assert len(manager.replace("nightly", symbols[1:], MINUTE).removed) == 1


def test_a_script_that_ends_leaves_its_leases_to_run_out(
    stack: Stack, manager: SubscriptionManager
) -> None:
    script = "import marketdata as md; md.subscribe('AAPL', owner='script'); print('subscribed')"
    names = ("database_url", "redis_url", "broker", "alpaca_url", "alpaca_trading_url", "clock")
    settings = {**stack.settings, "clock": repr(stack.clock)}
    environment = {f"MARKETDATA_{name.upper()}": str(settings[name]) for name in names}
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.stdout, ran.stderr, ran.returncode) == ("subscribed\n", "", 0)
    (held,) = manager.held("script")
    assert 800 < (held.seconds_left or 0) <= 900


def test_a_list_of_symbols_that_is_not_complete_refuses_nobody(stack: Stack) -> None:
    names = [f"S{number:05}" for number in range(30)]  # they exist; the assets list lacks them
    assert len(stack.client.subscribe(names, owner="wide").symbols) == 30


def test_many_symbols_that_do_not_exist_are_all_named(stack: Stack) -> None:
    names = [f"NOPE{letter}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    with pytest.raises(UnknownSymbolError) as caught:
        stack.client.subscribe(["AAPL", *names], owner="wide")
    assert caught.value.facts["symbols"] == names
