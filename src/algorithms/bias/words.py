"""Moments and numbers as reports say them."""

from __future__ import annotations

import math

import pandas as pd

from algorithms.hours import EXCHANGE_ZONE


def stamp(instant: int) -> pd.Timestamp:
    """Return microseconds UTC as a timestamp."""
    return pd.Timestamp(instant, unit="us", tz="UTC")


def iso(instant: int) -> str:
    """Return microseconds UTC as ISO 8601."""
    return str(stamp(instant).isoformat())


def moment_text(instant: int) -> str:
    """Return an instant for people: New York, to the minute."""
    return f"{stamp(instant).tz_convert(EXCHANGE_ZONE):%Y-%m-%d %H:%M} New York"


def number_text(value: float) -> str:
    """Return a value for people."""
    return "none" if math.isnan(value) else f"{value:.6g}"
