"""Which request meets which fault."""

import json

import pytest

from marketdata.errors import RequestError
from marketdata.sandbox.faults import Fault, FaultPlan, Row
from marketdata.sandbox.spoil import spoil

BARS = "/v2/stocks/bars?symbols=AAPL"


def kinds(plan: FaultPlan, *targets: str) -> list[str | None]:
    return [None if (f := plan.take(t)) is None else f.kind for t in targets]


def test_the_nth_matching_request_and_so_many_after_it():
    plan = FaultPlan()
    fault = plan.add("status", match="/bars", nth=2, times=2)
    assert kinds(plan, BARS, "/v2/clock", BARS, BARS, BARS) == [
        None,
        None,
        "status",
        "status",
        None,
    ]
    assert (fault.seen, fault.fired) == (4, 2)


def test_times_none_never_ends_and_clear_ends_it():
    plan = FaultPlan()
    plan.add("reset", times=None)
    assert kinds(plan, BARS, BARS, BARS) == ["reset"] * 3
    plan.clear()
    assert kinds(plan, BARS) == [None]


def test_every_fault_counts_a_request_that_another_has_met():
    plan = FaultPlan()
    plan.add("status", nth=1)
    plan.add("html", nth=2)
    assert kinds(plan, BARS, BARS, BARS) == ["status", "html", None]


def test_a_rate_limit_holds_until_its_reset():
    plan = FaultPlan()
    fault = plan.add("rate_limit", seconds=60)
    assert kinds(plan, BARS, BARS, BARS) == ["rate_limit"] * 3
    fault.blocked_until = 0
    assert kinds(plan, BARS) == [None]


@pytest.mark.parametrize("settings", [{"kind": "nonsense"}, {"kind": "bad_rows", "rows": ["odd"]}])
def test_unknown_names_are_refused(settings):
    with pytest.raises(RequestError, match="unknown"):
        Fault(**settings)


def page(symbols: int = 1, rows: int = 20) -> bytes:
    row = [
        {
            "t": f"2024-03-05T14:{30 + i}:00Z",
            "o": 5,
            "h": 6,
            "l": 4,
            "c": 5,
            "v": 9,
            "n": 1,
            "vw": 5,
        }
        for i in range(rows)
    ]
    bars = {f"S{n:04d}": row for n in range(symbols)}
    return json.dumps({"bars": bars, "next_page_token": "abc"}).encode()


def test_bad_rows_leave_the_others_alone():
    rows: tuple[Row, ...] = (
        "nan",
        "negative_volume",
        "off_grid",
        "duplicate",
        "unsorted",
        "wrong_symbol",
        "missing_keys",
        "high_below_low",
        "zero_price",
        "infinite",
        "null",
        "out_of_window",
        "open_above_high",
    )
    spoilt = json.loads(spoil(Fault("bad_rows", rows=rows), page(), {}))["bars"]
    assert sorted(spoilt) == ["S0000", "WRONG"]
    good = json.loads(page())["bars"]["S0000"]
    untouched = [r for r in spoilt["S0000"] if r in good]
    assert len(untouched) == 20 - 10
    assert len(spoilt["S0000"]) == 21


@pytest.mark.parametrize(
    ("kind", "expected"), [("empty_token", ""), ("same_token", "mine"), ("bars_null", "abc")]
)
def test_tokens(kind, expected):
    spoilt = json.loads(spoil(Fault(kind), page(), {"page_token": "mine"}))
    assert spoilt["next_page_token"] == expected
    assert (spoilt["bars"] is None) == (kind == "bars_null")
