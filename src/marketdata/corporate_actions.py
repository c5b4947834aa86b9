"""Corporate actions as every layer sees them: what happened to a share, when, and since when it is known.

Three families, by what they do to a series of prices:

- **share changes** (split, stock dividend) multiply shares: prices and volumes before the ex-date
  are rescaled by adjustment ``split``;
- **distributions** (cash dividend, spin-off) take value out of the share: prices before the ex-date
  are rescaled by adjustment ``dividend``;
- **identity changes** (name change, merger, delisting) end a symbol or go on under another one;
  they change no price.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from marketdata.types import Split


class ActionKind(StrEnum):
    """What kind of corporate action; the value is what the table and the frames say."""

    SPLIT = "split"
    """Forward or reverse: `new` shares for `old` ones."""
    STOCK_DIVIDEND = "stock_dividend"
    """`new` further shares of the same kind for each `old` ones held."""
    CASH_DIVIDEND = "cash_dividend"
    """`cash` a share; capital gains of funds too."""
    SPIN_OFF = "spin_off"
    """`new` shares of `other_symbol` for `old` ones held, which are kept."""
    MERGER = "merger"
    """The symbol ends at the ex-date; holders get `cash` a share and `new` shares of
    `other_symbol` for `old` ones, whichever are given."""
    NAME_CHANGE = "name_change"
    """From the ex-date on the same instrument trades as `other_symbol`."""
    DELISTING = "delisting"
    """The symbol ends at the ex-date and nothing takes its place (worthless, redeemed)."""
    OTHER = "other"
    """Known, without effect on stored series (rights, partial calls, unit splits)."""


SHARE_CHANGES: Final = frozenset({ActionKind.SPLIT, ActionKind.STOCK_DIVIDEND})
DISTRIBUTIONS: Final = frozenset({ActionKind.CASH_DIVIDEND, ActionKind.SPIN_OFF})
IDENTITY_CHANGES: Final = frozenset(
    {ActionKind.NAME_CHANGE, ActionKind.MERGER, ActionKind.DELISTING}
)


@dataclass(frozen=True, slots=True)
class CorporateAction:
    """One corporate action of one symbol, in the words of one provider.

    Instants are microseconds UTC; dates without a time are exchange midnights, the label of that
    session's daily bar.
    """

    symbol: str
    """The symbol before the action: whose earlier bars it concerns."""
    kind: ActionKind
    ex_date: int
    """First session that trades after it; of a name change, merger or delisting the first session
    under the new name, or without the old one."""
    id: str = ""
    """The provider's own id; empty where it gives none. Corrections keep it."""
    new: float | None = None
    old: float | None = None
    cash: float | None = None
    """Per share, on the share basis of the session before the ex-date; the currency of the prices."""
    other_symbol: str | None = None
    """New name, acquirer, or what is spun off."""
    process_date: int | None = None
    announced_us: int | None = None
    """When the public knew of it, where that is known."""
    special: bool = False
    """Of cash dividends: out of the usual order, capital gains too."""
    order: int | None = None
    """Place among the actions of one ex-date, where the source states it: lower ones come first,
    and a later one is on the share basis that the earlier ones leave."""
    fetched_us: int | None = None
    """Market time at which the provider first said so; set by the store."""

    @property
    def known_us(self) -> int:
        """Since when a reader of its time could have known: the announcement, else the ex-date,
        on which prices show it."""
        return self.ex_date if self.announced_us is None else self.announced_us


def names_of(action: CorporateAction) -> tuple[str, ...]:
    """Return the symbols an action is filed under: its own, of a name change the new one too."""
    if action.kind is ActionKind.NAME_CHANGE and action.other_symbol not in (None, action.symbol):
        assert action.other_symbol is not None
        return (action.symbol, action.other_symbol)
    return (action.symbol,)


def as_split(action: CorporateAction) -> Split | None:
    """Return a share change as a split: a stock dividend of 1 for 20 is 21 for 20. None for
    everything else."""
    if action.kind not in SHARE_CHANGES or action.new is None or action.old is None:
        return None
    added = action.old if action.kind is ActionKind.STOCK_DIVIDEND else 0.0
    return Split(action.ex_date, action.new + added, action.old)


def splits_of(actions: Iterable[CorporateAction]) -> list[Split]:
    """Return the share changes among `actions` as splits, ascending by ex-date."""
    found = [split for action in actions if (split := as_split(action)) is not None]
    return sorted(found, key=lambda s: s.ex_date)


def known_at(actions: Sequence[CorporateAction], moment_us: int) -> list[CorporateAction]:
    """Return the actions that had taken effect, and were known, at a moment."""
    return [a for a in actions if a.ex_date <= moment_us and a.known_us <= moment_us]
