"""``marketdata algo`` on the sandbox: streams, exit codes, JSON, and what it says when things fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from algorithms.cli.options import fees_of, slippage_of
from algorithms.cli.sweeping import condition_of, values_of
from algorithms.costs import BasisPoints, NoFees, NoSlippage, Percent, PerShare, VolumeShare
from algorithms.errors import AlgorithmError, ParameterError
from algorithms.library import SmaCross
from algorithms.params import Param
from marketdata.errors import RequestError
from tests.command_line import CommandLine, Finished, InProcess, empty, marketdata

__all__ = ["empty", "marketdata"]

PERIOD = ("--period", "1y")


@pytest.fixture
def process(marketdata: InProcess) -> CommandLine:
    """Each command a process of its own."""
    line = CommandLine(marketdata.directory)
    line.environment = marketdata.environment
    return line


@pytest.fixture
def algo(marketdata: InProcess, monkeypatch: pytest.MonkeyPatch) -> InProcess:
    """In this process, whose imports of a test's files are forgotten after it."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr("algorithms.loader._RUN", {})
    return marketdata


def write(line: CommandLine, name: str, text: str) -> Path:
    path = line.directory / name
    path.write_text(text, "utf-8")
    return path


def strategy(body: str, head: str = "symbols = ('AAPL',)") -> str:
    return (
        "import time\nfrom algorithms import Algorithm, Param\n\n\n"
        f"class Mine(Algorithm):\n    {head}\n    size = Param(10, low=1)\n\n"
        f"    def on_bar(self, ctx):\n        {body}\n"
    )


HOLD = strategy("ctx.order_target(self.size)")


# -------------------------------------------------------------------------------- the tree


def test_help_lists_the_commands(process: CommandLine):
    shown = process("algo", "--help", NO_COLOR="1", COLUMNS="100")
    assert shown.code == 0
    for name in ("new", "check", "backtest", "sweep", "run", "list", "stop"):
        assert f" {name} " in shown.out
    assert "algo " in process("--help", NO_COLOR="1", COLUMNS="100").out


@pytest.mark.parametrize(
    "words",
    [
        ("backtest",),
        ("nothing",),
        ("backtest", "sma_cross", "--cash", "much"),
        ("check", "sma_cross", "--cuts", "0"),
    ],
)
def test_a_command_line_that_is_wrong(algo: InProcess, words: tuple[str, ...]):
    wrong = algo("algo", *words)
    assert (wrong.code, wrong.out) == (2, "")
    assert wrong.err.startswith("error: ")
    assert wrong.err.count("\n") == 1


# --------------------------------------------------------------------------------- algo new


def test_a_new_strategy_runs_as_it_is(process: CommandLine):
    made = process("algo", "new", "my_idea")
    assert (made.code, made.err) == (0, "")
    text = (process.directory / "my_idea.py").read_text("utf-8")
    assert "class MyIdea(Algorithm):" in text
    assert 15 <= len(text.splitlines()) <= 25
    assert "marketdata algo backtest my_idea.py" in made.out
    ran = process("algo", "backtest", "my_idea.py", *PERIOD)
    assert (ran.code, ran.err) == (0, "")
    assert "MyIdea (length=50) on AAPL" in ran.out
    assert "SIMULATED" in ran.out


def test_new_never_overwrites(algo: InProcess):
    mine = write(algo, "mine.py", "# mine\n")
    again = algo("algo", "new", "mine", "--json")
    assert again.code == 2
    assert "there already" in again.summary["error"]["message"]
    assert mine.read_text("utf-8") == "# mine\n"
    deep = algo("algo", "new", "ideas/second.py", "--json")
    assert (deep.code, deep.summary["name"]) == (0, "Second")
    assert (algo.directory / "ideas" / "second.py").exists()


@pytest.mark.parametrize("name", ["2fast", "with-dash", "class", ".py", "a b"])
def test_new_refuses_what_cannot_be_imported(algo: InProcess, name: str):
    refused = algo("algo", "new", name)
    assert (refused.code, refused.out) == (2, "")
    assert "->" in refused.err
    assert list(algo.directory.glob("*.py")) == []


