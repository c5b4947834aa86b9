"""The progress line: silent for a while, and cheap until it is shown."""

from __future__ import annotations

import pytest

from marketdata import progress as module
from marketdata.keeping import FetchTrace
from marketdata.progress import progress


@pytest.mark.parametrize(("patience", "counted"), [(3600.0, 0), (0.0, 1)])
def test_what_is_to_come_is_counted_when_it_is_shown(
    patience: float,
    counted: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    calls: list[int] = []

    def expected() -> int:
        calls.append(1)
        return 1_234

    monkeypatch.setattr(module, "_PATIENCE", patience)
    with progress("on", "AAPL", expected) as show:
        assert show is not None
        trace = FetchTrace()
        show(trace)
        trace.bars = 617
        show(trace)
    assert len(calls) == counted
    assert capsys.readouterr().out == ""


def test_nothing_is_counted_or_shown_where_nobody_looks():
    def expected() -> int:
        raise AssertionError("nobody looks")

    with progress("off", "AAPL", expected) as show:
        assert show is None
