"""What runs beside the leading daemon: begun, begun again, ended with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from algorithms.library import SmaCross
from algorithms.live.journal import Journal
from algorithms.live.sources import registration_of
from marketdata.companions import Companions, environment, registered
from marketdata.config import Settings
from tests.daemons import make_daemons, until
from tests.replayed_market import Market, in_process, make_market

__all__ = ["in_process", "make_daemons", "make_market"]

WAITS = "import sys; sys.stdin.read()"
DEAF = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "open(sys.argv[1], 'w').write('deaf'); time.sleep(600)"
)
SOON = "import sys; sys.exit(7)"


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def python(code: str, *words: str) -> list[str]:
    return [sys.executable, "-c", code, *words]


def beside(**commands: list[str]) -> tuple[Companions, list[bool]]:
    leading = [True]
    companions = Companions(
        commands, dict(os.environ), lambda: leading[0], first=0.2, most=0.4, grace=0.5
    )
    return companions, leading


def test_one_that_ends_is_begun_again_later_each_time_and_costs_no_other():
    companions, _ = beside(soon=python(SOON), waits=python(WAITS), none=["/no/such/program"])
    with closing(companions):
        companions.start()
        until(lambda: companions.told()["soon"]["failures"] >= 3)
        told = companions.told()
        assert (told["soon"]["exit_code"], told["none"]["state"]) == (7, "waiting")
        assert told["none"]["failures"] >= 2
        assert (told["waits"]["state"], told["waits"]["starts"]) == ("running", 1)
        pid = told["waits"]["pid"]
    assert not alive(pid)
    assert companions.told()["waits"]["state"] == "idle"


def test_they_run_while_we_lead_and_one_that_does_not_end_is_killed(tmp_path: Path):
    companions, leading = beside(deaf=python(DEAF, str(tmp_path / "deaf")), waits=python(WAITS))
    with closing(companions):
        leading[0] = False
        companions.start()
        assert {t["state"] for t in companions.told().values()} == {"idle"}
        leading[0] = True
        until((tmp_path / "deaf").exists)
        pids = [t["pid"] for t in companions.told().values()]
        leading[0] = False
        until(lambda: {t["state"] for t in companions.told().values()} == {"idle"})
        assert not any(map(alive, pids))
        assert companions.told()["deaf"]["exit_code"] == -signal.SIGKILL
        assert companions.told()["deaf"]["failures"] == 0
        leading[0] = True
        until(lambda: companions.told()["waits"]["starts"] == 2)


def test_a_companion_has_the_settings_that_were_given_in_words(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MARKETDATA_POLL", "120")
    given = {"trail": "AAPL,MSFT", "alpaca_key_id": "PK1", "alpaca_secret_key": "s", "poll": None}
    settings = Settings.load(indicator_history="1day,1hour", **given)
    found = environment(settings)
    assert found["MARKETDATA_TRAIL"] == "AAPL,MSFT"
    assert found["MARKETDATA_INDICATOR_HISTORY"] == "1day,1hour"
    assert (found["APCA_API_KEY_ID"], found["APCA_API_SECRET_KEY"]) == ("PK1", "s")
    assert found["MARKETDATA_POLL"] == "120"
    for name in set(found) - set(os.environ):
        monkeypatch.setenv(name, found[name])
    again = Settings.load()
    assert (again.trail, again.indicator_history) == (settings.trail, settings.indicator_history)


def test_an_entry_names_a_module_and_is_not_imported(tmp_path: Path):
    named(tmp_path, "no_such_package.live", "test")
    code = (
        "from marketdata.companions import registered; import json; print(json.dumps(registered()))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(shown.stdout)["test"] == [sys.executable, "-m", "no_such_package.live"]
    assert "test" not in registered()


# -------------------------------------------------------------------------------- with a daemon


def named(directory: Path, module: str, name: str = "algorithms") -> None:
    """Have an installed package name a companion, for processes that run in a directory."""
    package = directory / "beside-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: beside\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(f"[marketdata.companions]\n{name} = {module}\n")


@pytest.fixture
def market(make_market: Callable[..., Market]) -> Market:
    return make_market("replay:2024-03-13T10:00:00-04:00@60")


def test_the_leading_daemon_runs_what_is_to_run_and_takes_it_with_it(
    market: Market, tmp_path: Path, database_url: str
):
    named(tmp_path, "algorithms.live.companion")
    quick = SmaCross(fast=2, slow=3, timeframe="1min", name="Quick")
    daemon = market.daemons.up(companions="on")
    with closing(Journal(database_url)) as journal:
        until(lambda: daemon.told("health")["companions"]["algorithms"]["state"] == "running")
        journal.register(registration_of(quick, "sma_cross"))
        until(lambda: journal.records()[0].fills > 0, 60)
        record = journal.records()[0]
        pid = int(str(record.runner).rpartition("/")[2])
        assert daemon.told("health")["companions"]["algorithms"]["pid"] == pid
        os.kill(pid, signal.SIGKILL)
        until(lambda: daemon.told("health")["companions"]["algorithms"]["starts"] == 2)
        until(lambda: daemon.told("health")["companions"]["algorithms"]["state"] == "running")
        second = daemon.told("health")["companions"]["algorithms"]["pid"]
        assert daemon.end()[0] == 0
        assert not alive(second)
        assert journal.records()[0].runner in (None, record.runner), "it was given back"


def test_a_companion_ends_when_its_daemon_is_killed(market: Market, tmp_path: Path):
    named(tmp_path, "algorithms.live.companion")
    daemon = market.daemons.quick(companions="on")
    until(lambda: daemon.told("health")["companions"]["algorithms"]["state"] == "running")
    pid = daemon.told("health")["companions"]["algorithms"]["pid"]
    status = market.command
    until(lambda: "algorithms running" in status("status").out, pause=0.5)
    daemon.end(signal.SIGKILL)
    until(lambda: not alive(pid))


def test_companions_can_be_switched_off(market: Market, tmp_path: Path):
    named(tmp_path, "algorithms.live.companion")
    daemon = market.daemons.up(companions="off")
    until(daemon.leads)
    assert daemon.told("health")["companions"] == {}