# ------------------------------------------------------------------------------ algo backtest


def test_a_back_test_prints_its_figures_and_json_has_them_all(algo: InProcess):
    shown = algo("algo", "backtest", "sma_cross", *PERIOD, "-p", "fast=5", "-s", "msft")
    assert (shown.code, shown.err) == (0, "")
    assert "SmaCross (fast=5, slow=30) on MSFT, 1day bars" in shown.out
    assert "buy and hold" in shown.out
    same = algo("algo", "backtest", "sma_cross", *PERIOD, "-p", "fast=5", "-s", "MSFT", "--json")
    summary = same.summary
    assert len(same.objects) == 1
    assert (summary["exit_code"], summary["symbols"]) == (0, ["MSFT"])
    assert summary["params"] == {"fast": 5, "slow": 30}
    assert summary["simulated"] is True
    assert f"{summary['metrics']['final_equity']:,.2f}" in shown.out
    assert summary["settings"]["slippage"] == "BasisPoints(points=1.0)"


def test_trades_report_and_picture(algo: InProcess):
    words = ("algo", "backtest", "rsi_reversion", "--period", "2y", "--trades", "--html", "r.html")
    shown = algo(*words, "--plot", "p.html")
    assert shown.code == 0
    assert "dip to rebound" in shown.out
    assert [line.split()[0] for line in shown.err.splitlines()] == ["wrote", "wrote"]
    for name in ("r.html", "p.html"):
        assert "SIMULATED" in (algo.directory / name).read_text("utf-8")
    rows = algo(*words, "--json").objects
    assert len(rows) - 1 == rows[-1]["metrics"]["trades"] + rows[-1]["metrics"]["open_trades"]
    assert rows[0]["symbol"] == "MSFT"
    assert rows[-1]["written"] == ["r.html"]


def test_costs_and_timeframe_are_words(algo: InProcess):
    ran = algo(
        "algo", "backtest", "sma_cross", "-t", "1hour", "--period", "20d", "--fees", "0.1%",
        "--slippage", "none", "--cash", "5000", "--json",
    )  # fmt: skip
    assert ran.code == 0
    assert ran.summary["timeframe"] == "1hour"
    assert ran.summary["cash"] == 5000
    assert ran.summary["metrics"]["fees"] > 0
    assert ran.summary["settings"]["fees"].startswith("Percent(rate=0.001")


def test_a_symbol_without_bars_is_named_and_ends_with_3(algo: InProcess):
    """COIN was listed a month after the window ends."""
    words = ("algo", "backtest", "sma_cross", "-s", "AAPL,COIN")
    ran = algo(*words, "--start", "2020-06-01", "--end", "2021-03-01", "--json")
    assert ran.code == 3
    assert ran.summary["without_bars"] == ["COIN"]
    assert "COIN has no 1day bar in the window" in ran.summary["warnings"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("sma_cross", "-p", "fsat=3"), 2, "did you mean 'fast'"),
        (("sma_cross", "-p", "fast"), 2, "NAME=VALUE"),
        (("sma_cross", "-p", "fast=quick"), 2, "takes an int"),
        (("sma_cross", "-p", "fast=1"), 2, "at least 2"),
        (("sma_crss",), 2, "did you mean sma_cross"),
        (("nowhere.py",), 2, "no file nowhere.py"),
        (("sma_cross", "--fees", "cheap"), 2, "0.005/share"),
        (("sma_cross", "--slippage", "x"), 2, "volume"),
        (("sma_cross", "--cash", "0"), 2, "begin with more than 0"),
        (("sma_cross", "--leverage", "0"), 2, "leverage"),
        (("sma_cross", "--start", "2024-01-02", "--period", "1y"), 2, "one of them"),
        (("sma_cross", "--start", "yesteryear"), 2, "yesteryear"),
        (("sma_cross", "-t", "1fortnight"), 2, "1fortnight"),
        (("sma_cross", "-s", "NOSUCH", "--start", "2024-01-02"), 3, "NOSUCH"),
        (("sma_cross", "--html", "no/such/place.html", "--period", "6mo"), 2, "cannot write"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    algo: InProcess, words: tuple[str, ...], code: int, said: str
):
    wrong = algo("algo", "backtest", *words, "--json")
    assert wrong.code == code
    assert said in wrong.err
    assert wrong.err.count("\n") == 1
    assert wrong.summary["exit_code"] == code


