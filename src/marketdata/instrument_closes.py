"""Reference closes of instruments: each under the symbol of its day."""

from __future__ import annotations

from collections.abc import Callable

from marketdata.calendars import TradingCalendar
from marketdata.clock import Deadline
from marketdata.identities import Identities
from marketdata.protocols import BarStore, Broker
from marketdata.reader import Reader
from marketdata.reference_closes import Absent, Days, Found, ReferenceCloses


class InstrumentCloses(ReferenceCloses):
    """`ReferenceCloses` of renamed symbols too: what a dividend under the old name is measured by
    is a close under the old name.

    Parameters
    ----------
    reader : Reader
        Reads series, not instruments: whose day it is, is decided here.
    """

    def __init__(
        self,
        identities: Identities,
        store: BarStore,
        reader: Reader,
        broker: Broker,
        calendar: Callable[[], TradingCalendar],
    ) -> None:
        super().__init__(store, reader, broker, calendar)
        self._identities = identities

    def find(
        self,
        provider: str,
        feed: str,
        days: Days,
        deadline: Deadline,
        *,
        absent: Absent = "fetch",
        as_of_us: int | None = None,
    ) -> Found:
        """See `ReferenceCloses.find`."""
        changed = self._identities.changed(provider, days, as_of_us)
        if not changed:
            return self.under(provider, feed, days, deadline, absent=absent, as_of_us=as_of_us)
        places = {
            symbol: {
                label: changed[symbol].symbol_at(label) if symbol in changed else symbol
                for label in labels
            }
            for symbol, labels in days.items()
        }
        asked: dict[str, set[int]] = {}
        for by_label in places.values():
            for label, name in by_label.items():
                asked.setdefault(name, set()).add(label)
        told = self.under(provider, feed, asked, deadline, absent=absent, as_of_us=as_of_us)
        return {
            symbol: {
                label: told[name][label]
                for label, name in by_label.items()
                if label in told.get(name, {})
            }
            for symbol, by_label in places.items()
        }
