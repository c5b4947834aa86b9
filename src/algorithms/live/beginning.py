"""How algorithms begin: made, given their markets, brought to where the journal left them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import marketdata as md
from algorithms.errors import AlgorithmError
from algorithms.live.crew import Crew, Phase
from algorithms.live.hosting import PAPER, Hosted
from algorithms.live.records import Life
from algorithms.live.roster import unknown_symbols
from algorithms.live.stepped import Stepped
from algorithms.live.supervision import trace_of


class Beginning(Crew):
    """The part of a runner that lets algorithms begin, or begin again."""

    def _begin(self) -> None:
        """Prepare, warm up and build those that are to begin, or to begin again."""
        now = self._monotonic()
        busy = self._supervisor.busy
        for hosted in self._hosted.values():
            if hosted not in busy and hosted.course.begin_again(now):
                self._unstored.setdefault(hosted, None)
        fresh = [
            hosted
            for hosted in self._hosted.values()
            if hosted.course.life is Life.STARTING and hosted not in busy and hosted.engine is None
        ]
        for hosted in [h for h in fresh if h.venue not in (PAPER, *self._couriers)]:
            known = ", ".join((PAPER, *self._couriers))
            error = AlgorithmError(f"there is no venue {hosted.venue!r}", cure=f"there are {known}")
            self._failed(hosted, error, str(error), for_good=True)
            fresh.remove(hosted)
        if fresh:
            self._call({h: h.prepare for h in fresh if h.needs is None}, Phase.PREPARE)
            fresh = [h for h in fresh if h.needs is not None and h.course.life is Life.STARTING]
        if not fresh and not self._changed:
            self._store()
            return
        self._follow(fresh)
        fresh = [hosted for hosted in fresh if hosted.course.life is Life.STARTING]
        self._warm(fresh)
        self._call(
            {
                hosted: _build(hosted, self._roster.complete(hosted.needs))
                for hosted in fresh
                if hosted.needs is not None and hosted.course.life is Life.STARTING
            },
            Phase.BUILD,
        )
        self._store()

    def _follow(self, fresh: Sequence[Hosted]) -> None:
        """Follow what all watch; who watches what does not exist is given up."""
        left = list(fresh)
        while True:
            others = [h for h in self._hosted.values() if h.needs is not None and h not in fresh]
            needs = [hosted.needs for hosted in (*others, *left) if hosted.needs is not None]
            try:
                self._roster.follow(needs)
            except md.UnknownSymbolError as error:
                unknown = unknown_symbols(error)
                wrong = [h for h in left if h.needs and unknown.intersection(h.needs.symbols)]
                if not wrong:
                    raise
                for hosted in wrong:
                    left.remove(hosted)
                    self._failed(hosted, error, str(error), for_good=True)
            else:
                self._changed = False
                return

    def _warm(self, fresh: Sequence[Hosted]) -> None:
        """Give each its market, with history; who asks for what cannot be had, fails alone."""
        groups: dict[int, list[Hosted]] = {}
        for hosted in fresh:
            assert hosted.needs is not None
            hosted.market = self._roster.admit(hosted, self._roster.edge(hosted.needs))
            groups.setdefault(id(hosted.market), []).append(hosted)
        for group in groups.values():
            try:
                self._read(group)
            except md.MarketDataError as error:
                if error.transient:
                    raise
                for hosted in group:
                    try:
                        self._read([hosted])
                    except md.MarketDataError as own:
                        if own.transient:
                            raise
                        self._failed(hosted, own, trace_of(own), for_good=False)

    def _read(self, group: Sequence[Hosted]) -> None:
        market = group[0].market
        assert market is not None
        edges = [self._roster.edge(h.needs) for h in group if h.needs is not None]
        self._roster.warm(market, group, max(edges))


def _build(hosted: Hosted, now: int) -> Callable[[], Stepped]:
    return lambda: hosted.build(now)