def test_an_authors_mistake_is_named_by_file_and_line(algo: InProcess):
    write(algo, "faulty.py", strategy("ctx.order(self.size / 0)"))
    wrong = algo("algo", "backtest", "faulty.py", *PERIOD)
    assert wrong.code == 1
    said = "error: faulty.py:10: ZeroDivisionError: division by zero (in Mine at 2023-03-13 16:00"
    assert wrong.err == f"{said} New York)\n"
    assert "Traceback" in algo("algo", "backtest", "faulty.py", *PERIOD, "--debug").err
    write(algo, "peeks.py", strategy("ctx.close[0]"))
    peeks = algo("algo", "backtest", "peeks.py", *PERIOD, "--json")
    assert (peeks.code, peeks.summary["line"]) == (1, "peeks.py:10")
    write(algo, "nothing.py", strategy("pass", head="symbols = ()"))
    nothing = algo("algo", "backtest", "nothing.py", *PERIOD)
    assert (nothing.code, "--symbols AAPL" in nothing.err) == (2, True)


def test_a_server_that_is_away_ends_with_69(algo: InProcess):
    gone = algo(
        "algo", "backtest", "sma_cross", "--json",
        "--database-url", "postgresql://somebody:a-secret@127.0.0.1:1/x",
    )  # fmt: skip
    assert gone.code == 69
    assert "a-secret" not in gone.err + gone.out
    assert gone.summary["error"]["transient"] is True
    for words in (("list",), ("stop", "--all"), ("run", "sma_cross")):
        away = algo("algo", *words, "--database-url", "postgresql://a:b@127.0.0.1:1/x")
        assert away.code == 69, words


def interrupted(line: CommandLine, ready: str, *words: str) -> Finished:
    """Run a command and press Ctrl-C once it has written a file of that name."""
    running = line.start(*words)
    try:
        seen = threading.Event()
        path = line.directory / ready
        for _ in range(600):
            if path.exists() or running.poll() is not None:
                break
            seen.wait(0.05)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=30)
    finally:
        running.kill()
    return Finished(running.returncode, out, err)


ENDLESS = strategy("open('ready', 'w').close()\n        while True:\n            time.sleep(0.01)")


def test_ctrl_c_in_the_middle_of_a_back_test(process: CommandLine):
    write(process, "endless.py", ENDLESS)
    ended = interrupted(process, "ready", "algo", "backtest", "endless.py", *PERIOD)
    assert (ended.code, ended.out, ended.err) == (130, "", "interrupted\n")


def test_ctrl_c_in_the_middle_of_a_sweep_keeps_what_was_done(process: CommandLine):
    body = (
        "if self.size == 3:\n            open('ready', 'w').close()\n"
        "            while True:\n                time.sleep(0.01)\n        ctx.order_target(self.size)"
    )
    path = write(process, "slow.py", strategy(body))
    words = ("algo", "sweep", "slow.py", *PERIOD, "-p", "size=1:4", "--workers", "1")
    ended = interrupted(process, "ready", *words, "--store", "kept.jsonl")
    assert ended.code == 130
    assert "Traceback" not in ended.err
    assert (process.directory / "kept.jsonl").exists()
    assert path.exists()


# --------------------------------------------------------------------------------- algo check


