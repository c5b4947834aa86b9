"""``marketdata demo``: what a newcomer sees first, on servers it starts and ends itself."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from marketdata import embedded
from tests.command_line import CommandLine
from tests.conftest import make_home_directory
from tests.shared_data import SHARED, needs_shared_data


@pytest.fixture
def temporary() -> Iterator[Path]:
    directory = make_home_directory()
    yield directory
    for home in directory.glob("marketdata-demo-*"):
        embedded.erase(home)
    shutil.rmtree(directory)


@pytest.fixture
def command(tmp_path: Path, temporary: Path) -> CommandLine:
    """A user whose own servers are elsewhere: the demo must not go there."""
    made = CommandLine(
        tmp_path,
        database_url="postgresql://nobody@127.0.0.1:1/x",
        redis_url="redis://127.0.0.1:1",
        home=str(tmp_path / "home"),
    )
    made.environment["TMPDIR"] = str(temporary)
    return made


def test_it_runs_on_generated_prices(command: CommandLine, temporary: Path) -> None:
    done = command("demo")
    assert done.code == 0, done.err
    assert done.err == ""
    said = done.out
    assert "SIMULATED" in said.splitlines()[1]
    for tier in ("broker", "Redis", "PostgreSQL"):
        assert tier in said
    assert "The second read made no broker call" in said
    assert "The answer never changed" in said
    assert "md.subscribe" in said
    assert "A read finds everything in Redis" in said
    assert "settled bars in" in said
    assert "rsi_14" in said
    page = command.directory / "marketdata-demo.html"
    assert str(page) in said
    assert "SIMULATED" in page.read_text(encoding="utf-8")[-200_000:]
    paths = (str(page), str(Path(sys.executable).parent))  # as long as they are
    lines = [line for line in said.splitlines() if not any(path in line for path in paths)]
    assert max(map(len, lines)) <= 80
    assert list(temporary.iterdir()) == []
    assert not (command.directory / "home").exists()


@needs_shared_data
def test_it_runs_on_real_prices_and_keeps_what_it_is_told_to(
    command: CommandLine, temporary: Path
) -> None:
    data = SHARED / "minute" / "us24_2019-02.csv.gz"
    done = command(
        "demo",
        "--data",
        str(data),
        "--symbols",
        "AAPL,MSFT",
        "--keep",
        "--json",
        "--page",
        "p.html",
    )
    assert done.code == 0, done.err
    assert (done.summary["simulated"], done.summary["broken"]) == (False, [])
    reads = {o["read"]: o for o in done.objects[:-1] if "read" in o}
    acts = [o for o in done.objects[:-1] if "act" in o]
    assert reads["the same again"]["tiers"] == "redis"
    assert reads["the same again"]["broker_calls"] == 0
    assert reads["Redis emptied"]["tiers"] == "postgres"
    assert reads["Redis frozen"]["same"] is True
    cycles = [o for o in acts if o["act"] == "cycle"]
    assert [c["newest"][11:16] for c in cycles] == ["15:29", "15:30", "15:31"]
    assert [c["bars"] for c in cycles] == [0, 4, 4]  # one new minute, one read again, two symbols
    [filled] = [o for o in acts if o["act"] == "backfill"]
    assert (filled["ended"], filled["failed"], filled["gaps_left"]) == ("complete", 0, 0)
    assert filled["bars"] > 10_000
    assert all(0 < o["rsi_14"] < 100 for o in acts if o["act"] == "indicators")
    assert (command.directory / "p.html").exists()
    home = Path(done.summary["home"])
    assert not embedded.status(home).running
    held = command(
        "status", "--json", "--home", str(home), MARKETDATA_DATABASE_URL="", MARKETDATA_REDIS_URL=""
    )
    assert held.code == 0
    assert held.summary["symbols"] >= 2


def test_symbols_it_does_not_have(command: CommandLine, temporary: Path) -> None:
    done = command("demo", "--symbols", "NOPEX")
    assert done.code == 2
    assert "AAPL" in done.err
    assert list(temporary.iterdir()) == []
