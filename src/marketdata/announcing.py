"""The stores as the rest of the stack sees them: what others must know of is told before a commit.

`Adopting` records whose bars a database holds, `Announcing` has Redis forget what rests on other
corporate actions.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from marketdata.cache.indicators import announce_actions
from marketdata.corporate_actions import IDENTITY_CHANGES
from marketdata.pausing import ACTIONS_ANNOUNCED, ACTIONS_RECORDED, pause_point
from marketdata.warning_types import LIBRARY, ProviderWarning

if TYPE_CHECKING:
    from marketdata.cache import RedisCache
    from marketdata.corporate_actions import CorporateAction
    from marketdata.protocols import ActionChange, BeforeCommit, Commit
    from marketdata.sources import Source
    from marketdata.spans import Span
    from marketdata.store import PostgresStore
    from marketdata.types import SeriesKey

_SAME_MOMENT: Final = 1000
"""Microseconds in which what is computed cannot be told to be older."""


class Adopting:
    """The store as the fetchers see it: the first write records whose data this database holds.

    With several brokers that is the primary one's, whichever of them writes first; bars of the
    others beside them are what was asked for.
    """

    def __init__(self, store: PostgresStore, sources: Sequence[Source]) -> None:
        self._store = store
        self._sources = sources
        self._adopted = False
        self.states = store.states
        self.read = store.read
        self.read_planned = store.read_planned
        self.trail = store.trail

    @property
    def epoch(self) -> int:
        return self._store.epoch

    def commit(
        self, commits: Sequence[Commit], before_commit: BeforeCommit | None = None
    ) -> dict[SeriesKey, int]:
        primary = self._sources[0]
        if not self._adopted and not primary.simulated:
            # Simulated bars leave no mark: a later `auto` must not take them for what this
            # database is about.
            held = self._store.adopt(primary.provider, primary.feed)
            self._adopted = True
            if held not in [(source.provider, source.feed) for source in self._sources]:
                warnings.warn(
                    f"this database was filled from {held[0]}/{held[1]}; bars of "
                    f"{primary.provider}/{primary.feed} are kept beside them, apart",
                    ProviderWarning,
                    skip_file_prefixes=LIBRARY,
                )
        return self._store.commit(commits, before_commit)


class Announcing:
    """The action store as everybody sees it: what was computed with other actions is forgotten
    before a change of them is committed. An answer that says nothing new disturbs nothing."""

    def __init__(self, store: PostgresStore, cache: RedisCache) -> None:
        self._store = store
        self._cache = cache
        self.actions = store.actions
        self.history = store.history
        self.checked = store.checked

    def record(
        self,
        provider: str,
        actions: Mapping[str, Sequence[CorporateAction]],
        asked: Span,
        observed_us: int,
    ) -> list[ActionChange]:
        observed_us = self._after_earlier(provider, list(actions), observed_us)
        # A renamed instrument's bars are read under either name.
        others: dict[str, set[str]] = {}
        for action in (a for listed in actions.values() for a in listed):
            others.setdefault(action.symbol, {action.symbol}).add(
                action.other_symbol or action.symbol
            )

        def announce(changes: Sequence[ActionChange]) -> None:
            names = {n for c in changes for n in others.get(c.symbol, {c.symbol})}
            if any(c.kind in IDENTITY_CHANGES for c in changes):
                names |= set(actions)  # whoever was called so before, or is no longer
            announce_actions(self._cache, provider, sorted(names), observed_us)
            pause_point(ACTIONS_ANNOUNCED)

        changes = self._store.record(provider, actions, asked, observed_us, announce)
        pause_point(ACTIONS_RECORDED)
        return changes

    def _after_earlier(self, provider: str, symbols: Sequence[str], observed_us: int) -> int:
        """Return `observed_us`, or just after the last asking where that was at the same moment:
        market time may stand still, and what was computed before must be older than what is known
        now."""
        last = max((at for _, at in self.checked(provider, symbols).values()), default=0)
        return last + 1 if observed_us <= last < observed_us + _SAME_MOMENT else observed_us
