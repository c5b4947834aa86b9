"""What is shipped for operators agrees with the code: metrics, alerts, dashboard, runbook, units."""

from __future__ import annotations

import json
import re
import shlex
from datetime import datetime
from typing import Any

import pytest

from marketdata.calendars import EXCHANGE, calendar_for
from marketdata.cli.daemon import ENDS_WITHIN, JOB_NAMES
from marketdata.clock import to_micros
from marketdata.config import VARIABLES
from marketdata.jobs import Ended
from marketdata.metrics import Metrics
from marketdata.schedule import Tick, Timetable
from marketdata.wellbeing import assess
from tests.documents import ROOT
from tests.vitals_examples import CACHE, figures

OPS = ROOT / "ops"
RUNBOOK = (ROOT / "OPERATIONS.md").read_text("utf-8")
ALERTS = (OPS / "alerts.yml").read_text("utf-8")
DASHBOARD = json.loads((OPS / "grafana-dashboard.json").read_text("utf-8"))

NAME = re.compile(r"\bmarketdata_[a-z_]+\b")
RULES = re.findall(
    r"^      - alert: (\w+)\n        expr: ([^\n]+)\n(.*?)(?=^      - alert|\Z)",
    ALERTS,
    re.M | re.S,
)


@pytest.fixture(scope="module")
def exposed() -> dict[str, set[str]]:
    """Every series that a daemon with something to tell exposes, each with its labels."""
    now = to_micros(datetime.fromisoformat("2024-03-14T15:00:00-04:00"))
    metrics = Metrics(
        "0", leading=lambda: True, heartbeat=lambda: 0.0, answers=lambda: {"200": 5, "429": 1}
    )
    metrics.elected()
    metrics.ended(Ended("cycle", "done", 1.0))
    metrics.passed_over(Tick.CYCLE, "skipped")
    calendar = calendar_for(EXCHANGE, now)
    vitals = assess(figures(now), calendar, now, Timetable(), request_limit=200)
    metrics.observe(vitals, CACHE)
    found: dict[str, set[str]] = {}
    for line in metrics.exposition().decode().splitlines():
        if not line.startswith("#") and "_created" not in line:
            name, labels = re.fullmatch(r"(\w+)(?:\{(.*)\})? \S+", line).groups()
            found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels or ""))
    return found


def expressions() -> dict[str, str]:
    """Return every PromQL expression shipped, by where it stands."""
    found = {f"alert {name}": expr for name, expr, _ in RULES}
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            found[f"panel {panel['title']} {target['refId']}"] = target["expr"]
    return found


def documented() -> dict[str, set[str]]:
    """Return the metrics table of the runbook: names and labels."""
    rows = re.findall(r"^\| `(marketdata_\w+)` \|([^|]*)\|", RUNBOOK, re.M)
    return {name: set(re.findall(r"\w+", labels)) for name, labels in rows}


def family(name: str) -> str:
    return re.sub(r"_(bucket|sum|count)$", "", name)


# ------------------------------------------------------------------- metrics, alerts, dashboard


@pytest.mark.parametrize("where", expressions())
def test_every_metric_asked_for_exists_with_its_labels(where: str, exposed: dict[str, set[str]]):
    expression = expressions()[where]
    names = set(NAME.findall(expression))
    assert names or "up{" in expression
    for name in names:
        assert name in exposed, name
    labels = set(re.findall(r"(\w+)(?:=~|!=|=)\"", expression))
    labels |= {
        word
        for group in re.findall(r"by \(([^)]*)\)", expression)
        for word in re.findall(r"\w+", group)
    }
    known = {"le", "job", "instance"}.union(*(exposed[name] for name in names))
    assert labels <= known, labels - known


def test_every_metric_is_documented_with_its_labels_and_nothing_else_is(
    exposed: dict[str, set[str]],
):
    shown: dict[str, set[str]] = {}
    for name, labels in exposed.items():
        shown.setdefault(family(name), set()).update(labels - {"le"})
    assert documented() == shown


def test_no_metric_names_a_symbol(exposed: dict[str, set[str]]):
    assert not {"symbol", "symbols"} & set().union(*exposed.values())


def test_every_alert_has_its_section_and_says_where_it_is():
    sections = dict(re.findall(r"^### (Marketdata\w+)\n\n(.*?)(?=^##)", RUNBOOK, re.M | re.S))
    assert [name for name, _, _ in RULES] == list(sections)
    assert len(RULES) > 15
    for name, _, rest in RULES:
        assert f"runbook: OPERATIONS.md#{name.lower()}\n" in rest
        assert re.search(r"severity: (critical|warning)\b", rest), name
        assert "summary: " in rest
        for part in ("Means: ", "See: ", "Do: "):
            assert part in sections[name], f"{name} has no {part}"


def test_expressions_close_their_brackets():
    for where, expression in expressions().items():
        for opening, closing in ("()", "{}", "[]"):
            assert expression.count(opening) == expression.count(closing), where


def test_the_dashboard_can_be_imported():
    panels = DASHBOARD["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    assert len({p["title"] for p in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
        assert panel["datasource"]["uid"] == "${datasource}"
    taken = [
        (x, y)
        for p in panels
        for x in range(p["gridPos"]["x"], p["gridPos"]["x"] + p["gridPos"]["w"])
        for y in range(p["gridPos"]["y"], p["gridPos"]["y"] + p["gridPos"]["h"])
    ]
    assert len(set(taken)) == len(taken), "panels overlap"


# ------------------------------------------------------------------------------ units, compose


def unit(name: str) -> dict[str, list[str]]:
    """Return the settings of a systemd unit."""
    found: dict[str, list[str]] = {}
    for line in (OPS / "systemd" / name).read_text("utf-8").splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def test_units_start_commands_that_exist_and_give_them_time_to_end():
    service, one = unit("marketdata.service"), unit("marketdata-backfill.service")
    assert shlex.split(service["ExecStart"][0])[1:3] == ["up", "--wait"]
    assert int(service["TimeoutStopSec"][0]) > ENDS_WITHIN
    assert service["KillSignal"] == ["SIGTERM"]
    assert service["RestartPreventExitStatus"] == ["78"]
    words = shlex.split(one["ExecStart"][0])
    assert words[1] == "run"
    assert words[2] in JOB_NAMES
    assert unit("marketdata-backfill.timer")["OnCalendar"][0].endswith("America/New_York")


def test_compose_names_plain_images_and_no_secret():
    compose = (OPS / "compose.yaml").read_text("utf-8")
    images = re.findall(r"^\s+image: (\S+)$", compose, re.M)
    assert images
    assert all(re.fullmatch(r"[a-z]+:[\w.]+", image) for image in images), images
    assert re.search(r"stop_grace_period: (\d+)s", compose)[1] > str(int(ENDS_WITHIN))
    assert not re.search(r"(?i)(password|secret|key)\w*:\s*\S", compose)
    example = (OPS / "env.example").read_text("utf-8")
    assert all(
        not value for value in re.findall(r"^\w*(?:PASSWORD|KEY\w*|SECRET\w*)=(.*)$", example, re.M)
    )


def test_settings_named_in_shipped_files_exist():
    known = {name for names in VARIABLES.values() for name in names}
    for path in [*OPS.rglob("*"), ROOT / "OPERATIONS.md"]:
        if path.is_file():
            written: set[Any] = set(
                re.findall(r"\b(?:MARKETDATA|APCA|ALPACA)_[A-Z_]*[A-Z]\b", path.read_text("utf-8"))
            )
            assert written <= known, path
