"""``marketdata subscribe``, ``unsubscribe`` and ``subscriptions``."""

from __future__ import annotations

from pathlib import Path

import pytest

from marketdata.cli.subscriptions import read_universe
from marketdata.errors import InvalidSymbolError, RequestError
from tests.command_line import InProcess, empty, marketdata

__all__ = ["empty", "marketdata"]


def changes(objects: list[dict[str, object]]) -> list[str]:
    return [f"{o['change']} {o['symbol']}" for o in objects[:-1]]


def test_the_nightly_universe(marketdata: InProcess) -> None:
    file = marketdata.directory / "universe.txt"
    file.write_text("# ours\nAAPL, msft\n\nBRK/B  # Berkshire\nKO\n")
    nightly = ("subscribe", "--file", "universe.txt", "--owner", "nightly", "--replace")
    assert marketdata("subscribe", "SPY", "KO", "--owner", "nightly").code == 0
    assert marketdata("subscribe", "SPY", "-t", "1day", "--owner", "other").code == 0

    planned = marketdata(*nightly, "--dry-run", "--json")
    assert planned.code == 0
    assert changes(planned.objects) == ["removed SPY", "added AAPL", "added BRK.B", "added MSFT"]
    assert planned.summary["dry_run"] is True
    assert planned.summary["kept"] == 1
    assert "would be 3 added, 1 removed, 1 kept" in planned.err
    listed = marketdata("subscriptions", "--owner", "nightly", "--json")
    assert [o["symbol"] for o in listed.objects[:-1]] == ["KO", "SPY"]

    done = marketdata(*nightly)
    assert (done.code, done.out) == (0, "- SPY\n+ AAPL\n+ BRK.B\n+ MSFT\n")
    assert done.err == "nightly, 1min: 3 added, 1 removed, 1 kept\n"
    again = marketdata(*nightly)
    assert (again.code, again.out) == (0, "")
    assert "0 added, 0 removed, 4 kept" in again.err
    every = marketdata("subscriptions", "--json").summary
    assert (every["subscriptions"], every["owners"], every["wanted"]) == (5, 2, 5)
    table = marketdata("subscriptions").out
    assert "nightly" in table
    assert "pinned" in table


def test_unsubscribing(marketdata: InProcess) -> None:
    marketdata("subscribe", "AAPL,MSFT", "KO", "--owner", "mine", "--priority", "-3")
    (first, *_) = marketdata("subscriptions", "--owner", "mine", "--json").objects
    assert (first["priority"], first["pinned"], first["seconds_left"]) == (-3, True, None)
    marketdata("subscribe", "AAPL", "--owner", "yours")
    done = marketdata("unsubscribe", "AAPL", "NVDA", "--owner", "mine")
    assert (done.code, done.out) == (0, "- AAPL 1min\n")
    assert marketdata("unsubscribe", "--all", "--owner", "mine", "--json").summary["removed"] == 2
    left = marketdata("subscriptions", "--json").objects[:-1]
    assert [(o["owner"], o["symbol"]) for o in left] == [("yours", "AAPL")]
    assert marketdata("unsubscribe", "--all", "--owner", "mine").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("subscribe", 2, "--file universe.txt"),
        ("subscribe --file absent.txt", 2, "absent.txt cannot be read: No such file"),
        ("subscribe --file wrong.txt", 2, "line 2: 'A!', line 3: '^GSPC'"),
        ("subscribe --file empty.txt --replace --owner nightly", 2, "unsubscribe --all"),
        ("subscribe AAPL -t 1M", 2, "1month"),
        ("subscribe AAPL --owner ", 2, "owner"),
        ("subscribe AAPL --priority 101", 2, "priority"),
        ("subscribe AAPL APPL MSFF", 3, "MSFF (did you mean MSFT"),
        ("unsubscribe", 2, "--all"),
        ("unsubscribe AAPL --all", 2, "--all"),
    ],
)
def test_errors_are_one_line_with_the_cure_and_change_nothing(
    marketdata: InProcess, arguments: str, code: int, said: str
) -> None:
    (marketdata.directory / "wrong.txt").write_text("AAPL\nMSFT, A!\n^GSPC # an index\n")
    (marketdata.directory / "empty.txt").write_text("# nothing yet\n\n")
    done = marketdata(*arguments.split(" "))
    assert done.code == code
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert said in done.err
    assert marketdata("subscriptions", "--json").summary["subscriptions"] == 0


def test_universe_files_of_every_kind(tmp_path: Path) -> None:
    file = tmp_path / "universe.csv"
    file.write_bytes(b"\xef\xbb\xbfAAPL,MSFT\r\nBRK-B\r\n\r\n#KO\r\nSPY")
    assert read_universe(file) == ["AAPL", "MSFT", "BRK.B", "SPY"]
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RequestError, match="not UTF-8"):
        read_universe(file)
    file.write_text("".join(f"bad! {n}\n" for n in range(20)))
    with pytest.raises(InvalidSymbolError, match="and 32 more"):
        read_universe(file)
