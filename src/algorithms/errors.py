"""Errors of the engine, in marketdata's tree, so that one ``except md.MarketDataError`` catches all.

::

    MarketDataError
    └── AlgorithmError                  base of these
        ├── ParameterError              a value a strategy's parameter does not take
        ├── StrategyFileError           no strategy could be read from where it was said to be
        ├── OrderError                  an order that cannot be meant: no quantity, a price of 0
        ├── LookAheadError              something later than now was reached for
        ├── VenueError                  a venue refused, or could not be reached (then transient)
        │   └── RealMoneyError          an address that trades with real money
        └── JournalError                what the journal holds does not fit what is asked
"""

from __future__ import annotations

import marketdata as md


class AlgorithmError(md.MarketDataError):
    """Base class of the engine's errors."""


class ParameterError(AlgorithmError, md.RequestError):
    """A strategy's parameter was given a value it does not take, or one it does not have."""


class StrategyFileError(AlgorithmError, md.RequestError):
    """No strategy could be read from where it was said to be: no file, no class, bad syntax."""


class OrderError(AlgorithmError):
    """An order cannot be meant as it was given; nothing was sent."""


class LookAheadError(AlgorithmError):
    """A strategy reached for what lies later than now."""


class VenueError(AlgorithmError):
    """A venue refused an order, or could not be reached (``transient``)."""


class RealMoneyError(VenueError):
    """The address given trades with real money, which this release refuses."""

    default_cure = "use Alpaca's paper trading endpoint and its keys"


class JournalError(AlgorithmError):
    """What is stored of an algorithm's run does not fit what is asked of it."""