def test_check_passes_what_is_honest(algo: InProcess):
    good = algo("algo", "check", "sma_cross", *PERIOD, "--cuts", "10")
    assert (good.code, good.err) == (0, "")
    assert good.out.rstrip().splitlines()[-1].startswith("passed: no bias found")
    record = algo("algo", "check", "sma_cross", *PERIOD, "--cuts", "10", "--json")
    assert (record.code, len(record.objects)) == (0, 1)
    assert record.summary["passed"] is True
    assert record.summary["cuts"] == 10


PEEKS = """\
from algorithms import Algorithm


def tomorrow(bars):
    found = bars.close.copy()
    found[:-1] = bars.close[1:]
    return found


class Peeks(Algorithm):
    symbols = ("AAPL",)
    indicators = {"tomorrow": tomorrow}

    def on_bar(self, ctx):
        ctx.order_target(10 if ctx.tomorrow[-1] > ctx.close[-1] else 0)
"""


def test_check_names_what_looks_ahead(algo: InProcess):
    write(algo, "peeks.py", PEEKS)
    caught = algo("algo", "check", "peeks.py", *PERIOD)
    assert caught.code == 3
    assert "BIAS: look-ahead, tomorrow" in caught.out
    assert "looks 1 bar ahead" in caught.out
    record = algo("algo", "check", "peeks.py", *PERIOD, "--json").summary
    assert [b["what"] for b in record["biases"]] == ["tomorrow", "orders"]
    assert record["biases"][0]["facts"]["bars_moved"] == 1


# --------------------------------------------------------------------------------- algo sweep


def test_sweep_tries_every_point_and_writes_its_files(algo: InProcess):
    words = ("algo", "sweep", "sma_cross", *PERIOD, "-p", "fast=5:15:5", "-p", "slow=20,40")
    more = ("--workers", "1", "--csv", "s.csv", "--heatmap", "h.html", "--metric", "return")
    shown = algo(*words, *more)
    assert shown.code == 0
    assert "6 points tried" in shown.out
    assert (algo.directory / "s.csv").read_text("utf-8").count("\n") == 7
    assert "plotly" in (algo.directory / "h.html").read_text("utf-8")
    rows = algo(*words, "--workers", "1", "--json", "--where", "fast * 2 < slow").objects
    assert [(r["fast"], r["slow"]) for r in rows[:-1]] == [(5, 20), (5, 40), (10, 40), (15, 40)]
    assert rows[-1]["points"] == 4
    best = max(rows[:-1], key=lambda row: row["sharpe"])
    assert rows[-1]["best"] == {"fast": best["fast"], "slow": best["slow"]}


def test_sweep_over_processes_runs_a_file_and_goes_on_from_its_store(process: CommandLine):
    write(process, "mine_to_sweep.py", HOLD)
    words = ("algo", "sweep", "mine_to_sweep.py", *PERIOD, "-p", "size=1:6", "--json")
    first = process(*words, "--workers", "2", "--store", "kept.jsonl").summary
    assert (first["points"], first["failed"], first["resumed"]) == (6, 0, 0)
    again = process(*words, "--workers", "2", "--store", "kept.jsonl").summary
    assert (again["points"], again["resumed"]) == (6, 6)


def test_a_point_that_fails_is_told_and_costs_no_other(algo: InProcess):
    write(algo, "picky.py", strategy("ctx.order(self.size) if self.size < 3 else 1 / 0"))
    ran = algo("algo", "sweep", "picky.py", *PERIOD, "-p", "size=1:4", "--workers", "1", "--json")
    assert (ran.code, ran.summary["failed"], ran.summary["points"]) == (3, 2, 4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("sma_cross",), "-p fast=10:30:5"),
        (("sma_cross", "-p", "fast=9:5"), "FIRST:LAST:STEP"),
        (("sma_cross", "-p", "fast=5:9:0"), "FIRST:LAST:STEP"),
        (("sma_cross", "-p", "fast=2:9000000"), "longer step"),
        (("sma_cross", "-p", "fast=5,x"), "takes an int"),
        (("sma_cross", "-p", "fast=5:9", "--where", "fast <"), "no condition"),
        (("sma_cross", "-p", "fast=5:9", "--where", "nope > 1"), "asks for 'nope'"),
        (("sma_cross", "-p", "fast=5:9", "--metric", "sharp"), "sharpe"),
    ],
)
def test_a_sweep_that_cannot_be_meant(algo: InProcess, words: tuple[str, ...], said: str):
    wrong = algo("algo", "sweep", *words)
    assert (wrong.code, wrong.out) == (2, "")
    assert said in wrong.err


