"""Every indicator with a definition of its own, and the default set."""

from __future__ import annotations

from typing import Final

from marketdata.indicators.averages import AVERAGES
from marketdata.indicators.definitions import Definition
from marketdata.indicators.motion import MOTION
from marketdata.indicators.oscillators import OSCILLATORS
from marketdata.indicators.volumes import VOLUMES

CATALOGUE: Final[dict[str, Definition]] = {
    definition.name: definition for definition in (*AVERAGES, *MOTION, *OSCILLATORS, *VOLUMES)
}

DEFAULT_NAMES: Final = (
    "rsi_14",
    "rsi_9",
    "sma_10",
    "sma_20",
    "sma_50",
    "sma_200",
    "ema_10",
    "ema_20",
    "ema_50",
    "macd_12_26_9",
    "bbands_20_2",
)

SPELLINGS: Final[dict[str, tuple[Definition, int]]] = {
    prefix: (definition, index)
    for definition in CATALOGUE.values()
    for index, prefix in enumerate(definition.spellings)
}
"""pandas-ta's column prefixes: ``BBU`` is the first output of ``bbands``."""
