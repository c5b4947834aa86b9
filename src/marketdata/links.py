"""One broker of the chain with everything that works on it: its key, its reader, its actions.

A `wiring.Runtime` has one link for each broker that ``MARKETDATA_BROKER`` names, the primary one
first. Every link reads and writes the same store and cache, under keys of its own provider and
feed: bars of two links never meet in one series.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from marketdata.actions import Actions
from marketdata.adjusting import Adjuster
from marketdata.fetching import Fetcher
from marketdata.instrument_closes import InstrumentCloses
from marketdata.instrument_reading import InstrumentReader
from marketdata.latest import LatestReader
from marketdata.reader import Reader
from marketdata.types import MINUTE
from marketdata.verdicts import Verdicts

if TYPE_CHECKING:
    from marketdata.calendars import TradingCalendar
    from marketdata.clock import Clock
    from marketdata.identities import Identities
    from marketdata.protocols import (
        ActionStore,
        BarCache,
        BarStore,
        Broker,
        FlightLog,
        IdentityStore,
    )
    from marketdata.sources import Source


@dataclass(frozen=True, slots=True)
class Common:
    """What all links of one runtime share."""

    flights: FlightLog
    cache: BarCache
    actions: ActionStore
    assets: IdentityStore
    identities: Identities
    clock: Clock
    calendar: Callable[[], TradingCalendar]


class Link:
    """One broker and what reads through it.

    Attributes
    ----------
    source : Source
        Its kind, and the provider and feed of its keys.
    series_reader : Reader
        Reads each symbol's own series.
    reader : InstrumentReader
        What calls read with: each symbol stands for the instrument that holds it.
    """

    def __init__(self, source: Source, broker: Broker, store: BarStore, common: Common) -> None:
        clock, calendar = common.clock, common.calendar
        self.source = source
        self.broker = broker
        self.clock = clock
        self.calendar = calendar
        self.verdicts = Verdicts(broker)
        self.actions = Actions(common.actions, broker, clock, calendar)
        self.latest = LatestReader(broker, clock)
        self.fetcher = Fetcher(
            store, common.flights, common.cache, broker, self.verdicts, clock, calendar
        )
        self.series_reader = Reader(
            store, common.cache, broker, self.fetcher, self.verdicts, clock, calendar
        )
        self.reader = InstrumentReader(
            self.series_reader,
            common.identities,
            common.assets,
            self.actions,
            common.actions,
            broker,
            self.verdicts,
            clock,
            calendar,
        )
        self.actions.on_ended = self.reader.find_successors
        self.closes = InstrumentCloses(
            common.identities, store, self.series_reader, broker, calendar
        )
        self.adjuster = Adjuster(self.actions, common.actions, self.reader, self.closes, calendar)

    @property
    def provider(self) -> str:
        return self.source.provider

    @property
    def feed(self) -> str:
        return self.source.feed

    def delayed(self, feed: str) -> bool:
        """Whether the broker refuses this key the most recent data."""
        return self.broker.capabilities(feed).settle_delay > 5 * MINUTE

    def __repr__(self) -> str:
        return f"<link {self.source.kind}: {self.provider}/{self.feed}>"
