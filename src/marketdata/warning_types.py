"""Warnings a caller may want to filter."""

from __future__ import annotations

from pathlib import Path
from typing import Final

LIBRARY: Final = (str(Path(__file__).parent),)
"""Where this library lies: a warning points at the first line of the caller outside it."""


class MarketDataWarning(UserWarning):
    """Base class of this library's warnings."""


class SplitInRangeWarning(MarketDataWarning):
    """Raw prices jump at a split inside the range that was read; said once a symbol and client."""


class MissingSymbolsWarning(MarketDataWarning):
    """``missing="skip"`` left out unknown symbols."""


class ProviderWarning(MarketDataWarning):
    """The chosen broker or feed is not the one this database was filled from."""


class FallbackWarning(MarketDataWarning):
    """The first broker of a chain cannot supply some symbols, and another one answers for them; said
    once a client for each reason."""


class DelayedDataWarning(MarketDataWarning):
    """The broker refuses this key the newest data: bars arrive late; said once a feed and client."""


class EndedSymbolWarning(MarketDataWarning):
    """What was subscribed to does not trade any more: nothing new will come of it."""


class ShortHistoryWarning(MarketDataWarning):
    """Indicators rest on less history than they need: the provider gives, or the store holds, no
    more."""
