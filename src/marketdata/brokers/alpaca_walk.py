"""One walk over the pages of Alpaca's multi-symbol bars, and what each page proves. Pure.

Source: Alpaca market-data OpenAPI, ``GET /v2/stocks/bars``: results are sorted by symbol, then by
time; ``limit`` counts bars over all symbols; a page may be short; only a null token is the end;
``start`` and ``end`` are both inclusive; ``asof=-`` skips the mapping of renamed symbols.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from marketdata.brokers.alpaca_wire import parse_bars
from marketdata.calendars import TradingCalendar
from marketdata.clock import from_micros
from marketdata.errors import BrokerResponseError
from marketdata.protocols import BarsPage, BarsRequest
from marketdata.quality import NO_TIMESTAMP, on_grid
from marketdata.spans import Span
from marketdata.types import SECOND, Bars, Timeframe

PAGE_ROWS: Final = 10_000
TIMEFRAMES: Final = {Timeframe.MIN_1: "1Min", Timeframe.DAY_1: "1Day"}


class PageWalk:
    """Parameters of the next page, and the reading of the one that came.

    Parameters
    ----------
    symbols : sequence of str
        Part of the request's symbols. They are asked in sorted order, so that the order asked, the
        order answered and that of keys in a JSON object can only be the same.
    request : BarsRequest
        The rest of the request.
    calendar : TradingCalendar
        Knows which instants can label a daily bar.
    """

    def __init__(
        self, symbols: Sequence[str], request: BarsRequest, calendar: TradingCalendar
    ) -> None:
        self.symbols = sorted(symbols)
        self.begun = False
        self.finished = False
        self._request = request
        self._calendar = calendar
        self._wanted = frozenset(symbols)
        self._token: str | None = None
        self._seen: set[str] = set()
        self._until: dict[str, int] = {}
        self._held: dict[str, list[Bars]] = {}
        self._disordered: set[str] = set()
        self._open: str | None = None  # the symbol the previous page ended in

    # ------------------------------------------------------------------------------ asking

    def params(self) -> dict[str, str | int]:
        """Return the query of the next page."""
        span = self._request.span
        query: dict[str, str | int] = {
            "symbols": ",".join(self.symbols),
            "timeframe": TIMEFRAMES[self._request.timeframe],
            "start": _rfc3339(span.start),
            "end": _rfc3339(self._last_label()),
            "limit": PAGE_ROWS,
            "adjustment": "raw",
            "asof": "-",
            "feed": self._request.feed,
            "sort": "asc",
        }
        if self._token is not None:
            query["page_token"] = self._token
        return query

    def _last_label(self) -> int:
        """Return the last instant inside the span that a bar can carry.

        For daily bars that is a midnight: an `end` later that day would ask for the last minutes,
        which some subscriptions refuse, and would change nothing.
        """
        span = self._request.span
        last = -(-span.end // SECOND) * SECOND - SECOND
        if not self._request.timeframe.intraday:
            session = self._calendar.session_at(last)
            if session >= 0 and self._calendar.midnight[session] >= span.start:
                return int(self._calendar.midnight[session])
        return last

    # ----------------------------------------------------------------------------- reading

    def take(self, payload: object) -> BarsPage:
        """Return the page in `payload`, with what it adds to what is known completely.

        Raises
        ------
        BrokerResponseError
            Not a page of bars (transient), or a token that would end nowhere (not transient).
            Nothing of this page is taken; the pages before it stay proven.
        """
        rows, token = self._unwrap(payload)
        self.begun = True
        rejected: dict[str, int] = {}
        wanted = {symbol: raw for symbol, raw in rows.items() if symbol in self._wanted}
        strange = sum(len(raw) for symbol, raw in rows.items() if symbol not in wanted)
        if strange:
            rejected["wrong_symbol"] = strange
        # Parsed all together: a page of five hundred symbols holds one or two bars of each.
        everything = parse_bars([bar for raw in wanted.values() for bar in raw])
        parsed = _shares(everything, wanted)
        known = {s: self._until.get(s, self._request.span.start) for s in parsed}
        # A symbol without rows says nothing of where the page stands in the order of symbols.
        filled = [symbol for symbol, raw in rows.items() if raw]
        proven = self._prove(filled, parsed, final=token is None)
        self._token, self.finished = token, token is None
        since = max(known.values(), default=self._request.span.start)
        if self._all_inside(everything, since):
            inside: Mapping[str, Bars] = parsed
        else:
            inside = {s: self._inside(bars, known[s], rejected) for s, bars in parsed.items()}
        for symbol, bars in inside.items():
            self._held.setdefault(symbol, []).append(bars)
        return BarsPage(self._release(), proven, rejected=rejected)

    def _unwrap(self, payload: object) -> tuple[Mapping[str, list[Any]], str | None]:
        if not isinstance(payload, Mapping):
            raise _not_a_page("the answer is not an object")
        rows = payload.get("bars")
        if not isinstance(rows, Mapping):
            raise _not_a_page(f"bars is {_shown(rows)}")
        for symbol, raw in rows.items():
            if not isinstance(raw, list):
                raise _not_a_page(f"bars of {symbol} is {_shown(raw)}")
        if "next_page_token" not in payload:
            raise _not_a_page("next_page_token is missing")
        token = payload["next_page_token"]
        if token is None:
            return rows, None
        if not isinstance(token, str) or not token or token in self._seen:
            what = "repeats" if token else "is empty"
            raise BrokerResponseError(
                f"alpaca: the page token {what}: the walk would never end",
                cure="what the finished pages prove is kept; report it to the broker",
            )
        self._seen.add(token)
        return rows, token

    def _all_inside(self, bars: Bars, since: int) -> bool:
        labels = bars.timestamp
        start = max(self._request.span.start, since)
        return not len(labels) or bool(
            labels.min() >= start and labels.max() < self._request.span.end
        )

    def _inside(self, bars: Bars, known: int, rejected: dict[str, int]) -> Bars:
        """Return the bars in the span that no page before has proven; count the others."""
        span, labels = self._request.span, bars.timestamp
        keep = (labels >= max(span.start, known)) & (labels < span.end)
        if keep.all():
            return bars
        readable = labels != NO_TIMESTAMP
        repeated = (labels >= span.start) & (labels < known)
        reasons = {
            "unreadable": ~readable,
            "out_of_order": repeated,
            "out_of_window": readable & ~keep & ~repeated,
        }
        for reason, lost in reasons.items():
            if lost.any():
                rejected[reason] = rejected.get(reason, 0) + int(np.count_nonzero(lost))
        return bars.take(keep)

    def _release(self) -> dict[str, Bars]:
        """Hand out the held bars that lie in what is proven by now; the others wait for that."""
        ready: dict[str, Bars] = {}
        for symbol, parts in list(self._held.items()):
            bars = Bars.concat(parts)
            until = self._until.get(symbol, self._request.span.start)
            known = None if until == self._request.span.end else bars.timestamp < until
            if known is None or known.all():
                del self._held[symbol]
            else:
                self._held[symbol] = [bars.take(~known)]
                bars = bars.take(known)
            if len(bars):
                ready[symbol] = bars
        return ready

    # ----------------------------------------------------------------------------- proving

    def _prove(
        self, names: list[str], parsed: Mapping[str, Bars], *, final: bool
    ) -> dict[str, Span]:
        """Return the spans that this page adds.

        Conservative: a page whose symbols or bars are out of order proves nothing beyond the
        symbols before it, until the final page proves everything.
        """
        end = self._request.span.end
        proven: dict[str, Span] = {}
        again = [s for s in names if self._until.get(s) == end and s != self._open]
        if again:
            raise BrokerResponseError(
                f"alpaca: {', '.join(again[:5])} came again after a later symbol",
                cure="the answer contradicts the documented order; report it to the broker",
            )
        if final:
            self._add(self.symbols, end, proven)
        elif names and names == sorted(names):
            whole = [s for s in names[:-1] if s in self._wanted]
            if self._open is not None and self._open < names[0]:
                whole.append(self._open)
            self._add(whole, end, proven)
            last = names[-1]
            self._open = last if last in self._wanted else None
            if self._open is not None:
                self._add([last], self._known_until(last, parsed[last]), proven)
        elif names:
            self._open = None
        return proven

    def _add(self, symbols: Sequence[str], until: int, proven: dict[str, Span]) -> None:
        for symbol in symbols:
            start = self._until.get(symbol, self._request.span.start)
            if until > start:
                proven[symbol] = Span(start, until)
                self._until[symbol] = until

    def _known_until(self, symbol: str, bars: Bars) -> int:
        """Return the end of the last bar of the page's last symbol, or the span's start."""
        span, labels = self._request.span, bars.timestamp
        if not len(labels) or bool((labels[1:] < labels[:-1]).any()):
            self._disordered.add(symbol)
        if symbol in self._disordered:
            return span.start
        last = labels[-1:]
        timeframe = self._request.timeframe
        if not span.start <= last[0] < span.end or not on_grid(last, timeframe, self._calendar)[0]:
            return span.start
        return min(int(last[0]) + timeframe.step, span.end)


def _shares(bars: Bars, rows: Mapping[str, list[Any]]) -> dict[str, Bars]:
    """Return each symbol's share of the bars of all `rows`, as views."""
    shares = {}
    at = 0
    for symbol, raw in rows.items():
        end = at + len(raw)
        shares[symbol] = Bars(bars.timestamp[at:end], bars.values[:, at:end])
        at = end
    return shares


def _rfc3339(micros: int) -> str:
    return from_micros(micros).strftime("%Y-%m-%dT%H:%M:%SZ")


def _not_a_page(what: str) -> BrokerResponseError:
    return BrokerResponseError(f"alpaca: not a page of bars: {what}", transient=True)


def _shown(value: object) -> str:
    return "null" if value is None else type(value).__name__
