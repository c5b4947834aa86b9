"""``get_actions``: what happened to shares, as the provider says."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from marketdata.adjust import FAMILIES
from marketdata.arguments import Symbols, adjustment_of, check_choice, deadline_of, symbol_list
from marketdata.connected import Connected
from marketdata.corporate_actions import ActionKind, CorporateAction
from marketdata.errors import InvalidRangeError
from marketdata.frames import ATTRS_KEY, Provenance
from marketdata.origin import shortened
from marketdata.ranges import Moment, read_as_of, read_moment
from marketdata.types import Adjustment

if TYPE_CHECKING:
    import pandas as pd

    from marketdata.action_steps import Step
    from marketdata.clock import Deadline
    from marketdata.links import Link

_NAT: Final = np.iinfo(np.int64).min
_KINDS: Final = tuple(str(kind) for kind in ActionKind)


class ActionCalls(Connected):
    """The calls about corporate actions."""

    def get_actions(
        self,
        symbols: Symbols,
        *,
        start: Moment | None = None,
        end: Moment | None = None,
        kinds: str | Collection[str] | None = None,
        as_of: Moment | None = None,
        timeout: float | None = None,
    ) -> pd.DataFrame:
        """Return the corporate actions of `symbols`; the broker is asked where it was not asked
        about these dates within the last twelve hours.

        Raw bars are stored as traded; ``adjustment=`` of `get_bars` applies these on read.

        Parameters
        ----------
        symbols : str or collection of str
        start, end : optional
            Ex-dates ``[start, end)``, as for `get_bars`. By default everything the broker has,
            announced ex-dates of the next 45 days included.
        kinds : str or collection of str, optional
            Only these: ``split``, ``stock_dividend``, ``cash_dividend``, ``spin_off``, ``merger``,
            ``name_change``, ``delisting``, ``other``.
        as_of : optional
            What was known at this moment: announced by then (where no announcement is known: with
            an ex-date by then), and as the provider had stated it by then. Its first statement
            counts as always known.
        timeout : float, optional
            Seconds the call may take in all; by default ``MARKETDATA_TIMEOUT``.

        Returns
        -------
        DataFrame
            One row an action, ascending by ex-date, then symbol; a RangeIndex. A rename is one
            row, whichever of its names is asked for.

            =============  =====================================================================
            symbol         before the action: the old name, the company that is taken over
            kind           one of the kinds above
            ex_date        naive date: the first session on the new basis, under the new name, or
                           without the symbol
            new, old       float: `new` shares for `old` (split), further for each `old`
                           (stock dividend), of `other_symbol` for `old` (spin-off, merger)
            cash           float, dollars a share on the basis of the session before
            other_symbol   new name, acquirer, what is spun off
            process_date   naive date at which the provider books it: a dividend's day of payment
            announced_at   UTC, where it is known
            fetched_at     UTC, when the provider first stated it as it is here (market time)
            id             the provider's own; empty where it has none
            special        bool: a dividend out of the usual order, a fund's capital gain
            doubt          empty, or why prices cannot be adjusted across the actions of this
                           ex-date: such a read is refused. A dividend whose reference close is
                           not stored yet is in no doubt
            =============  =====================================================================

            What does not apply is NaN, NaT or None.

        Raises
        ------
        UnknownSymbolError
            The broker says that there are no such symbols; all of them are named.
        BrokerError, DataUnavailableError
            The actions were never asked for and cannot be had; whether a retry helps, the error
            says.
        RequestError
            An argument cannot be right; a retry does not help.
        """
        names, _ = symbol_list(symbols)
        wanted = _kinds(kinds)
        deadline = deadline_of(timeout, self._settings.timeout)
        now_us = self._clock.now_us()
        moment, since, until = self._moments(as_of, start, end, now_us)
        runtime = self._runtime
        first = self._earliest() if since is None else since
        found = runtime.actions.checked(runtime.provider, names, first, deadline)
        self._refuse_unknown([name for name in names if not found[name]], deadline)
        if moment is not None:
            told = runtime.action_store.history(runtime.provider, names, moment)
            found = {s: [a for a in listed if a.known_us <= moment] for s, listed in told.items()}
        asked_for = [
            (name, a)
            for name, listed in found.items()
            for a in listed
            if a.kind in wanted
            and (since is None or a.ex_date >= since)
            and (until is None or a.ex_date < until)
        ]
        doubted = self._doubted(asked_for, now_us, deadline, moment)
        chosen = {
            (a.symbol, a.kind, a.ex_date, a.id, a.cash): (
                a,
                doubted.get((name, a.ex_date), "") if a.kind in FAMILIES["all"] else "",
            )
            for name, a in asked_for
        }
        rows = sorted(
            chosen.values(), key=lambda r: (r[0].ex_date, r[0].symbol, r[0].kind, r[0].id)
        )
        frame = _frame([action for action, _ in rows], [doubt for _, doubt in rows])
        frame.attrs["marketdata"] = {"provider": runtime.provider, "simulated": runtime.simulated}
        return frame

    def adjustment_steps(
        self,
        symbols: Symbols,
        *,
        adjustment: Adjustment = "split",
        start: Moment | None = None,
        end: Moment | None = None,
        as_of: Moment | None = None,
        timeout: float | None = None,
    ) -> pd.DataFrame:
        """Return what adjusted reads multiply raw bars by, ex-date by ex-date.

        A raw bar multiplied by the factors of every later ex-date is the bar that `get_bars`
        returns under the same `adjustment`: to the bit where one ex-date follows it, or where the
        factors are powers of two; else within 1e-15 relative for each, because a product of
        quotients is rounded more often than the quotient of products, which `new`, `old` and
        `kept` give to the bit. Multiplied by those up to some moment alone, it is the bar as
        prices stood at that moment.

        Of several brokers the first one that knows the symbol is asked. Bars that another one had
        to supply are adjusted by that one's actions, which may differ.

        Parameters
        ----------
        symbols : str or collection of str
        adjustment : {"split", "dividend", "all", "raw"}
            As for `get_bars`; of ``raw`` there is no row.
        start, end : optional
            Ex-dates ``[start, end)``, as for `get_bars`; by default all that the broker has.
            What is doubtful before `start`, or from `end` on, refuses nothing.
        as_of : optional
            By the actions that had taken effect and were known at this moment; now by default.
        timeout : float, optional
            Seconds the call may take in all; by default ``MARKETDATA_TIMEOUT``.

        Returns
        -------
        DataFrame
            One row for each symbol and ex-date with an effect, ascending by both; a RangeIndex.

            =============  =====================================================================
            symbol         as asked for
            timestamp      the ex-date: midnight of the exchange, ``datetime64[us, UTC]``; bars
                           labelled strictly before it are multiplied
            price_factor   float: of open, high, low, close and vwap; ``old / new * kept``
            volume_factor  float: of volume; ``new / old``
            new, old       float: `new` shares for `old` ones; 1.0 where their number stays
            kept           float: the share of the price that distributions leave; 1.0 without
            =============  =====================================================================

        Raises
        ------
        UnknownSymbolError
            The broker says that there are no such symbols; all of them are named.
        DataQualityError, DataUnavailableError
            What an adjusted read of these bars is refused for: the actions of an ex-date have no
            unambiguous factor. A retry does not help.
        BrokerError, StoreError
            The actions, or closes that a distribution is measured by, are not stored and could
            not be had; whether a retry helps, the error says.
        RequestError
            An argument cannot be right; a retry does not help.
        """
        names, _ = symbol_list(symbols)
        chosen = adjustment_of(adjustment)
        deadline = deadline_of(timeout, self._settings.timeout)
        now_us = self._clock.now_us()
        moment, since, until = self._moments(as_of, start, end, now_us)
        runtime = self._runtime
        # Of a bar just before the first ex-date; there is none before the earliest.
        first = self._earliest() if since is None else max(since - 1, self._earliest())
        steps: dict[str, Sequence[Step]] = {}
        rest = list(names) if chosen != "raw" else []
        told: list[Link] = []
        for link in runtime.links:
            if not rest:
                break
            asked = dict.fromkeys(rest, first)
            applied = link.adjuster.found(
                link.provider, link.feed, asked, now_us, deadline, chosen, moment, until_us=until
            )
            told.append(link)
            steps |= {symbol: factors.steps for symbol, factors in applied.factors.items()}
            rest = [symbol for symbol in rest if not steps.get(symbol)]
            # The bars of what this broker does not know are another one's.
            exists = link.verdicts.of(rest, deadline) if runtime.links[1:] else {}
            rest = [symbol for symbol in rest if exists.get(symbol) is False]
        self._refuse_unknown([name for name in names if not steps.get(name)], deadline)
        frame = _steps_frame(steps)
        frame.attrs[ATTRS_KEY] = Provenance(
            provider=" ".join(link.provider for link in told or runtime.links[:1]),
            symbols=shortened(names),
            adjustment=chosen,
            simulated=any(link.source.simulated for link in told or runtime.links[:1]),
        )
        return frame

    def _moments(
        self, as_of: Moment | None, start: Moment | None, end: Moment | None, now_us: int
    ) -> tuple[int | None, int | None, int | None]:
        """Return the moment whose knowledge is asked for, and the range of ex-dates."""
        calendar = self._calendar()
        moment = None if as_of is None else read_as_of(as_of, calendar, now_us)
        since = None if start is None else read_moment(start, calendar, now_us, "start")
        until = None if end is None else read_moment(end, calendar, now_us, "end")
        if since is not None and until is not None and since >= until:
            raise InvalidRangeError("end is not after start", cure="end is exclusive")
        return moment, since, until

    def _earliest(self) -> int:
        """Return the first moment that the broker can tell of."""
        runtime = self._runtime
        earliest = runtime.broker.capabilities(runtime.source.feed).earliest
        return max(earliest, self._calendar().first)

    def _refuse_unknown(self, without: Sequence[str], deadline: Deadline) -> None:
        """Refuse symbols that do not exist: of these nothing at all is known to have happened,
        and a slip of the pen is no company without a split."""
        runtime = self._runtime
        unknown = sorted(set(without).difference(runtime.known_symbols())) if without else []
        for link in runtime.links:
            exists = link.verdicts.of(unknown, deadline) if unknown else {}
            unknown = [symbol for symbol in unknown if exists[symbol] is False]
        if unknown:
            raise runtime.unknown(unknown, deadline, links=runtime.links)

    def _doubted(
        self,
        asked_for: Sequence[tuple[str, CorporateAction]],
        now_us: int,
        deadline: Deadline,
        as_of_us: int | None,
    ) -> dict[tuple[str, int], str]:
        """Return why prices cannot be adjusted, by the symbol asked for and ex-date."""
        names = dict.fromkeys(name for name, a in asked_for if a.kind in FAMILIES["all"])
        if not names:
            return {}
        link = self._runtime.links[0]
        found = link.adjuster.doubts(
            link.provider, link.feed, list(names), now_us, deadline, as_of_us
        )
        return {(doubt.symbol, doubt.ex_date): doubt.why for doubt in found}


def _kinds(kinds: str | Collection[str] | None) -> frozenset[str]:
    if kinds is None:
        return frozenset(_KINDS)
    words = [kinds] if isinstance(kinds, str) else list(kinds)
    for word in words:
        check_choice("kinds", word, _KINDS)
    return frozenset(words)


def _moment_index(values: Sequence[int | None]) -> pd.DatetimeIndex:
    import pandas as pd

    micros = np.array([_NAT if v is None else v for v in values], np.int64)
    return pd.DatetimeIndex(micros.view("datetime64[us]")).tz_localize("UTC")


def _steps_frame(found: Mapping[str, Sequence[Step]]) -> pd.DataFrame:
    import pandas as pd

    rows = [
        (symbol, step)
        for symbol in sorted(found)
        for step in found[symbol]
        if step.new != step.old or step.kept != 1
    ]
    terms = np.array([(s.new, s.old, s.kept) for _, s in rows], np.float64).reshape(-1, 3)
    new, old, kept = terms.T
    return pd.DataFrame(
        {
            "symbol": pd.array([symbol for symbol, _ in rows], dtype="str"),
            "timestamp": _moment_index([step.ex_date for _, step in rows]),
            "price_factor": old / new * kept,
            "volume_factor": new / old,
            "new": new.copy(),
            "old": old.copy(),
            "kept": kept.copy(),
        }
    )


def _frame(actions: list[CorporateAction], doubts: list[str]) -> pd.DataFrame:
    import pandas as pd

    moments = _moment_index

    def dates(values: list[int | None]) -> pd.DatetimeIndex:
        # Exchange midnights are four or five hours behind those of UTC.
        return moments(values).tz_convert("America/New_York").tz_localize(None)

    return pd.DataFrame(
        {
            "symbol": pd.array([a.symbol for a in actions], dtype="str"),
            "kind": pd.array([str(a.kind) for a in actions], dtype="str"),
            "ex_date": dates([a.ex_date for a in actions]),
            "new": np.array([a.new for a in actions], np.float64),
            "old": np.array([a.old for a in actions], np.float64),
            "cash": np.array([a.cash for a in actions], np.float64),
            "other_symbol": pd.array([a.other_symbol for a in actions], dtype="str"),
            "process_date": dates([a.process_date for a in actions]),
            "announced_at": moments([a.announced_us for a in actions]),
            "fetched_at": moments([a.fetched_us for a in actions]),
            "id": pd.array([a.id for a in actions], dtype="str"),
            "special": pd.array([a.special for a in actions], dtype="bool"),
            "doubt": pd.array(doubts, dtype="str"),
        }
    )