# ----------------------------------------------------------------------- algo run, list, stop


def test_a_strategy_runs_live_is_listed_and_stopped(process: CommandLine, algo: InProcess):
    clock = "replay:2024-03-13T10:00:00-04:00@120"
    words = ("algo", "run", "sma_cross", "-t", "1min", "-p", "fast=2", "-p", "slow=3")
    running = process.start(*words, "--name", "Quick", "--clock", clock, "--json")
    assert running.stdout is not None
    try:
        began = json.loads(running.stdout.readline())
        assert began["running"] == ["Quick"]
        listed = _until_it_has_traded(algo)
        assert listed["wanted"] == "running"
        assert listed["state"] == "running"
        refused = algo("algo", "run", "sma_cross", "--name", "Quick")
        assert refused.code == 2
        assert "runs already" in refused.err
        stopped = algo("algo", "stop", "Quick", "--json")
        assert (stopped.code, stopped.summary["count"]) == (0, 1)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=30)
    finally:
        running.kill()
        running.communicate()
    assert running.returncode == 130
    last = [json.loads(line) for line in out.splitlines()]
    assert last[-2]["name"] == "Quick"
    assert last[-1]["fills"] >= 1
    assert "Traceback" not in err
    detail = algo("algo", "list", "Quick", "--json").objects[0]
    assert detail["wanted"] == "stopped"
    assert detail["source"] == "algorithms.library.sma_cross:SmaCross"
    assert detail["orders"][0]["symbol"] == "AAPL"
    shown = algo("algo", "list", "Quick")
    assert "its newest orders" in shown.out


def _until_it_has_traded(line: InProcess) -> dict[str, object]:
    pause = threading.Event()
    for _ in range(200):
        found = line("algo", "list", "--json").objects[0]
        if found.get("fills"):
            return found
        pause.wait(0.3)
    raise AssertionError(f"no fill: {found}")


def test_alpacas_paper_account_needs_its_keys_before_anything_is_registered(algo: InProcess):
    refused = algo("algo", "run", "sma_cross", "--venue", "alpaca", "--broker", "none")
    assert (refused.code, refused.out) == (78, "")
    assert "APCA_API_KEY_ID" in refused.err
    assert algo("algo", "list", "--json").summary["count"] == 0
    live = {"MARKETDATA_ALPACA_TRADING_URL": "https://api.alpaca.markets"}
    money = algo("algo", "run", "sma_cross", "--venue", "alpaca", **live)
    assert (money.code, "paper" in money.err) == (78, True)


def test_a_strategy_of_a_file_is_kept_by_its_whole_path(algo: InProcess):
    from algorithms.cli.live import _registrations

    path = write(algo, "mine_live.py", HOLD)
    arguments = (None, ["MSFT"], None, None, "paper", 1000.0, "0.1%", None, 1.0)
    (made,) = _registrations([str(path)], "Mine2", *arguments, ["max_daily_loss=50"])
    assert made.source == f"{path}:Mine"
    assert (made.name, made.symbols, made.cash) == ("Mine2", ("MSFT",), 1000.0)
    assert made.options["limits"]["max_daily_loss"] == 50
    assert made.options["costs"]["fees"] == {"model": "Percent", "rate": 0.001, "minimum": 0.0}


