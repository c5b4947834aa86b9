"""The suite behind flaky proxies: ``MARKETDATA_TEST_FLAKY=SEED`` puts one before each server.

What they do is drawn from the seed and the test's name, so that any test fails again on its own::

    MARKETDATA_TEST_FLAKY=7 pytest tests/integration/test_sealing.py -k unseal

The rates are such that nothing is lost twice while it is tried again: that much the library
promises to survive without an error to its caller. A test marked ``exact("why")`` runs without
faults: it counts what the faults would change, or is about a fault of its own.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

import pytest

from marketdata.testing import FlakyProxy, Rates, Seeded

SEED: Final = os.environ.get("MARKETDATA_TEST_FLAKY", "")

POSTGRESQL: Final = Rates(
    refuse=0.02, delay=0.02, slow=0.02, cut=0.003, lose_reply=0.003, hang_up=0.003, seconds=0.005
)
REDIS: Final = Rates(
    refuse=0.02, delay=0.02, slow=0.02, cut=0.004, lose_reply=0.004, hang_up=0.004, seconds=0.005
)
BROKER: Final = Rates(
    refuse=0.02, delay=0.1, slow=0.1, cut=0.03, lose_reply=0.03, hang_up=0.05, seconds=0.02
)


TOTALS: Final[Counter[str]] = Counter()
"""What all proxies of the run have done."""


class Flaky:
    """The proxies of one test; without a seed all addresses stay what they are."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._closing = ExitStack()
        self.plans: dict[str, Seeded] = {}

    def postgresql(self, url: str) -> str:
        """Return the way to the database; the tests' own connections are carried faithfully."""
        return self._proxied("postgresql", url, POSTGRESQL, only=b"application_name\0marketdata")

    def redis(self, url: str) -> str:
        """Return the way to Redis; clients that speak RESP3 are the tests' own."""
        return self._proxied("redis", url, REDIS, only=b"\r\n", spare=b"HELLO")

    def broker(self, url: str) -> str:
        """Return the way to the sandbox."""
        return self._proxied("broker", url, BROKER)

    def lost(self, path: str) -> int:
        """Return how many requests for `path` reached the sandbox without an answer."""
        asked = path.encode()
        return sum(
            each.split(None, 2)[1].partition(b"?")[0] == asked
            for name, plan in self.plans.items()
            if name.startswith("broker")
            for each in plan.lost
        )

    def forget_lost(self) -> None:
        """Begin to count lost answers anew."""
        for plan in self.plans.values():
            plan.lost.clear()

    def _proxied(
        self, name: str, url: str, rates: Rates, *, only: bytes = b"", spare: bytes = b""
    ) -> str:
        if not self._seed:
            return url
        name = f"{name}{len(self.plans)}"
        plan = self.plans[name] = Seeded(f"{self._seed}/{name}", rates)
        proxy = FlakyProxy(url, plan, only=only, spare=spare)
        self._closing.enter_context(proxy)
        return proxy.url

    def close(self) -> None:
        """Close the proxies."""
        self._closing.close()
        for plan in self.plans.values():
            TOTALS.update({kind: count for kind, count in plan.met.items() if count})


def seed_of(item: pytest.Item) -> str:
    """Return the seed of one test: none where it is marked exact, or none was chosen."""
    if not SEED or item.get_closest_marker("exact"):
        return ""
    return f"{SEED}/{item.nodeid}"


@pytest.fixture
def flaky(request: pytest.FixtureRequest) -> Iterator[Flaky]:
    """The proxies of this test, if any."""
    made = Flaky(seed_of(request.node))
    request.node.stash[_MADE] = made
    yield made
    made.close()


_MADE = pytest.StashKey[Flaky]()


def describe(item: pytest.Item) -> str | None:
    """Return what the proxies of a test did, None where it had none."""
    made = item.stash.get(_MADE, None)
    if made is None or not made.plans:
        return None
    lines = [f"{name}: {plan}" for name, plan in made.plans.items()]
    return "\n".join([*lines, f"again: MARKETDATA_TEST_FLAKY={SEED} pytest '{item.nodeid}'"])
