"""``marketdata algo run --venue alpaca`` as its users have it: a process, a broker, a journal."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from algorithms.venues.alpaca_paper import AlpacaPaper
from tests.command_line import CommandLine, InProcess
from tests.stack import Stack, make_stack, stack

__all__ = ["make_stack", "stack"]

KEY = "sandbox"
BUYS = """
from algorithms import Algorithm


class Buys(Algorithm):
    symbols = ("AAPL", "MSFT")
    timeframe = "1min"

    def on_bar(self, ctx):
        if not self.state.get("bought"):
            self.state["bought"] = True
            ctx.order(7, tag="once", stop_loss=round(ctx.close[-1] * 0.5, 2))
            ctx.order(3, "MSFT", limit=round(ctx["MSFT"].price * 0.5, 2))
"""


@pytest.fixture
def line(
    stack: Stack,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> InProcess:
    settings = {
        **{name: str(value) for name, value in stack.settings.items()},
        "home": str(tmp_path / "home"),
        "clock": repr(stack.clock),
    }
    (tmp_path / "mine.py").write_text(BUYS, "utf-8")
    return InProcess(CommandLine(tmp_path, **settings), monkeypatch, capsys)


def until(holds: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + 45
    while not (found := holds()):
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.2)
    return found


def test_orders_go_to_alpaca_s_paper_account_and_stop_takes_entries_back(
    stack: Stack, line: InProcess
):
    process = CommandLine(line.directory)
    process.environment = line.environment
    venue = AlpacaPaper(KEY, KEY, url=stack.sandbox.url, timeout=10.0)
    begin = "2024-03-14T15:00:30-04:00"
    words = ("algo", "run", "mine.py", "--venue", "alpaca", "--json")
    # Its clock runs while the sandbox's follows by hand: what it asks for is always there.
    running = process.start(*words, "--clock", f"replay:{begin}@30")
    try:
        assert running.stdout is not None
        assert json.loads(running.stdout.readline())["venue"] == "alpaca"

        def bought() -> Any:
            stack.clock.advance(minutes=1)
            row = line("algo", "list", "Buys", "--json").objects[0]
            # The list reads strategies first and positions then: a fill may come in between.
            return row if row.get("positions") == {"AAPL": 7.0} and row["fills"] else None

        row = until(bought, "the fill")
        assert (row["venue"], row["state"], row["fills"]) == ("alpaca", "running", 1)
        assert venue.positions() == {"AAPL": 7.0}
        (fill,) = venue.fills_since(0)
        assert fill.order_id == row["orders"][0]["order_id"]
        assert [o["state"] for o in row["orders"]] == ["filled", "open", "open"]
        assert line("algo", "stop", "Buys").code == 0

        def withdrawn() -> Any:
            row = line("algo", "list", "Buys", "--json").objects[0]
            return row if row["runner"] is None else None

        row = until(withdrawn, "the end")
        assert [o["state"] for o in row["orders"]] == ["filled", "open", "canceled"]
        assert [(o.symbol, o.quantity) for o in venue.open_orders()] == [("AAPL", -7.0)]
        assert row["protective_exits"] == 1
        assert "1 protective exit stands at alpaca" in line("algo", "list").out
        running.send_signal(signal.SIGINT)
        running.wait(30)
    finally:
        running.kill()
        _, err = running.communicate(timeout=30)
        venue.close()
    assert running.returncode == 130
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "variables",
    [
        {"MARKETDATA_ALPACA_TRADING_URL": "https://api.alpaca.markets"},
        {
            "MARKETDATA_ALPACA_TRADING_URL": "https://paper-api.alpaca.markets",
            "APCA_API_KEY_ID": "AKREALMONEY",
            "APCA_API_SECRET_KEY": "a-secret-nobody-may-see",
        },
    ],
)
def test_real_money_is_refused_before_anything_is_registered(
    line: InProcess, variables: dict[str, str]
):
    refused = line("algo", "run", "mine.py", "--venue", "alpaca", **variables)
    assert (refused.code, refused.out) == (78, "")
    assert "paper" in refused.err
    assert "secret" not in refused.err
    assert line("algo", "list", "--json").summary["count"] == 0
