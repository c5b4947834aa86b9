"""What a strategy is made of, as a hash: equal for equal code and settings, in every process. Pure.

Code is taken as bytecode, so that moving or re-indenting it changes nothing; what functions of the
author's own refer to is followed, installed libraries are named only. Another release of Python may
give another hash.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from algorithms.algorithm import Algorithm
from algorithms.market import MarketData
from algorithms.params import Param
from algorithms.series import AdjustmentStep, ShareAction

_BORING: Final = frozenset(
    {"__module__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__qualname__",
     "__firstlineno__", "__static_attributes__", "__abstractmethods__", "_abc_impl", "_params",
     "__annotate__", "__annotate_func__", "__annotations_cache__", "__class_getitem__",
     "_abc_data", "__slots__", "__match_args__", "__dataclass_params__"}
)  # fmt: skip
_SCALARS: Final = (str, bytes, int, float, complex, bool, type(None), type(Ellipsis), range)
_DEEPEST: Final = 40


def fingerprint_of(*things: object) -> str:
    """Return a hash of code and values: classes, functions, instances, containers, arrays."""
    walk = _Walk()
    for thing in things:
        walk.take(thing)
    return walk.digest.hexdigest()


def code_of(kind: type) -> str:
    """Return a hash of the bytecode of a class's own functions, without what they refer to."""
    walk = _Walk()
    for base in kind.__mro__:
        for name, value in sorted(vars(base).items()):
            if isinstance(value, types.FunctionType):
                walk.take(name)
                walk.take(value.__code__)
    return walk.digest.hexdigest()


