"""Runs of the model: for a time, from a seed, with or without a seeded bug."""

from __future__ import annotations

import os
import secrets
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import hypothesis
import psycopg
from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis.errors import HypothesisException
from hypothesis.stateful import run_state_machine_as_test

from marketdata import embedded
from marketdata.warning_types import SplitInRangeWarning
from tests.faults.model.machine import Machine, Tally, TimeIsUp
from tests.faults.model.mutations import MUTATIONS
from tests.faults.model.world import World

EXAMPLES = 12
"""Examples of one seed."""


@dataclass
class Result:
    """What a run did, and how it ended."""

    counts: Counter[str]
    seed: int
    error: BaseException | None = None
    log: list[str] = field(default_factory=list)
    """The steps of the failing example."""


def run(
    database_url: str,
    redis_url: str,
    seconds: float,
    seed: int,
    mutation: str = "",
    steps: int = 40,
) -> Result:
    """Take random steps for so many seconds, or until something is wrong.

    Parameters
    ----------
    mutation : str
        The name of a bug to seed for the time of the run.
    steps : int
        Most steps of one example.
    """
    tally = Tally()
    tally.ends = time.monotonic() + seconds
    chosen = settings(
        max_examples=EXAMPLES,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
        verbosity=Verbosity.quiet,
    )
    error: BaseException | None = None
    with warnings.catch_warnings(), MUTATIONS[mutation]() if mutation else nullcontext():
        warnings.simplefilter("ignore", SplitInRangeWarning)
        world = World(database_url, redis_url, mutation)
        try:
            turn = 0
            while time.monotonic() < tally.ends:
                machine = hypothesis.seed(seed * 1_000_003 + turn)(_Seeded(world, tally))
                turn += 1
                try:
                    run_state_machine_as_test(machine, settings=chosen)  # type: ignore[arg-type]
                except HypothesisException:
                    if tally.error is not None:
                        raise
                    # The end of the time, or an example whose draws hung on the time it took.
                    tally.counts["unsteady examples"] += 1
        except TimeIsUp:
            pass
        except BaseException as found:
            error = found
        finally:
            world.close()
    return Result(tally.counts, seed, tally.error or error, list(tally.log))


class _Seeded:
    """Makes the machines of one run; a seed can be set on it."""

    def __init__(self, world: World, tally: Tally) -> None:
        self._world = world
        self._tally = tally

    def __call__(self) -> Machine:
        return Machine(self._world, self._tally)


@contextmanager
def servers() -> Iterator[tuple[str, str]]:
    """Give an empty database and a Redis database: of the servers that the tests use, which are
    emptied, or of embedded ones."""
    postgres = os.environ.get("MARKETDATA_TEST_DATABASE_URL")
    cache = os.environ.get("MARKETDATA_TEST_REDIS_URL")
    with ExitStack() as closing:
        if not (postgres and cache):
            parent = Path(closing.enter_context(tempfile.TemporaryDirectory()))
            parent.chmod(0o711)
            given = embedded.acquire(parent / "home").servers
            closing.callback(embedded.erase, parent / "home")
            postgres, cache = given.database_url, given.redis_url
        name = f"model_{secrets.token_hex(5)}"
        plain = closing.enter_context(psycopg.connect(postgres, autocommit=True))
        plain.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        try:
            yield urlunsplit(urlsplit(postgres)._replace(path=f"/{name}")), cache
        finally:
            plain.execute(f"DROP DATABASE {name} WITH (FORCE)")
