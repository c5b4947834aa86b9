"""`sessions`: when the exchange trades, without any server."""

from datetime import UTC, date, datetime

import pandas as pd
import pytest

import marketdata as md
from marketdata.clock import FixedClock
from marketdata.config import Settings
from tests.shared_data import SHARED, needs_shared_data


@pytest.fixture
def client() -> md.Client:
    settings = Settings.load(broker="sandbox", database_url="postgresql://nowhere.invalid/none")
    return md.Client(settings, clock=FixedClock(datetime(2024, 7, 5, 15, 0, tzinfo=UTC)))


def test_a_week_with_a_half_day_and_a_holiday(client: md.Client):
    found = client.sessions("2024-07-01", "2024-07-08")
    assert [str(d.date()) for d in found.index] == [
        "2024-07-01", "2024-07-02", "2024-07-03", "2024-07-05",
    ]  # fmt: skip
    assert found["half_day"].tolist() == [False, False, True, False]
    assert found.loc["2024-07-03", "open"] == pd.Timestamp("2024-07-03T09:30-04:00")
    assert found.loc["2024-07-03", "close"] == pd.Timestamp("2024-07-03T13:00-04:00")
    assert found.loc["2024-07-05", "close"] == pd.Timestamp("2024-07-05T16:00-04:00")
    assert found.index.name == "session"
    assert pd.DatetimeIndex(found.index).tz is None
    assert [str(t) for t in found.dtypes] == ["datetime64[us, UTC]"] * 2 + ["bool"]
    assert found.attrs["marketdata"] == {"exchange": "XNYS", "zone": "America/New_York"}


def test_the_range_is_that_of_daily_bars(client: md.Client):
    def dates(start, end) -> list[str]:
        return [str(d.date()) for d in client.sessions(start, end).index]

    assert dates("2024-07-02", "2024-07-03") == ["2024-07-02"], "the end is exclusive"
    assert dates(date(2024, 7, 2), "2024-07-02T00:00:01-04:00") == ["2024-07-02"]
    assert dates("2024-07-02T09:30-04:00", "2024-07-04") == ["2024-07-03"]
    assert dates("today", "2024-07-09") == ["2024-07-05", "2024-07-08"], "sessions to come too"
    assert dates("-2d", "now") == ["2024-07-03", "2024-07-05"]
    nothing = client.sessions("2024-07-06", "2024-07-08")
    assert len(nothing) == 0
    assert (nothing.dtypes == client.sessions("2024-07-01", "2024-07-08").dtypes).all()


def test_hours_follow_the_change_of_clocks(client: md.Client):
    opens = client.sessions("2024-03-08", "2024-03-12")["open"]
    assert [t.hour for t in opens] == [14, 13]


def test_half_days_are_those_of_the_exchange_since_1980(client: md.Client):
    found = client.sessions("1980-01-01", "2024-12-31")
    assert len(found) == 11_344
    local = found["close"].dt.tz_convert("America/New_York")
    early = local.dt.hour < 16
    assert (found["half_day"] == early).all()
    assert 70 < early.sum() < 90


@needs_shared_data
def test_sessions_are_those_of_another_source(client: md.Client):
    theirs = pd.read_csv(SHARED / "calendars" / "xnys_1990-2023.csv.gz", index_col=0)
    ours = client.sessions("1990-01-01", "2023-01-14")
    assert [f"{d.date()}T00:00:00Z" for d in ours.index] == theirs.index.tolist()
    for column in ("open", "close"):
        assert (ours[column].array == pd.to_datetime(theirs[column]).array).all()


def test_another_exchange_has_its_own_hours(client: md.Client):
    found = client.sessions("2023-12-27", "2023-12-30", exchange="xlon")
    assert found["half_day"].tolist() == [False, False, True]
    assert found["close"].iloc[0] == pd.Timestamp("2023-12-27T16:30Z")
    reykjavik = client.sessions("2024-07-01", "2024-07-03", exchange="XICE")
    assert not reykjavik["half_day"].any(), "15:30 is no early close there"


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        (("2024-07-02", "2024-07-02"), md.InvalidRangeError),
        (("2024-07-02", "2024-07-01"), md.InvalidRangeError),
        (("1975-01-01", "1985-01-01"), md.InvalidRangeError),
        (("2024-07-02", "2031-01-01"), md.InvalidRangeError),
        (("2024-07-02T00:00", "2024-07-03"), md.NaiveTimestampError),
        (("yesterday", "2024-07-03"), md.RequestError),
    ],
)
def test_what_would_be_half_an_answer_is_refused(client: md.Client, asked, error):
    with pytest.raises(error) as caught:
        client.sessions(*asked)
    assert caught.value.cure


@pytest.mark.parametrize("exchange", ["XXXX", 5, ""])
def test_an_unknown_exchange_is_refused(client: md.Client, exchange):
    with pytest.raises(md.RequestError, match="exchange"):
        client.sessions("2024-07-01", "2024-07-08", exchange=exchange)


def test_the_frame_is_the_callers_own(client: md.Client):
    found = client.sessions("2024-07-01", "2024-07-08")
    found["half_day"] = True
    found.loc[:, "open"] = pd.NaT
    again = client.sessions("2024-07-01", "2024-07-08")
    assert not again["half_day"].all()
    assert again["open"].notna().all()
