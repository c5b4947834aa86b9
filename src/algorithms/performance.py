"""What curves of account value say: growth, risk, drawdowns, and how they move with another. Pure.

Every function takes plain arrays and returns a float: NaN where the figure is not defined (no
volatility, fewer values than it needs, an account that was worth nothing), never an infinity.
Returns are simple ones, ``value / previous value - 1``. Fractions are fractions: 0.01 is 1 %.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from algorithms.run_record import Floats, Instants

DAY: Final = 86_400_000_000
YEAR: Final = 365.25 * DAY
"""Microseconds of a Julian year."""

MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
SESSIONS_A_YEAR: Final = 252.0
_PERIODS: Final = {"1week": 52.0, "1month": 12.0}
# New York is four or five hours behind UTC, so that from its midnight to 23:00 the date four hours
# behind UTC is its own all year: no table of clock changes is needed.
_BEHIND_UTC: Final = 4 * 3_600_000_000
# A return is a quotient near 1, known to some 1e-16: a deviation below this is no deviation.
_NO_DEVIATION: Final = 1e-14


def periods_a_year(timeframe: str) -> float:
    """Return how many values `session_values` takes a year: 252, of weeks 52, of months 12."""
    return _PERIODS.get(timeframe, SESSIONS_A_YEAR)


def exchange_days(times: Instants) -> Instants:
    """Return the exchange's date of each instant, as days since 1970."""
    return (times - _BEHIND_UTC) // DAY


def session_ends(times: Instants, timeframe: str) -> Instants | None:
    """Return the position of each exchange day's last moment; None where that is every one."""
    if timeframe in _PERIODS or not len(times):
        return None
    days = exchange_days(times)
    last = np.flatnonzero(days[1:] != days[:-1])
    if len(last) == len(times) - 1:
        return None
    return np.append(last, len(times) - 1)


def session_values(values: Floats, ends: Instants | None) -> Floats:
    """Return one value a session, after the one the curve begins with.

    A first session of several moments counts from its first value; one of a single moment is
    that value.
    """
    if ends is None:
        return values
    sampled = values[ends]
    return sampled if ends[0] == 0 else np.concatenate((values[:1], sampled))


def returns_of(values: Floats) -> Floats:
    """Return each value's simple return on the one before; NaN where that was not above 0."""
    before = values[:-1]
    if len(before) and not before.min() > 0:
        before = np.where(before > 0, before, np.nan)
    return values[1:] / before - 1.0


def growth(first: float, last: float) -> float:
    """Return ``last / first - 1``."""
    return last / first - 1.0 if first > 0 else math.nan


def cagr(total_return: float, years: float) -> float:
    """Return the compound annual growth rate.

    ``(1 + return) ** (1 / years) - 1``, years of 365.25 days between first and last moment: the
    geometric mean return of Bodie, Kane & Marcus, *Investments*, ch. 5. -1 for a total loss.
    """
    if not years > 0 or not total_return >= -1:
        return math.nan
    try:
        return float((1.0 + total_return) ** (1.0 / years)) - 1.0
    except OverflowError:
        return math.nan


def mean(values: Floats) -> float:
    return float(values.sum()) / len(values) if len(values) else math.nan


def deviation(values: Floats) -> float:
    """Return the sample standard deviation (n - 1); 0 where it is only rounding."""
    if len(values) < 2:
        return math.nan
    from_mean = values - mean(values)
    found = math.sqrt(float(np.dot(from_mean, from_mean)) / (len(values) - 1))
    return 0.0 if found < _NO_DEVIATION else found


def volatility(returns: Floats, periods: float) -> float:
    """Return the annualised standard deviation, ``std(returns) * sqrt(periods)``.

    Variances of independent returns add up (Hull, *Options, Futures, and Other Derivatives*,
    "Estimating volatility from historical data").
    """
    return deviation(returns) * math.sqrt(periods)


def sharpe(returns: Floats, periods: float, risk_free: float = 0.0) -> float:
    """Return the annualised Sharpe ratio.

    ``mean(r - rf) / std(r - rf) * sqrt(periods)`` with `rf` the annual `risk_free` rate over
    `periods`: Sharpe (1994), "The Sharpe Ratio", *Journal of Portfolio Management* 21(1), eq. 3-6.
    """
    spread = deviation(returns)
    if not spread > 0:
        return math.nan
    return (mean(returns) - risk_free / periods) / spread * math.sqrt(periods)


