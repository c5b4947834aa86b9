"""The request budget kept in PostgreSQL, as brokers of several processes spend it."""

from __future__ import annotations

import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from marketdata.brokers.alpaca import AlpacaBroker
from marketdata.clock import Deadline, FixedClock
from marketdata.errors import RateLimitError
from marketdata.store import PostgresStore
from tests.alpaca_on_sandbox import NOW, Walked, between, request_for, sandbox_at, walked

BARS = "/v2/stocks/bars"
HOUR = between(datetime(2024, 3, 8, 15, tzinfo=UTC), datetime(2024, 3, 8, 16, tzinfo=UTC))
ROOT = Path(__file__).resolve().parents[2]
LIMIT = 40

_PROCESS = """
import sys
from tests.faults.test_alpaca_budget import outcomes_of_30_callers
print(*outcomes_of_30_callers(sys.argv[1], sys.argv[2]), sep="\\n")
"""


def broker_with_budget(url: str, store: PostgresStore) -> AlpacaBroker:
    return AlpacaBroker(key_id="key", secret_key="secret", data_url=url, provider="sandbox",
                        clock=FixedClock(NOW), budget=store, rate_limit=LIMIT)  # fmt: skip


def outcomes_of_30_callers(url: str, database_url: str) -> list[str]:
    """Run in a process of its own: 30 threads with one request each."""
    store = PostgresStore(database_url)
    broker = broker_with_budget(url, store)
    outcomes: list[str] = []

    def one(symbol: str) -> None:
        try:
            walked(broker, request_for(symbol, span=HOUR), seconds=5)
            outcomes.append("done")
        except Exception as error:
            outcomes.append(type(error).__name__)

    threads = [threading.Thread(target=one, args=(f"S{n:04d}",)) for n in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.close()
    return outcomes


def test_invariant_21_two_processes_together_stay_below_the_limit(database_url: str) -> None:
    store = PostgresStore(database_url)
    store.migrate()
    store.close()
    with sandbox_at(rate_limit=LIMIT) as sandbox:
        command = [sys.executable, "-c", _PROCESS, sandbox.url, database_url]
        paths = {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
        running = [
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=paths, cwd=ROOT)
            for _ in range(2)
        ]
        outcomes = [line for p in running for line in p.communicate(timeout=60)[0].split()]
        assert outcomes.count("done") == LIMIT
        assert outcomes.count("RateLimitError") == 60 - LIMIT
        sent = sandbox.requests.matching(BARS)
        assert len(sent) == LIMIT
        assert {r.status for r in sent} == {200}


def test_invariant_22_one_brokers_429_pauses_the_other(database_url: str) -> None:
    store = PostgresStore(database_url)
    store.migrate()
    with sandbox_at() as sandbox:
        refusal = sandbox.faults.add("rate_limit", match=BARS, seconds=1.0)
        first = broker_with_budget(sandbox.url, store)
        second = broker_with_budget(sandbox.url, store)
        with pytest.raises(RateLimitError):
            walked(first, request_for("AAPL", span=HOUR), seconds=0.3)
        found = Walked()
        found.follow(second.pages(request_for("AAPL", span=HOUR), Deadline(30)))
        assert found.proven("AAPL") == [HOUR]
        sent = sandbox.requests.matching(BARS)
        assert len(sent) == 2
        assert sent[1].time >= refusal.blocked_until
    store.close()
