"""One symbol Alpaca will not parse must not cost the rest of its batch their answer.

Alpaca refuses the whole of a multi-symbol request with 400 for one bad symbol. Where it names
the symbol, that one is taken out; where it does not, the batch is halved until it stands alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from marketdata.brokers.alpaca_wire import may_be_a_symbol, refused_by
from marketdata.errors import BrokerResponseError

_MOST_HALVINGS: Final = 64


def blames_the_request(error: BrokerResponseError) -> bool:
    """Whether the broker says that the request, and perhaps one of its symbols, is wrong."""
    return error.facts.get("status") in (400, 422)


class Narrowing:
    """Finds the symbols of a batch that make the broker refuse all of it."""

    def __init__(self, symbols: Sequence[str]) -> None:
        self.answered = False
        self._groups: list[list[str]] = [list(symbols)]
        self._refused: dict[str, str] = {}
        self._suspects: dict[str, BrokerResponseError] = {}
        self._halvings = 0

    def next_group(self) -> list[str] | None:
        return self._groups.pop() if self._groups else None

    def without(self, group: Sequence[str], error: BrokerResponseError) -> None:
        """Take out the symbols `error` names, or halve the group where it names none."""
        words = error.message
        named = refused_by(words, group)
        if named:
            self._refused.update(dict.fromkeys(named, words))
            rest = [s for s in group if s not in named]
            if rest:
                self._groups.append(rest)
        elif not may_be_a_symbol(words):
            raise error
        elif len(group) == 1:
            # Alone and refused: its fault if others are answered, else that of the request.
            self._suspects[group[0]] = error
        else:
            self._halvings += 1
            if self._halvings > _MOST_HALVINGS:
                raise error
            middle = len(group) // 2
            self._groups += [list(group[middle:]), list(group[:middle])]

    def pop_refused(self) -> dict[str, str]:
        refused, self._refused = self._refused, {}
        return refused

    def finish(self) -> dict[str, str]:
        """Return the refusals not handed out yet."""
        refused = self.pop_refused()
        for symbol, error in self._suspects.items():
            if not self.answered and "symbol" not in error.message.lower():
                raise error
            refused[symbol] = error.message
        return refused


def in_batches(symbols: Sequence[str], size: int, ask: Callable[[list[str]], None]) -> None:
    """Call `ask` for all symbols in sorted batches, without those the broker will not parse."""
    ordered = sorted(symbols)
    for at in range(0, len(ordered), size):
        narrowing = Narrowing(ordered[at : at + size])
        while (group := narrowing.next_group()) is not None:
            try:
                ask(group)
                narrowing.answered = True
            except BrokerResponseError as error:
                if not blames_the_request(error):
                    raise
                narrowing.without(group, error)
        narrowing.finish()