def sortino(returns: Floats, periods: float, risk_free: float = 0.0) -> float:
    """Return the annualised Sortino ratio; NaN where no return was below the target.

    ``mean(r - t) / sqrt(mean(min(r - t, 0) ** 2)) * sqrt(periods)``, the mean of the squares over
    all returns and the target `t` the risk-free rate: Sortino & Price (1994), "Performance
    Measurement in a Downside Risk Framework", *Journal of Investing* 3(3).
    """
    if len(returns) < 2:
        return math.nan
    excess = returns - risk_free / periods
    below = np.minimum(excess, 0.0)
    downside = math.sqrt(float(np.dot(below, below)) / len(below))
    if not downside > _NO_DEVIATION:
        return math.nan
    return mean(excess) / downside * math.sqrt(periods)


def calmar(growth_rate: float, deepest: float) -> float:
    """Return CAGR over the depth of the deepest drawdown, of the whole run.

    Young (1991), "Calmar Ratio: A Smoother Tool", *Futures* 20(1), who takes 36 months.
    """
    return growth_rate / -deepest if deepest < 0 else math.nan


def drawdown(values: Floats) -> Floats:
    """Return each value's distance below the highest before it, ``value / peak - 1``, 0 at peaks.

    Magdon-Ismail & Atiya (2004), "Maximum Drawdown", *Risk* 17(10). NaN where no value above 0
    has been.
    """
    peaks: Floats = np.maximum.accumulate(values)
    if len(peaks) and not peaks[0] > 0:
        peaks = np.where(peaks > 0, peaks, np.nan)
    below: Floats = values / peaks - 1.0
    return below


def drawdown_spells(below: Floats, times: Instants) -> tuple[Floats, Floats]:
    """Return depth and length in days of every drawdown, in order of time.

    A drawdown lasts from its peak to the first moment at or above it, or to the last moment.
    """
    at_peak = np.flatnonzero(below == 0)
    if not len(at_peak):
        return np.empty(0), np.empty(0)
    starts, ends = at_peak, np.append(at_peak[1:], len(below) - 1)
    depths = np.minimum.reduceat(below, starts)
    real = depths < 0
    lengths = (times[ends[real]] - times[starts[real]]) / DAY
    return depths[real], lengths


def beta(returns: Floats, market: Floats) -> float:
    """Return the slope of `returns` on `market`, ``cov(r, m) / var(m)``.

    Sharpe (1964), "Capital Asset Prices", *Journal of Finance* 19(3).
    """
    spread = deviation(market)
    if not spread > 0:
        return math.nan
    return _covariance(returns, market) / spread**2


def alpha(returns: Floats, market: Floats, periods: float, risk_free: float = 0.0) -> float:
    """Return the annual return that `beta` does not explain.

    ``(mean(r - rf) - beta * mean(m - rf)) * periods``: Jensen (1968), "The Performance of Mutual
    Funds in the Period 1945-1964", *Journal of Finance* 23(2), eq. 8.
    """
    slope, free = beta(returns, market), risk_free / periods
    return (mean(returns) - free - slope * (mean(market) - free)) * periods


def correlation(returns: Floats, market: Floats) -> float:
    """Return Pearson's coefficient, ``cov(r, m) / (std(r) * std(m))``."""
    both = deviation(returns) * deviation(market)
    if not both > 0:
        return math.nan
    return max(-1.0, min(1.0, _covariance(returns, market) / both))


def monthly_returns(times: Instants, values: Floats) -> dict[tuple[int, int], float]:
    """Return the return of each calendar month of the exchange, by (year, month).

    The first and the last month are what there was of them.
    """
    if not len(times):
        return {}
    months = exchange_days(times).astype("datetime64[D]").astype("datetime64[M]")
    last = np.append(np.flatnonzero(months[1:] != months[:-1]), len(months) - 1)
    closing = np.concatenate((values[:1], values[last]))
    numbers = months[last].astype(np.int64).tolist()
    changes = returns_of(closing).tolist()
    return {(1970 + n // 12, n % 12 + 1): r for n, r in zip(numbers, changes, strict=True)}


def _covariance(first: Floats, second: Floats) -> float:
    return float(np.dot(first - mean(first), second - mean(second))) / (len(first) - 1)
