"""Any pandas-ta indicator by name and parameters, measured before it is trusted.

pandas-ta states neither how many bars an indicator needs nor whether it looks ahead, so each is
tried once a process on generated bars (`probing`). `foreign` has the calls.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final

import numpy as np

from marketdata.errors import RequestError
from marketdata.indicators import probing
from marketdata.indicators.definitions import (
    UNBOUNDED,
    Definition,
    Indicator,
    Parameter,
    Scope,
    spelt,
)
from marketdata.indicators.foreign import (
    REFUSED,
    call,
    check,
    columns_read,
    is_number,
    misread,
    names,
    parameters,
    refuse,
    source,
    title,
)
from marketdata.indicators.inputs import Inputs, session_starts
from marketdata.indicators.spellings import FAMILIES
from marketdata.types import Floats

_COLUMNS_AHEAD: Final = {"ICS": "it looks ahead: the chikou span is a later close"}
_BY_SESSION: Final = {"pivots": 2, "vwap": 1}
"""What pandas-ta cuts by day, and how many whole sessions it needs."""


def _split(text: str) -> tuple[str | None, list[str]]:
    words = text.split("_")
    known = names() | set(REFUSED)
    for end in range(len(words), 0, -1):
        name = "_".join(words[:end])
        if name in known:
            return name, words[end:]
    return None, words


def knows(text: str, *, exactly: bool = False) -> bool:
    """Return whether `text` is, or begins with, the name of a pandas-ta indicator."""
    name, rest = _split(text)
    return name is not None and not (exactly and rest)


def by_position(text: str, *, asked: str) -> Indicator:
    """Return the indicator that `text` names: its parameters by position or as ``name=value``."""
    name, pieces = _split(text)
    assert name is not None
    refuse(name)
    rest = "_".join(pieces)
    named = rf"(?:^|_)({'|'.join(sorted(parameters(name), key=len, reverse=True))})=([^_=]+)"
    keywords = {key: _value(value) for key, value in re.findall(named, rest)}
    positions = re.sub(rf"({named})*$", "", rest)
    if "=" in positions:
        raise misread(name, asked, f"{positions!r} is not understood")
    return by_name(name, [_value(piece) for piece in positions.split("_") if positions], keywords)


def by_column(column: str) -> Indicator | None:
    """Return the indicator one of whose pandas-ta columns is `column`, and that column only.

    None where no indicator has such columns.

    Raises
    ------
    RequestError
        The column's name does not tell the parameters.
    """
    words = column.split("_")
    numbers = [_value(word) for word in words if is_number(word)]
    if words[0] == "CDL" and not numbers:
        return by_name("cdl_pattern", ["_".join(words[1:]).lower()], {})
    for end in range(len(words), 0, -1):
        prefix = "_".join(words[:end])
        name = FAMILIES.get(prefix, prefix.lower())
        if prefix in _COLUMNS_AHEAD:
            raise RequestError(
                f"pandas-ta's column {column!r} is not served: {_COLUMNS_AHEAD[prefix]}",
                cure=f"the other columns of {name} are: resolve({name!r})",
            )
        if name in names() or name in REFUSED:
            refuse(name)
            return _one_column(name, column, numbers)
    return None


def _one_column(name: str, column: str, numbers: Sequence[Parameter]) -> Indicator:
    spelling = probing.spelling(name, column)
    given = {key: value for key, value in zip(spelling, numbers, strict=False) if key is not None}
    columns: Sequence[str] = ()
    if len(spelling) == len(numbers):
        found = by_name(name, [], given)
        columns = probing.measure(name, found.keywords).columns
    if column not in columns:
        known = ", ".join(parameters(name))
        raise RequestError(
            f"pandas-ta's column {column!r} does not tell the parameters of {name}",
            cure=f"name them: {{{name!r}: {{...}}}} with {known}",
        )
    return replace(found, selected=(columns.index(column),))


def by_name(name: str, positions: Sequence[Any], keywords: Mapping[str, Any]) -> Indicator:
    """Return the indicator with parameters by position and by name.

    Raises
    ------
    RequestError
        It takes no such parameter, or looks ahead; a retry does not help.
    """
    refuse(name)
    known = parameters(name)
    if len(positions) > len(known):
        raise misread(name, name, f"it takes {len(known)} parameters, not {len(positions)}")
    given = dict(zip(known, positions, strict=False))
    for key, value in keywords.items():
        if key not in known or key in given:
            wrong = "is given twice" if key in given else "is none of its parameters"
            raise misread(name, name, f"{key!r} {wrong}")
        given[key] = value
    for key, value in given.items():
        check(name, key, value)
    stated = tuple(sorted(given.items(), key=lambda item: known.index(item[0])))
    definition = _definition(name, stated)
    return Indicator(
        definition, (), _member(name, known, given), tuple(range(len(definition.outputs))), stated
    )


def _member(name: str, known: Sequence[str], given: Mapping[str, Parameter]) -> str:
    """Return the canonical name: what is given without a hole by position, the rest by name."""
    pieces = [name]
    hole = False
    for key in known:
        if key not in given:
            hole = True
        elif hole:
            pieces.append(f"{key}={spelt(given[key])}")
        else:
            pieces.append(spelt(given[key]))
    return "_".join(pieces)


def _value(text: str) -> Parameter:
    if text in {"true", "false"}:
        return text == "true"
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    try:
        return float(text)
    except ValueError:
        return text


@lru_cache(maxsize=1024)
def _definition(name: str, keywords: tuple[tuple[str, Parameter], ...]) -> Definition:
    found = probing.measure(name, keywords)
    scope: Scope = "window"
    sessions = 0
    if name in _BY_SESSION:
        scope, sessions = "session", _BY_SESSION[name]
    elif found.stabilisation >= UNBOUNDED:
        scope, sessions = "series", 1

    def batch(inputs: Inputs, **given: Parameter) -> Sequence[Floats]:
        if scope == "series" and inputs.intraday:
            return _by_session(name, inputs, given, found)
        return _values(name, inputs, given, found)

    return Definition(
        name=name,
        outputs=found.outputs,
        arguments=(),
        columns=columns_read(name),
        kernel="pandas-ta",
        formula=title(name),
        source=source(name),
        batch=batch,
        lookback=lambda: found.lookback,
        stabilisation=lambda: found.stabilisation,
        sessions=lambda: sessions,
        scope=scope,
    )


def _values(
    name: str, inputs: Inputs, given: Mapping[str, Parameter], found: probing.Measured
) -> list[Floats]:
    """Return one array a column.

    Of fewer bars than pandas-ta answers for, those it knows all the same: bars are appended, which
    changes no value before them.
    """
    count = len(inputs)
    try:
        answer = call(name, inputs.lengthened(found.least), given)
    except Exception as error:
        raise RequestError(
            f"pandas-ta's {name} failed: {type(error).__name__}: {error}",
            cure="try other parameters",
        ) from error
    values: list[Floats] = []
    for column, first in zip(found.columns, found.unfounded, strict=True):
        row = np.full(count, np.nan)
        if answer is not None and column in answer:
            row[first:] = answer[column].to_numpy(np.float64)[first:count]
        values.append(row)
    return values


def _by_session(
    name: str, inputs: Inputs, given: Mapping[str, Parameter], found: probing.Measured
) -> list[Floats]:
    """Return values of what counts from a beginning: each session begins anew."""
    edges = [*np.unique(session_starts(inputs.sessions)).tolist(), len(inputs)]
    parts = [_values(name, inputs.part(low, high), given, found) for low, high in pairwise(edges)]
    return [np.concatenate([part[at] for part in parts]) for at in range(len(found.columns))]
