"""Reading how an indicator is asked for: ``rsi_14``, ``RSI_14``, ``{"rsi": {"length": 14}}``."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

from marketdata.errors import RequestError
from marketdata.indicators import foreign, passthrough
from marketdata.indicators.catalogue import CATALOGUE, DEFAULT_NAMES, SPELLINGS
from marketdata.indicators.definitions import (
    Argument,
    Definition,
    Indicator,
    Parameter,
    member_name,
    spelt,
)

Spec = str | Mapping[str, Any] | Indicator
LONGEST: Final = 10_000
"""The greatest length a catalogue entry takes, in bars."""


def resolve(specs: Spec | Sequence[Spec] | None = None) -> tuple[Indicator, ...]:
    """Return the indicators that `specs` name, in the order asked, none twice.

    Parameters
    ----------
    specs : str, mapping, or sequence of them, optional
        None: the default set. ``"rsi_14"`` and ``"macd_12_26_9"``: a name and its parameters by
        position, the rest by default. ``"RSI_14"``, ``"BBU_20_2.0"``: a column of pandas-ta, which
        gives that one column under its name here (``bbands_20_2_upper``). ``{"bbands": {"length":
        20, "std": 2.5}}``: parameters by name. What the catalogue does not have is pandas-ta's.

    Raises
    ------
    RequestError
        An unknown name, with the nearest known ones, or parameters it does not take; a retry does
        not help.
    """
    if specs is None:
        return default_set()
    if isinstance(specs, str | Mapping | Indicator):
        specs = [specs]
    if not isinstance(specs, Iterable):
        raise _not_a_spec(specs)
    found: list[Indicator] = []
    for spec in specs:
        found.extend(_read(spec))
    return _without_repeats(found)


@lru_cache(maxsize=1)
def default_set() -> tuple[Indicator, ...]:
    """Return the default set."""
    return tuple(_named(name) for name in DEFAULT_NAMES)


def restored(name: str, selected: tuple[int, ...]) -> Indicator:
    """Return the indicator of a canonical name, for pickle."""
    return replace(_named(name), selected=selected)


def _read(spec: Spec) -> list[Indicator]:
    if isinstance(spec, Indicator):
        return [spec]
    if isinstance(spec, str):
        return [_named(spec.strip())]
    if isinstance(spec, Mapping):
        return [_with_parameters(name, given) for name, given in spec.items()]
    raise _not_a_spec(spec)


def _not_a_spec(spec: object) -> RequestError:
    return RequestError(
        f"an indicator is a name or a mapping, not {type(spec).__name__}",
        cure='write "rsi_14" or {"rsi": {"length": 14}}',
    )


def _without_repeats(found: Sequence[Indicator]) -> tuple[Indicator, ...]:
    """Drop columns that were given already."""
    given: set[str] = set()
    kept = []
    for indicator in found:
        fresh = tuple(
            i
            for i, column in zip(indicator.selected, indicator.columns, strict=True)
            if column not in given
        )
        given.update(indicator.columns)
        if fresh:
            kept.append(
                indicator if fresh == indicator.selected else replace(indicator, selected=fresh)
            )
    return tuple(kept)


# ------------------------------------------------------------------------------------ one name


@lru_cache(maxsize=4096)
def _named(text: str) -> Indicator:
    if re.search("[A-Z]", text):
        spelling = _pandas_ta_column(text)
        if spelling is None and text.lower().partition("_")[0] not in CATALOGUE:
            spelling = passthrough.by_column(text)
        if spelling is not None:
            return spelling
    lowered = text.lower()
    definition, pieces = _family(lowered, CATALOGUE)
    if definition is not None:
        selected: tuple[int, ...] | None = None
        if pieces and pieces[-1] in definition.outputs:
            selected = (definition.outputs.index(pieces.pop()),)
        if len(pieces) <= len(definition.arguments) and "=" not in lowered:
            return member(definition, list(pieces), {}, selected, asked=text)
    if passthrough.knows(lowered):
        return passthrough.by_position(lowered, asked=text)
    if definition is not None:
        raise _too_many(definition, text)
    raise unknown(text)


def _family(text: str, families: Mapping[str, Definition]) -> tuple[Definition | None, list[str]]:
    """Return the definition with the longest name that `text` begins with, and the rest."""
    words = text.split("_")
    for end in range(len(words), 0, -1):
        definition = families.get("_".join(words[:end]))
        if definition is not None:
            return definition, words[end:]
    return None, words


def _pandas_ta_column(text: str) -> Indicator | None:
    """Return the indicator of one pandas-ta column, or None if it is not the catalogue's."""
    prefix, *pieces = text.split("_")
    if prefix not in SPELLINGS:
        return None
    definition, index = SPELLINGS[prefix]
    extra = _SPELT_TOO.get(definition.name, "")
    if len(pieces) > len(definition.arguments) and re.fullmatch(extra, "_".join(pieces)):
        pieces = pieces[: len(definition.arguments)]
    if len(pieces) > len(definition.arguments):
        raise _too_many(definition, text)
    return member(definition, list(pieces), {}, (index,), asked=text)