def test_lists_and_switches_of_nothing(algo: InProcess):
    none = algo("algo", "list")
    assert (none.code, "none was ever run live" in none.out) == (0, True)
    assert algo("algo", "list", "--json").summary["count"] == 0
    assert algo("algo", "stop", "--all", "--kill", "--reason", "fire").code == 0
    on = algo("algo", "list")
    assert "the kill switch is on: fire" in on.out
    assert algo("algo", "stop", "--all", "--release").code == 0
    assert algo("algo", "list", "--json").summary["kill_switch"] is False


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("list", "Nobody"), "no strategy is called 'Nobody'"),
        (("stop",), "say --all"),
        (("stop", "A", "--all"), "say --all"),
        (("stop", "A", "--flatten"), "--kill"),
        (("stop", "A", "--release"), "--all --release"),
        (("run", "sma_cross", "--venue", "nyse"), "one of: paper, alpaca"),
        (("run", "sma_cross", "--limit", "max_dayly_loss=5"), "did you mean max_daily_loss"),
        (("run", "sma_cross", "--limit", "max_daily_loss=x"), "max_daily_loss=NUMBER"),
        (("run", "sma_cross", "--limit", "max_daily_loss=-5"), "max_daily_loss"),
        (("run", "sma_cross", "pair", "--name", "x"), "of one strategy"),
        (("run", "sma_cross", "sma_cross"), "two strategies"),
        (("run", "-p", "fast=3"), "name its file"),
        (("run", "sma_cross", "--cash", "-1"), "more than 0"),
    ],
)
def test_live_commands_that_cannot_be_meant(algo: InProcess, words: tuple[str, ...], said: str):
    wrong = algo("algo", *words)
    assert (wrong.code, wrong.out) == (2, "")
    assert said in wrong.err
    assert wrong.err.count("\n") == 1


# ------------------------------------------------------------------------------------- words


def test_words_of_costs():
    assert fees_of(None) is None
    assert fees_of("none") == NoFees()
    assert fees_of("0.1%") == Percent(0.001)
    assert fees_of("0.1%,2") == Percent(0.001, 2.0)
    assert fees_of(" 0.005/SHARE,1 ") == PerShare(0.005, 1.0)
    assert slippage_of(None) is None
    assert slippage_of("none") == NoSlippage()
    assert slippage_of("2.5bp") == BasisPoints(2.5)
    assert slippage_of("volume") == VolumeShare()
    assert slippage_of("volume:0.1:0.2") == VolumeShare(0.1, 0.2)
    for wrong in ("x%", "-1%", "none,1", "1", "nan%"):
        with pytest.raises(RequestError):
            fees_of(wrong)
    for wrong in ("xbp", "-1bp", "volume:1:2:3", "volume:x"):
        with pytest.raises(RequestError):
            slippage_of(wrong)


def test_words_of_values():
    whole, broken, flag, word = Param(1), Param(1.0), Param(True), Param("a:b")
    for param in (whole, broken, flag, word):
        param.name = "p"
    assert values_of(whole, "5:15:5") == [5, 10, 15]
    assert values_of(whole, "5:14:5,3,5") == [5, 10, 3]
    assert values_of(whole, "1:3") == [1, 2, 3]
    assert values_of(broken, "0.1:0.5:0.2") == [0.1, 0.3, 0.5]
    assert values_of(flag, "true,no") == [True, False]
    assert values_of(word, "a:b,c") == ["a:b", "c"]
    with pytest.raises(ParameterError):
        values_of(whole, "1:2:0.5")


def test_conditions_see_parameters_and_nothing_else():
    class Point:
        fast, slow = 3, 9

    condition = condition_of("max(fast, 2) * 2 < slow", SmaCross)
    assert condition is not None
    assert condition(Point()) is True
    assert condition_of(None, SmaCross) is None
    with pytest.raises(AlgorithmError):
        condition_of("open('x')", SmaCross)


def test_json_goes_to_a_pipe_that_closes(process: CommandLine):
    ran = subprocess.run(
        f"{sys.executable} -m marketdata algo backtest sma_cross --trades --json --period 2y | head -n 1",
        shell=True, cwd=process.directory, env={**os.environ, **process.environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert json.loads(ran.stdout)["symbol"] == "AAPL"
    assert ran.stderr == ""
