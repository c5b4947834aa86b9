"""How faults spoil a page of bars that would have been right."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from marketdata.sandbox.faults import Fault

Page = dict[str, Any]
Rows = list[dict[str, Any]]


def spoil(fault: Fault, body: bytes, params: Mapping[str, str]) -> bytes:
    """Return `body`, the JSON of a page of bars, as `fault` leaves it."""
    if fault.kind == "json":
        return body[: len(body) * 2 // 3]
    if fault.kind not in ("bars_null", "empty_token", "same_token", "bad_rows", "forming"):
        return body
    page: Page = json.loads(body)
    if fault.kind == "bars_null":
        page["bars"] = None
    elif fault.kind == "empty_token":
        page["next_page_token"] = ""
    elif fault.kind == "same_token":
        page["next_page_token"] = params.get("page_token") or page.get("next_page_token")
    elif fault.kind == "forming":
        for rows in _series(page).values():
            _add_forming(rows)
    else:
        _spoil_rows(page, fault)
    return json.dumps(page).encode()


def _series(page: Page) -> dict[str, Rows]:
    bars = page.get("bars")
    return bars if isinstance(bars, dict) else {"": bars or []}


def _spoil_rows(page: Page, fault: Fault) -> None:
    rows = next((r for r in _series(page).values() if len(r) > len(fault.rows) + 1), None)
    if rows is None:
        return
    damage: dict[str, dict[str, Any]] = {
        "nan": {"c": float("nan")},
        "null": {"c": None},
        "infinite": {"h": float("inf")},
        "negative_volume": {"v": -5},
        "zero_price": {"o": 0, "h": 0, "l": 0, "c": 0},
    }
    for at, kind in enumerate(fault.rows, start=1):
        row = rows[at]
        if kind in damage:
            row.update(damage[kind])
        elif kind == "high_below_low":
            row["h"], row["l"] = row["l"] - 1, row["h"] + 1
        elif kind == "open_above_high":
            row["o"] = row["h"] + 0.01
        elif kind == "off_grid":
            row["t"] = _moved(row["t"], seconds=23)
        elif kind == "out_of_window":
            row["t"] = _moved(row["t"], days=-3650)
        elif kind == "missing_keys":
            row.pop("n")
            row.pop("vw")
    # These move rows about, so they come after the damage by position.
    if "duplicate" in fault.rows:
        rows.append(rows[-1] | {"c": rows[-1]["l"]})
    if "unsorted" in fault.rows:
        rows[0], rows[-1] = rows[-1], rows[0]
    if "wrong_symbol" in fault.rows and isinstance(page.get("bars"), dict):
        page["bars"]["WRONG"] = [dict(rows[0])]


def _add_forming(rows: Rows) -> None:
    if rows:
        rows.append(rows[-1] | {"t": _moved(rows[-1]["t"], minutes=1)})


def _moved(moment: str, **delta: float) -> str:
    there = datetime.fromisoformat(moment) + timedelta(**delta)
    return there.strftime("%Y-%m-%dT%H:%M:%SZ")
