"""Each fault as an HTTP client meets it, and the server's own start, stop and control API."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest
import requests

from marketdata.clock import FixedClock
from marketdata.errors import ConfigurationError
from marketdata.sandbox import Fault, Sandbox

NOW = datetime(2024, 7, 10, 15, 0, 30, tzinfo=UTC)
KEYS = {"APCA-API-KEY-ID": "key", "APCA-API-SECRET-KEY": "secret"}
BARS = "/v2/stocks/bars"
PARAMS: dict[str, Any] = {
    "symbols": "AAPL",
    "timeframe": "1Min",
    "start": "2024-07-09T14:00:00Z",
    "limit": 100,
}


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(clock=FixedClock(NOW)) as running:
        yield running


def get(
    sandbox: Sandbox, path: str = BARS, timeout: float = 20, **params: Any
) -> requests.Response:
    asked = PARAMS | params if path == BARS else params
    return requests.get(sandbox.url + path, params=asked, headers=KEYS, timeout=timeout)


def test_status_with_body_and_headers(sandbox):
    sandbox.faults.add(
        "status", status=504, body='{"message":"late"}', headers={"Retry-After": "3"}
    )
    response = get(sandbox)
    assert (response.status_code, response.json()) == (504, {"message": "late"})
    assert response.headers["Retry-After"] == "3"
    assert get(sandbox).ok
    assert [(r.status, r.fault) for r in sandbox.requests] == [(504, "status"), (200, None)]


def test_an_error_on_page_two_only(sandbox):
    sandbox.faults.add("status", match=BARS, nth=2)
    first = get(sandbox).json()
    assert get(sandbox, page_token=first["next_page_token"]).status_code == 500
    assert get(sandbox, page_token=first["next_page_token"]).ok


def test_html_503(sandbox):
    sandbox.faults.add("html")
    response = get(sandbox)
    assert response.status_code == 503
    assert "<html>" in response.text


def until_reset(answer: requests.Response) -> float:
    """Return the seconds that an answer gives, by its own date, until its limit ends."""
    said = parsedate_to_datetime(answer.headers["Date"])
    return int(answer.headers["X-RateLimit-Reset"]) - said.timestamp()


def test_a_rate_limit_refuses_everybody_until_its_reset(sandbox):
    fault = sandbox.faults.add("rate_limit", seconds=0.4)
    refused = get(sandbox)
    assert refused.status_code == 429
    assert 0 < until_reset(refused) <= 2, "on the market's clock, as its date"
    assert get(sandbox).status_code == 429
    while time.time() < fault.blocked_until:
        threading.Event().wait(0.02)
    assert get(sandbox).ok


def test_a_stalled_request_times_out_and_others_are_served(sandbox):
    sandbox.faults.add("stall", match="symbols=AAPL")
    with pytest.raises(requests.ReadTimeout):
        get(sandbox, timeout=0.3)
    assert get(sandbox, symbols="MSFT").ok
    assert sandbox.requests[0].status == 0


def test_stop_does_not_wait_for_stalled_requests(sandbox):
    sandbox.faults.add("stall", times=None)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(get, sandbox) for _ in range(3)]
        while sandbox.requests.count(BARS) < 3:
            threading.Event().wait(0.01)
        began = time.monotonic()
        sandbox.stop()
        assert time.monotonic() - began < 2
        for future in waiting:
            with pytest.raises(requests.ConnectionError):
                future.result(5)


def test_slow(sandbox):
    sandbox.faults.add("slow", seconds=0.3)
    began = time.monotonic()
    assert get(sandbox).ok
    assert time.monotonic() - began >= 0.3


def test_hold_until_released(sandbox):
    fault = sandbox.faults.add("hold")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(get, sandbox)
        assert fault.wait_fired()
        assert not waiting.done()
        fault.release()
        assert waiting.result(10).ok


def test_late_answers_with_what_was_true_when_it_was_asked(sandbox):
    fault = sandbox.faults.add("late")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(get, sandbox)
        assert fault.wait_fired()
        while not sandbox.requests[0].status:
            threading.Event().wait(0.005)
        assert not waiting.done()
        fault.release()
        assert waiting.result(10).ok


def test_drip_sends_the_whole_body_in_the_end(sandbox):
    sandbox.faults.add("drip", seconds=0.001)
    page = get(sandbox, limit=1).json()
    assert len(page["bars"]["AAPL"]) == 1


def test_cut_body(sandbox):
    sandbox.faults.add("cut")
    connection = http.client.HTTPConnection(sandbox.url.removeprefix("http://"), timeout=10)
    connection.request("GET", f"{BARS}?symbols=AAPL&timeframe=1Min", headers=KEYS)
    response = connection.getresponse()
    with pytest.raises(http.client.IncompleteRead) as cut:
        response.read()
    announced = int(response.headers["Content-Length"])
    assert len(cut.value.partial) == announced // 2
    connection.close()


def test_reset_connection(sandbox):
    sandbox.faults.add("reset")
    with pytest.raises(requests.ConnectionError, match="reset"):
        get(sandbox)
    assert get(sandbox).ok


def test_garbage_gzip(sandbox):
    sandbox.faults.add("gzip")
    with pytest.raises(requests.exceptions.ContentDecodingError):
        get(sandbox)


def test_broken_json(sandbox):
    sandbox.faults.add("json")
    response = get(sandbox)
    assert response.status_code == 200
    with pytest.raises(requests.JSONDecodeError):
        response.json()


def test_bars_null(sandbox):
    sandbox.faults.add("bars_null")
    assert get(sandbox).json()["bars"] is None


def test_tokens_that_never_end(sandbox):
    sandbox.faults.add("empty_token")
    assert get(sandbox).json()["next_page_token"] == ""
    first = get(sandbox).json()["next_page_token"]
    sandbox.faults.add("same_token", times=None)
    assert get(sandbox, page_token=first).json()["next_page_token"] == first


def test_bad_rows_over_http(sandbox):
    good = get(sandbox).json()["bars"]["AAPL"]
    sandbox.faults.add("bad_rows", rows=["nan", "off_grid", "duplicate", "missing_keys"])
    bad = json.loads(get(sandbox).content)["bars"]["AAPL"]
    assert bad[1]["c"] != bad[1]["c"]
    assert bad[2]["t"].endswith(":23Z")
    assert "vw" not in bad[4]
    assert len(bad) == len(good) + 1
    assert [r for r in bad if r in good] == [good[0], good[3], *good[5:]]


def test_a_bar_that_has_not_closed(sandbox):
    sandbox.faults.add("forming")
    rows = get(sandbox, start="2024-07-10T14:50:00Z").json()["bars"]["AAPL"]
    assert rows[-1]["t"] == "2024-07-10T15:00:00Z"


def test_a_short_page_goes_on_rightly(sandbox):
    sandbox.faults.add("short_page", limit=3)
    short = get(sandbox).json()
    assert len(short["bars"]["AAPL"]) == 3
    rest = get(sandbox, page_token=short["next_page_token"], limit=97).json()
    assert short["bars"]["AAPL"] + rest["bars"]["AAPL"] == get(sandbox).json()["bars"]["AAPL"]


# --------------------------------------------------------------------------- running a server


def test_many_clients_at_once(sandbox):
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda n: get(sandbox, symbols=f"S{n:05d}"), range(200)))
    assert all(a.ok for a in answers)
    assert sandbox.requests.count(BARS) == 200


def test_start_and_stop_are_quick_and_stop_is_idempotent():
    Sandbox(clock=FixedClock(NOW)).stop()
    began = time.monotonic()
    sandbox = Sandbox(clock=FixedClock(NOW)).start()
    assert get(sandbox, "/v2/clock").ok
    assert time.monotonic() - began < 2
    began = time.monotonic()
    sandbox.stop()
    sandbox.stop()
    assert time.monotonic() - began < 2
    with pytest.raises(requests.ConnectionError):
        get(sandbox, "/v2/clock", timeout=2)


def test_a_port_in_use_is_a_configuration_error(sandbox):
    with pytest.raises(ConfigurationError, match="cannot listen"):
        Sandbox(port=int(sandbox.url.rpartition(":")[2]))


def test_the_clock_can_be_swapped(sandbox):
    newest = get(sandbox, "/v2/stocks/bars/latest", symbols="AAPL").json()["bars"]["AAPL"]["t"]
    sandbox.clock = FixedClock(datetime(2024, 7, 10, 15, 1, tzinfo=UTC))
    later = get(sandbox, "/v2/stocks/bars/latest", symbols="AAPL").json()["bars"]["AAPL"]["t"]
    assert (newest, later) == ("2024-07-10T14:59:00Z", "2024-07-10T15:00:00Z")


def test_the_control_api(sandbox):
    control = sandbox.url + "/_sandbox/"
    ordered = requests.post(
        control + "faults", json={"kind": "status", "status": 503, "match": BARS}, timeout=10
    )
    assert ordered.json()["faults"][0]["kind"] == "status"
    assert get(sandbox).status_code == 503
    assert requests.post(control + "faults", json={"kind": "odd"}, timeout=10).status_code == 400
    assert requests.delete(control + "faults", timeout=10).json() == {"faults": []}
    count = requests.get(
        control + "requests", params={"prefix": BARS, "log": "1"}, timeout=10
    ).json()
    assert count["count"] == 1
    assert count["requests"][0]["params"]["symbols"] == "AAPL"
    moved = requests.post(control + "clock", json={"advance": 60}, timeout=10).json()
    assert moved["now"] == "2024-07-10T15:01:30+00:00"
    requests.post(control + "clock", json={"clock": "2024-01-02T15:00:00Z"}, timeout=10)
    assert sandbox.clock.now_us() == int(datetime(2024, 1, 2, 15, tzinfo=UTC).timestamp() * 1e6)
    assert requests.post(control + "clock", json={"clock": "noon"}, timeout=10).status_code == 400
    split = {"symbol": "MSFT", "ex_date": "2023-12-29", "new": 2}
    assert requests.post(control + "splits", json=split, timeout=10).ok
    assert len([a for a in sandbox.source.actions("MSFT") if a.is_split]) == 2
    spun = {"symbol": "MSFT", "ex_date": "2023-12-28", "kind": "spin_off", "new": 1, "old": 4,
            "other_symbol": "NEWCO", "amount": 1.5, "announced": "2024-01-03"}  # fmt: skip
    added = requests.post(control + "actions", json=spun, timeout=10).json()
    assert added["type"] == "spin_off"
    changed = {"id": added["id"], "new": 2, "process_date": "2024-01-05"}
    corrected = requests.patch(control + "actions", json=changed, timeout=10).json()
    assert (corrected["id"], corrected["new"]) == (added["id"], 2)
    listed = requests.get(control + "actions", params={"symbol": "MSFT"}, timeout=10).json()
    assert [a["new"] for a in listed if a["id"] == added["id"]] == [2]
    requests.delete(control + "actions", params={"id": added["id"]}, timeout=10)
    listed = requests.get(control + "actions", params={"symbol": "MSFT"}, timeout=10).json()
    assert added["id"] not in [a["id"] for a in listed]
    for wrong in ({"symbol": "MSFT"}, {**spun, "ex_date": "soon"}, {**spun, "odd": 1}):
        assert requests.post(control + "actions", json=wrong, timeout=10).status_code == 400
    assert requests.delete(control + "requests", timeout=10).json() == {"count": 0}
    assert requests.get(control, timeout=10).json()["simulated"] is True


def test_a_process_of_its_own_serves_the_same_market(sandbox):
    source = str(Path(__file__).resolve().parents[2] / "src")
    command = [sys.executable, "-m", "marketdata.sandbox", "--clock", NOW.isoformat()]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": source}
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        try:
            answer = requests.get(url + BARS, params=PARAMS, headers=KEYS, timeout=20)
            assert answer.json() == get(sandbox).json()
        finally:
            process.terminate()


def test_faults_objects_are_accepted_ready_made(sandbox):
    fault = sandbox.faults.add(Fault("status", status=418))
    assert get(sandbox).status_code == 418
    assert fault.fired == 1
