"""``find_symbols``: which symbols there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from marketdata.arguments import deadline_of
from marketdata.clock import from_micros
from marketdata.connected import Connected
from marketdata.errors import RequestError
from marketdata.frames import ATTRS_KEY, Provenance

if TYPE_CHECKING:
    import pandas as pd


class SymbolCalls(Connected):
    """The calls about symbols and names."""

    def find_symbols(
        self,
        text: str,
        *,
        limit: int = 20,
        active: bool | None = None,
        timeout: float | None = None,
    ) -> pd.DataFrame:
        """Return the symbols that a text may mean: by symbol, former symbol, name, near spelling.

        Searches what the broker lists, asked for once a day, and what is stored; where the broker
        does not answer, or has no such list (Yahoo), what is stored alone.

        Parameters
        ----------
        text : str
            A symbol, its beginning, words of a name, or nearly so: ``"FB"``, ``"meta plat"``,
            ``"APPL"``.
        limit : int
            Most rows.
        active : bool, optional
            True: only what trades, as far as is known; False: only what does not any more.
        timeout : float, optional
            Seconds the call may take in all (``MARKETDATA_TIMEOUT`` by default).

        Returns
        -------
        DataFrame
            One row an instrument, the best match first: ``symbol`` (today's), ``name``,
            ``exchange``, ``status`` (``active``, ``inactive``, ``delisted``, ``unknown``),
            ``former`` (earlier symbols, the newest first, separated by blanks), ``first_bar`` and
            ``last_bar`` (opens of the first and the last stored bar of any timeframe, UTC, NaT
            where none is stored). Empty where nothing is like the text.
            ``frame.attrs["marketdata"]`` says with ``listed_at`` when the broker last gave its
            list; empty where it never did, and only what is stored was searched.

        Raises
        ------
        RequestError
            An empty text, or a limit below 1; a retry does not help.
        StoreError
            A retry helps where it is transient.
        """
        from marketdata import symbol_search

        if not isinstance(text, str) or not text.strip():
            raise RequestError(
                "nothing to search for", cure='give a symbol or a name, such as "META" or "apple"'
            )
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise RequestError(f"limit={limit!r} is not a number of rows", cure="give 1 or more")
        deadline = deadline_of(timeout, self._settings.timeout)
        runtime = self._runtime
        found = symbol_search.find(runtime, text, limit, active, deadline)
        listed = runtime.identity_store.assets_checked(runtime.provider)
        frame = symbol_search.frame_of(found)
        frame.attrs[ATTRS_KEY] = Provenance(
            provider=runtime.provider,
            simulated=runtime.simulated,
            listed_at="" if listed is None else from_micros(listed).isoformat(),
        )
        return frame