def market_fingerprint(market: MarketData, until: int) -> str:
    """Return a hash of all that closes or happens up to an instant."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(market.session.encode())
    for name, series in sorted(market.series.items()):
        size = int(series.closes[: series.size].searchsorted(until, side="right"))
        digest.update(repr((name, size)).encode())
        digest.update(np.ascontiguousarray(series.labels[:size]))
        digest.update(np.ascontiguousarray(series.raw[:, :size]))
        happenings: list[AdjustmentStep | ShareAction] = [*series.steps, *series.actions]
        for happening in happenings:
            if happening.time <= until:
                digest.update(repr(tuple(happening)).encode())
    return digest.hexdigest()


class _Walk:
    """Goes through what a thing is made of, and hashes it on the way."""

    def __init__(self) -> None:
        self.digest = hashlib.blake2b(digest_size=16)
        self._met: dict[int, int] = {}
        # What is hashed stays alive: another object at its address would be taken for it.
        self._kept: list[object] = []
        self._depth = 0

    def take(self, thing: Any) -> None:
        if isinstance(thing, _SCALARS):
            self._say(type(thing).__name__, repr(thing))
            return
        # Of what cannot change, one object or two equal ones is the interpreter's choice.
        if not isinstance(thing, (tuple, frozenset, types.CodeType)):
            known = self._met.get(id(thing))
            if known is not None:
                self._say("again", str(known))
                return
            self._met[id(thing)] = len(self._met)
            self._kept.append(thing)
        self._depth += 1
        if self._depth < _DEEPEST:
            self._inside(thing)
        self._depth -= 1

    def _say(self, *words: str) -> None:
        for word in words:
            data = word.encode("utf-8", "surrogatepass")
            self.digest.update(len(data).to_bytes(8, "little") + data)

    def _inside(self, thing: Any) -> None:  # noqa: PLR0912 - one branch a kind of thing
        if isinstance(thing, types.ModuleType):
            self._say("module", thing.__name__)
        elif isinstance(thing, types.CodeType):
            self._code(thing)
        elif isinstance(thing, types.FunctionType):
            self._function(thing)
        elif isinstance(thing, type):
            self._class(thing)
        elif isinstance(thing, functools.partial):
            self._all("partial", [thing.func, thing.args, thing.keywords])
        elif isinstance(thing, (staticmethod, classmethod, types.MethodType)):
            self._all("bound", [thing.__func__, getattr(thing, "__self__", None)])
        elif isinstance(thing, property):
            self._all("property", [thing.fget, thing.fset, thing.fdel])
        elif isinstance(thing, np.ndarray):
            self._say("array", str(thing.dtype), repr(thing.shape))
            if thing.dtype.hasobject:
                self._all("objects", thing.ravel().tolist())
            else:
                self.digest.update(np.ascontiguousarray(thing).tobytes())
        elif isinstance(thing, (pd.DataFrame, pd.Series, pd.Index)):
            self._say(type(thing).__name__)
            self.take(pd.util.hash_pandas_object(thing).to_numpy())
        elif isinstance(thing, Enum):
            self._say("enum", type(thing).__qualname__, thing.name)
        elif isinstance(thing, Mapping):
            self._all("mapping", [part for pair in thing.items() for part in pair])
        elif isinstance(thing, (list, tuple)):
            self._all(type(thing).__name__, thing)
        elif isinstance(thing, (set, frozenset)):
            self._all("set", sorted(thing, key=repr))
        else:
            self._instance(thing)

    def _all(self, kind: str, parts: Any) -> None:
        self._say(kind, str(len(parts)))
        for part in parts:
            self.take(part)

    def _code(self, code: types.CodeType) -> None:
        self._say("code", code.co_name, repr(code.co_names), repr(code.co_varnames))
        self.digest.update(code.co_code)
        self._all("constants", code.co_consts)

    def _function(self, function: types.FunctionType) -> None:
        self._say("function", function.__qualname__)
        if _installed(function):
            self._say(function.__module__)
            return
        self.take(function.__code__)
        self.take(function.__defaults__)
        self.take(function.__kwdefaults__)
        for cell in function.__closure__ or ():
            try:
                self.take(cell.cell_contents)
            except ValueError:
                self._say("empty cell")
        for name in sorted(set(_names(function.__code__))):
            if name in function.__globals__:
                self._say(name)
                self.take(function.__globals__[name])

    def _class(self, given: type) -> None:
        self._say("class", given.__qualname__)
        if _installed(given) and not issubclass(given, Algorithm):
            self._say(given.__module__)
            return
        for base in given.__mro__:
            if base is Algorithm or base is object:
                break
            for name, value in sorted(vars(base).items()):
                if name not in _BORING:
                    self._say(name)
                    self.take(value)

    def _instance(self, thing: Any) -> None:
        kind = type(thing)
        self._say("instance", kind.__module__, kind.__qualname__)
        if isinstance(thing, Param):
            self._all("param", [thing.default, thing.low, thing.high, thing.choices])
            return
        if not _installed(kind):
            self.take(kind)
        if is_dataclass(thing):
            held = {field.name: getattr(thing, field.name) for field in fields(thing)}
        else:
            held = dict(getattr(thing, "__dict__", {}))
            slots = [s for base in kind.__mro__ for s in _slots(base)]
            held.update({name: getattr(thing, name) for name in slots if hasattr(thing, name)})
        self._all("state", [part for pair in sorted(held.items()) for part in pair])


def _names(code: types.CodeType) -> Iterator[str]:
    """Yield the global names a function may refer to, those of functions inside it included."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
            yield str(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _slots(kind: type) -> tuple[str, ...]:
    given = vars(kind).get("__slots__", ())
    return (given,) if isinstance(given, str) else tuple(given)


def _installed(thing: Any) -> bool:
    """Return whether something is of Python, of an installed library, or of this engine."""
    name = getattr(thing, "__module__", None) or ""
    if name.partition(".")[0] in ("builtins", "algorithms", "marketdata"):
        return True
    file = getattr(sys.modules.get(name), "__file__", None)
    if not file:
        # A notebook's or a deleted module's code is the author's; a built-in one has no code.
        return name in sys.builtin_module_names
    return is_library(file)


def is_library(file: str) -> bool:
    """Return whether a file belongs to Python or to an installed library."""
    return any(Path(file).is_relative_to(place) for place in _places())


@functools.cache
def _places() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    return tuple({Path(paths[key]) for key in ("stdlib", "platstdlib", "purelib", "platlib")})
