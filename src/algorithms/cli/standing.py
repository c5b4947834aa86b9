"""What stands at a broker of a strategy that does not trade now: for ``marketdata algo list``."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from algorithms.live.journal import Journal
    from algorithms.live.records import Record


class Standing(NamedTuple):
    """Orders that wait at a broker, as the journal has them.

    Attributes
    ----------
    exits : int
        They protect a position, and stay.
    entries : int
        They would open one; none once whoever runs the strategy has taken them back.
    """

    exits: int
    entries: int


def standing(journal: Journal, record: Record) -> Standing | None:
    """Return what stands of a strategy at a broker; None where it has none."""
    from algorithms.live.hosting import PAPER
    from algorithms.live.journal_rows import ORDER_COLUMNS

    if record.registration.venue == PAPER:
        return None
    state, parent = ORDER_COLUMNS.index("state"), ORDER_COLUMNS.index("parent")
    found = [o for o in journal.orders(record.name, open_only=True) if o[state] == "open"]
    exits = sum(order[parent] is not None for order in found)
    return Standing(exits, len(found) - exits)


def sentence(record: Record, found: Standing | None) -> str | None:
    """Return what people should know of it: where a strategy trades, nothing."""
    from algorithms.live.records import Desired, Life

    trades = record.life not in (Life.STOPPED, Life.ERROR, Life.KILLED)
    if found is None or not any(found) or trades:
        return None
    words = []
    if found.exits:
        words.append(_count(found.exits, "protective exit"))
    if found.entries:
        words.append(_count(found.entries, "entry order"))
    several = sum(found) > 1
    text = f"{record.name}: {' and '.join(words)} stand{'' if several else 's'} at "
    text += record.registration.venue
    if found.entries and record.desired is Desired.STOPPED and record.runner is None:
        text += " -> marketdata algo run takes the entries back"
    return text


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
