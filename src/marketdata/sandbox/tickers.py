"""Which instrument a symbol names, and from when to when: renames, ends, symbols used again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date, timedelta

from marketdata.sandbox.universe import Listing, listing_of

WHOLE = "="
"""Before a listing's own symbol: its whole history, whatever it was called."""


@dataclass(frozen=True, slots=True)
class Held:
    """A symbol names `listing` from the session of `first` on, up to that of `until`, exclusive."""

    symbol: str
    listing: Listing
    first: date
    until: date | None = None

    def covers(self, day: date) -> bool:
        return self.first <= day and (self.until is None or day < self.until)


class Tickers:
    """Who holds which symbol. Without any change a symbol names its own listing for ever."""

    def __init__(self) -> None:
        self._changed: dict[str, list[Held]] = {}

    def held(self, symbol: str) -> list[Held]:
        """Return what `symbol` has named, ascending; ``=KO`` is the whole history of one listing."""
        if symbol.startswith(WHOLE):
            return self._whole(symbol.removeprefix(WHOLE))
        found = self._changed.get(symbol)
        if found is not None:
            return found
        listing = listing_of(symbol)
        return [] if listing is None else [Held(symbol, listing, listing.listed)]

    def holder(self, symbol: str, day: date) -> Held | None:
        """Return what `symbol` names on `day`, or named last before it."""
        earlier = [h for h in self.held(symbol) if h.first <= day]
        return earlier[-1] if earlier else None

    def names(self, listing: Listing) -> list[Held]:
        """Return what a listing has been called, ascending."""
        found = [h for each in self._changed.values() for h in each if h.listing is listing]
        if listing.symbol not in self._changed and listing_of(listing.symbol) is listing:
            found.append(Held(listing.symbol, listing, listing.listed))
        return sorted(found, key=lambda h: h.first)

    def name_on(self, listing: Listing, day: date) -> str:
        """Return what a listing was called on `day`, or at its ends."""
        names = self.names(listing)
        earlier = [h for h in names if h.first <= day]
        return (earlier[-1] if earlier else names[0]).symbol if names else listing.symbol

    def _whole(self, own: str) -> list[Held]:
        for held in (h for each in self._changed.values() for h in each):
            if held.listing.symbol == own:
                names = self.names(held.listing)
                return [Held(WHOLE + own, held.listing, names[0].first, names[-1].until)]
        return [replace(h, symbol=WHOLE + own) for h in self.held(own)]

    # ---------------------------------------------------------------------------- changes

    def rename(self, old: str, new: str, day: date) -> None:
        """Let what `old` names be called `new` from `day` on.

        Where `old` names nothing, the instrument is the one of `new`, which then had the old name
        before. Where `new` names something else on that day, that something is given up for good.
        """
        if not self.held(old):
            mine = [h for h in self.held(new) if h.covers(day)]
            if not mine:
                raise ValueError(f"neither {old} nor {new} is listed on {day}")
            self._changed[old] = [replace(mine[-1], symbol=old, until=day)]
            self._changed[new] = [*self._ended(new, day), replace(mine[-1], first=day)]
            return
        mine = [h for h in self.held(old) if h.covers(day)]
        if not mine:
            raise ValueError(f"{old} is not listed on {day}")
        begun = Held(new, mine[-1].listing, day, mine[-1].until)
        self._changed[new] = [*self._ended(new, day), begun]
        self._changed[old] = [h if h != mine[-1] else replace(h, until=day) for h in self.held(old)]

    def _ended(self, symbol: str, day: date) -> list[Held]:
        """Return what `symbol` named and no longer does on `day`."""
        return [h for h in self.held(symbol) if h.until is not None and h.until <= day]

    def end(self, symbol: str, day: date) -> None:
        """Let `symbol` name nothing from `day` on."""
        self._changed[symbol] = [
            replace(h, until=day) if h.covers(day) else h for h in self.held(symbol)
        ]

    def begin(self, symbol: str, day: date, like: str) -> None:
        """Let `symbol` name a new instrument from `day` on, with figures like those of `like`."""
        model = listing_of(like)
        if model is None:
            raise ValueError(f"no such symbol: {like}")
        listing = replace(model, symbol=f"{symbol}@{day}", listed=day, splits=())
        self._changed[symbol] = [*self._ended(symbol, day), Held(symbol, listing, day)]

    def listed_between(self, symbol: str) -> tuple[tuple[date, date | None], ...]:
        """Return the spans in which `symbol` named something, where that has ever changed."""
        return tuple((h.first, h.until) for h in self._changed.get(symbol, []))

    def changed(self) -> list[str]:
        """Return the symbols of which something has changed."""
        return sorted(self._changed)


def day_before(day: date) -> date:
    return day - timedelta(days=1)
