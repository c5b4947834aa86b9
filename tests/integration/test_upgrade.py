"""A database of the release that knew splits alone, made current: nothing is lost, adjusted is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

import marketdata as md
from marketdata.corporate_actions import ActionKind
from marketdata.store import PostgresStore
from marketdata.store.migrations import Migrator, load_migrations
from tests.stack import Stack, runtime

EARLIER = 10
"""Migrations of that release."""
SPLITS = """
INSERT INTO corporate_actions
    (provider, symbol, type, ex_date, new_rate, old_rate, fetched_at, corrections)
VALUES ('sandbox', 'AAPL', 'split', '2020-08-31 00:00 America/New_York', 4, 1,
        '2024-03-01 12:00Z', '[]'),
       ('sandbox', 'NVDA', 'split', '2021-07-20 00:00 America/New_York', 4, 1, '2024-03-02 12:00Z',
        '[{"new_rate": 2, "old_rate": 1, "withdrawn_at": null,
           "fetched_at": "2024-03-01T12:00:00+00:00"}]');
INSERT INTO action_checks (provider, symbol, type, asked, checked_at)
SELECT 'sandbox', s, 'split', '[2019-01-01 00:00Z, 2024-05-01 00:00Z)', '2024-03-14 18:00Z'
FROM unnest(ARRAY['AAPL', 'NVDA']) AS s;
"""


@pytest.fixture
def stack(database_url: str, make_stack: Callable[..., Stack]) -> Stack:
    with PostgresStore(database_url) as store:
        Migrator(store.database, load_migrations()[:EARLIER]).migrate()
    with psycopg.connect(database_url) as connection:
        connection.execute("SET search_path TO marketdata")
        connection.execute(SPLITS)
    return make_stack()


def test_splits_of_an_earlier_release_are_kept_and_become_the_brokers(stack: Stack) -> None:
    store = runtime(stack.client).store
    kept = store.actions("sandbox", ["AAPL", "NVDA"])
    assert [(a.kind, a.new, a.old, a.id) for a in kept["AAPL"]] == [(ActionKind.SPLIT, 4, 1, "")]
    (before,) = store.history("sandbox", ["NVDA"], 1_709_300_000_000_000)["NVDA"]
    assert before.new == 2, "what was known before its correction"
    told = stack.client.get_actions(["AAPL", "NVDA"], kinds="split", start="2019-01-01")
    assert told[["symbol", "new"]].to_numpy().tolist() == [["AAPL", 4.0], ["NVDA", 4.0]]
    assert (told["id"] != "").all(), "the same actions, by the provider's id: none of them twice"
    assert (told["doubt"] == "").all()


def test_the_first_adjusted_read_after_it_asks_for_the_other_kinds(stack: Stack) -> None:
    window: dict[str, Any] = {"start": "2020-08-27", "end": "2020-09-02"}
    with pytest.warns(md.SplitInRangeWarning, match="4:1 on 2020-08-31"):
        raw = stack.client.get_bars("AAPL", **window)["close"]
    split = stack.client.get_bars("AAPL", adjustment="split", **window)["close"]
    assert (raw / split).tolist() == [4.0, 4.0, 1.0, 1.0]
    whole = stack.client.get_bars("AAPL", adjustment="all", **window)["close"]
    assert (whole < split).all(), "dividends since"
    assert stack.calls("/v1/corporate-actions") == 1, "one answer for all kinds"
    assert "cash_dividend" in set(stack.client.get_actions("AAPL")["kind"])
