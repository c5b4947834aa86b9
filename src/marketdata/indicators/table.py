"""The catalogue as a table."""

from __future__ import annotations

import pandas as pd

from marketdata.indicators import foreign
from marketdata.indicators.catalogue import CATALOGUE
from marketdata.indicators.definitions import UNBOUNDED, Definition
from marketdata.indicators.names import example, resolve

COLUMNS = (
    "name",
    "example",
    "outputs",
    "parameters",
    "lookback",
    "stabilisation",
    "begins",
    "kernel",
    "formula",
    "source",
)


def listing(*, pandas_ta: bool = True) -> pd.DataFrame:
    """Return every indicator that can be asked for, one row each.

    Parameters
    ----------
    pandas_ta : bool, optional
        Whether to list pandas-ta's indicators after the catalogue's own; importing pandas-ta takes
        a second.

    Returns
    -------
    DataFrame
        ``name``; ``example``, a name with all parameters; ``outputs``, its columns;
        ``parameters`` with defaults; ``lookback`` and ``stabilisation`` in bars, for the example:
        missing where a count begins with the series or session (see ``begins``), and for
        pandas-ta's, which are measured when first used; ``kernel``: talib, own or pandas-ta;
        ``formula`` and its public ``source``.
    """
    rows = [_row(definition) for definition in CATALOGUE.values()]
    if pandas_ta:
        rows += [_foreign(name) for name in foreign.served() if name not in CATALOGUE]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.astype({"lookback": "Int64", "stabilisation": "Int64"})


def _row(definition: Definition) -> dict[str, object]:
    (member,) = resolve(example(definition))
    bounded = member.stabilisation < UNBOUNDED
    return {
        "name": definition.name,
        "example": member.name,
        "outputs": " ".join(member.columns),
        "parameters": ", ".join(f"{a.name}={a.default:g}" for a in definition.arguments),
        "lookback": member.lookback,
        "stabilisation": member.stabilisation if bounded else pd.NA,
        "begins": definition.scope,
        "kernel": definition.kernel,
        "formula": definition.formula,
        "source": definition.source,
    }


def _foreign(name: str) -> dict[str, object]:
    return {
        "name": name,
        "example": name,
        "outputs": pd.NA,
        "parameters": ", ".join(foreign.parameters(name)),
        "lookback": pd.NA,
        "stabilisation": pd.NA,
        "begins": pd.NA,
        "kernel": "pandas-ta",
        "formula": foreign.title(name),
        "source": foreign.source(name),
    }