_SPELT_TOO: Final = {
    "bbands": r"[^_]+_([^_]+)_\1",  # lower and upper std
    "vwap": "D",
    "cci": r"\d+_0\.015",
    "true_range": "1",
    "adx": r"\d+_2",
}
"""What pandas-ta spells in a column beyond the parameters that there are here."""


def _with_parameters(name: str, given: Any) -> Indicator:
    if not isinstance(name, str):
        raise RequestError(
            f"an indicator's name is a string, not {type(name).__name__}",
            cure='write {"rsi": {"length": 14}}',
        )
    keywords: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {}
    positions: list[Any] = []
    if not isinstance(given, Mapping) and given is not None:
        positions = list(given) if isinstance(given, list | tuple) else [given]
    definition = CATALOGUE.get(name.strip().lower())
    if definition is not None:
        names = {argument.name for argument in definition.arguments}
        if set(keywords) <= names and len(positions) <= len(names):
            return member(definition, positions, keywords, None, asked=f"{{{name!r}: {given!r}}}")
    lowered = name.strip().lower()
    if passthrough.knows(lowered, exactly=True):
        taken = foreign.parameters(lowered) if definition is not None else keywords
        if set(keywords) <= set(taken):
            return passthrough.by_name(lowered, positions, keywords)
    if definition is not None:
        raise _wrong_keywords(definition, keywords)
    if CATALOGUE.get(lowered.partition("_")[0]) or passthrough.knows(lowered):
        raise RequestError(
            f"{name!r} has parameters in its name and beside it",
            cure=f"write one of them: {{{lowered.partition('_')[0]!r}: {{...}}}}",
        )
    raise unknown(name)


def member(
    definition: Definition,
    positions: Sequence[Any],
    keywords: Mapping[str, Any],
    selected: tuple[int, ...] | None,
    asked: str,
) -> Indicator:
    """Return the member of a catalogue family with these parameters, checked."""
    values: list[Parameter] = []
    for index, argument in enumerate(definition.arguments):
        given = positions[index] if index < len(positions) else argument.default
        if argument.name in keywords:
            given = keywords[argument.name]
        values.append(_number(definition, argument, given, asked))
    if definition.refuse is not None:
        wrong = definition.refuse(*values)
        if wrong:
            raise RequestError(f"{asked}: {wrong}", cure=_usage(definition))
    everything = tuple(range(len(definition.outputs)))
    name = member_name(definition.name, values)
    return Indicator(definition, tuple(values), name, selected or everything)


def _number(definition: Definition, argument: Argument, given: Any, asked: str) -> int | float:
    whole = isinstance(argument.default, int)
    try:
        if isinstance(given, bool):
            raise ValueError
        value = float(given)
        if not math.isfinite(value) or (whole and not value.is_integer()):
            raise ValueError
    except (TypeError, ValueError):
        kind = "a whole number" if whole else "a number"
        raise RequestError(
            f"{argument.name} of {definition.name} must be {kind}, not {given!r}",
            asked=asked,
            cure=_usage(definition),
        ) from None
    if not argument.least <= value <= LONGEST:
        raise RequestError(
            f"{argument.name} of {definition.name} must be from {spelt(argument.least)} to "
            f"{LONGEST}, not {spelt(value)}",
            asked=asked,
            cure=_usage(definition),
        )
    return int(value) if whole or value.is_integer() else value


# -------------------------------------------------------------------------------------- errors


def example(definition: Definition) -> str:
    """Return the name of a family's default member."""
    return member_name(definition.name, [argument.default for argument in definition.arguments])


def _usage(definition: Definition) -> str:
    if not definition.arguments:
        return f"write {definition.name!r}: it takes no parameters"
    named = {argument.name: argument.default for argument in definition.arguments}
    return f"write {example(definition)!r} or {{{definition.name!r}: {named}}}"


def _too_many(definition: Definition, asked: str) -> RequestError:
    return RequestError(
        f"{asked!r} has more parameters than {definition.name} takes", cure=_usage(definition)
    )


def _wrong_keywords(definition: Definition, keywords: Mapping[str, Any]) -> RequestError:
    known = [argument.name for argument in definition.arguments]
    wrong = [str(name) for name in keywords if name not in known]
    return RequestError(
        f"{definition.name} has no parameter {', '.join(map(repr, wrong))}", cure=_usage(definition)
    )


def unknown(text: str) -> RequestError:
    """Return the error for a name that nobody knows, with the nearest known ones."""

    names = sorted({*CATALOGUE, *foreign.names()})
    stem = re.sub(r"(_[\d.]+)+$", "", text.lower())
    near = difflib.get_close_matches(stem, names, 3, 0.5)
    hint = f"did you mean {', '.join(near)}? " if near else ""
    return RequestError(
        f"unknown indicator {text[:60]!r}",
        cure=f"{hint}marketdata.indicators() lists them, and any pandas-ta indicator can be named",
    )
