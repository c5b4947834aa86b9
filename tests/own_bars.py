"""A command line on a database of its own, and small files of bars, for export and import."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from marketdata.calendars import EXCHANGE, calendar_for
from marketdata.clock import from_micros, parse_clock, to_micros
from marketdata.protocols import Commit, ReadRequest, SeriesState
from marketdata.spans import Span
from marketdata.store import PostgresStore
from marketdata.types import MINUTE, VOLUME, Bars, SeriesKey, Timeframe
from tests.command_line import InProcess, on_servers

NOW = "2024-03-13T20:30:00-04:00"
"""A Wednesday evening: all sessions up to this day are over."""
EVERYTHING = Span(0, 2**51)
MINUTES = ("--timeframe", "1min", "--basis", "raw")
DAYS = ("--timeframe", "1day", "--basis", "raw")
HEAD = "symbol,timestamp,open,high,low,close,volume"


@pytest.fixture
def store(database_url: str) -> Iterator[PostgresStore]:
    """The store behind the command line."""
    with PostgresStore(database_url) as opened:
        yield opened


@pytest.fixture
def marketdata(
    tmp_path: Path,
    database_url: str,
    redis_db: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> InProcess:
    """A command line on an empty database with a schema; it asks nobody."""
    with PostgresStore(database_url) as store:
        store.migrate()
    line = on_servers(tmp_path, database_url, redis_db, broker="auto", clock=NOW)
    return InProcess(line, monkeypatch, capsys)


def stored(
    store: PostgresStore, symbol: str, timeframe: str = "1min", provider: str = "import"
) -> tuple[SeriesState, Bars]:
    """Return state and bars of a series whose feed is called as its provider."""
    key = SeriesKey(provider, provider, symbol, Timeframe(timeframe))
    return store.read([ReadRequest(key, EVERYTHING)])[key]


def moment(text: str) -> int:
    return to_micros(datetime.fromisoformat(text))


def csv_file(path: Path, rows: Sequence[str], head: str = HEAD) -> Path:
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def session_bars(day: str = "2024-03-12", count: int = 390, seed: int = 1) -> Bars:
    """Return regular minutes of a session, with six-digit vwaps and some fractional volumes."""
    calendar = calendar_for(EXCHANGE, parse_clock(NOW).now_us())
    at = calendar.session_at(int(np.datetime64(day, "us").astype(np.int64)) + 12 * 3_600_000_000)
    random = np.random.default_rng(seed)
    close = np.round(100 + np.cumsum(random.normal(0, 0.05, count)), 2)
    values = np.stack(
        [
            *(close, close + 0.02, close - 0.03, close),
            np.round(random.random(count) * 1000, 6),
            np.round(close + random.random(count) / 100, 6),
            random.integers(1, 90, count).astype(float),
        ]
    )
    return Bars(int(calendar.open[at]) + MINUTE * np.arange(count), values)


def minute_rows(count: int = 30, symbol: str = "AAPL", day: str = "2024-03-12") -> list[str]:
    """Return regular minutes as lines of a CSV file."""
    bars = session_bars(day, count)
    times = [from_micros(t).isoformat() for t in bars.timestamp.tolist()]
    return [
        f"{symbol},{time},{','.join(repr(float(v)) for v in row[: VOLUME + 1])}"
        for time, row in zip(times, bars.values.T, strict=True)
    ]


def commit_bars(
    store: PostgresStore, key: SeriesKey, bars: Bars, covered: Span | None = None
) -> None:
    """Store bars as a settled answer of the provider; of all their time by default."""
    whole = Span(int(bars.timestamp[0]), int(bars.timestamp[-1]) + key.timeframe.step)
    now = parse_clock(NOW).now_us()
    store.commit([Commit(key, bars, whole if covered is None else covered, now, now, now)])
