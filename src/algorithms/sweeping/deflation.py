"""How much of the best Sharpe ratio of many is luck: the deflated Sharpe ratio. Pure.

Bailey & Lopez de Prado (2014), "The Deflated Sharpe Ratio: Correcting for Selection Bias, Backtest
Overfitting, and Non-Normality", *Journal of Portfolio Management* 40(5), 94-107. Its Sharpe ratios
are those of one period; annual ones are divided by the root of the periods a year first.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final

import numpy as np

from algorithms.run_record import Floats

EULER: Final = float(np.euler_gamma)
_NORMAL: Final = NormalDist()


def skewness(returns: Floats) -> float:
    """Return the third standardised moment, ``mean((r - m)**3) / sd**3``; 0 for a normal one.

    Joanes & Gill (1998), "Comparing measures of sample skewness and kurtosis", *The Statistician*
    47(1): their g1.
    """
    return _standardised(returns, 3)


def kurtosis(returns: Floats) -> float:
    """Return the fourth standardised moment, ``mean((r - m)**4) / sd**4``; 3 for a normal one."""
    return _standardised(returns, 4)


def _standardised(returns: Floats, power: int) -> float:
    if len(returns) < 2:
        return math.nan
    apart = returns - returns.mean()
    square = apart * apart
    variance = float(square.mean())
    if not variance > 1e-28:
        return math.nan
    raised = square * (apart if power == 3 else square)
    return float(raised.mean()) / math.pow(variance, power / 2)


def expected_best(variance: float, trials: int) -> float:
    """Return the highest Sharpe ratio to be expected of `trials` strategies without any skill.

    ``sqrt(V) * ((1 - g) * Z(1 - 1/N) + g * Z(1 - 1/(N*e)))``, with `V` the variance of the trials'
    Sharpe ratios, `g` Euler's constant and `Z` the normal quantile: eq. 1 of the paper.
    """
    if trials < 2 or not variance >= 0:
        return 0.0
    high = _NORMAL.inv_cdf(1 - 1 / trials)
    higher = _NORMAL.inv_cdf(1 - 1 / (trials * math.e))
    return math.sqrt(variance) * ((1 - EULER) * high + EULER * higher)


def deflated_sharpe(
    sharpe: float,
    *,
    observations: float,
    skew: float,
    kurt: float,
    variance: float,
    trials: int,
) -> float:
    """Return the probability that a strategy picked from many has skill at all.

    ``Phi((SR - SR0) * sqrt(T - 1) / sqrt(1 - skew * SR + (kurt - 1) / 4 * SR**2))`` with `SR0` of
    `expected_best`: eq. 2 of the paper.

    Parameters
    ----------
    sharpe : float
        Of one period, not annual.
    observations : float
        Returns it was computed from.
    skew, kurt : float
        Of these returns; a normal distribution has 0 and 3.
    variance : float
        Of the Sharpe ratios (of one period) of all trials.
    trials : int
        How many were tried; the paper means independent ones. Neighbouring points of a grid are
        not, so that counting each errs on the side of caution.

    Returns
    -------
    float
        In ``[0, 1]``; above 0.95 is usually asked for. NaN where it is not defined.
    """
    spread = 1 - skew * sharpe + (kurt - 1) / 4 * sharpe * sharpe
    if not (observations > 1 and spread > 0):
        return math.nan
    beyond = sharpe - expected_best(variance, trials)
    return _NORMAL.cdf(beyond * math.sqrt(observations - 1) / math.sqrt(spread))
