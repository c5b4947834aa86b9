"""Strategies by what a person types: a file, a module, or a name of the catalogue."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from pathlib import Path
from types import CodeType, ModuleType

from algorithms.algorithm import Algorithm
from algorithms.errors import StrategyFileError

_RUN: dict[Path, tuple[bytes, ModuleType]] = {}
"""What files held when they were run, so that a class stays itself within one process."""
FORMS = "FILE.py, FILE.py:Class, package.module:Class, or a name of the catalogue"


def find_algorithm(where: str) -> type[Algorithm]:
    """Return the strategy class that `where` names.

    Parameters
    ----------
    where : str
        ``FILE.py`` with one strategy in it, ``FILE.py:Class``, ``package.module:Class``, or the
        name of a strategy of `algorithms.library`, such as ``sma_cross``. A file may import what
        lies beside it; it is run once, and again when it has changed.

    Raises
    ------
    StrategyFileError
        There is no such file, module or class; the file is not Python, or raises when it is run;
        it has several strategies and none was named. A retry does not help.
    """
    place, name = _split(where.strip())
    if place.endswith(".py"):
        module = _from_file(Path(place))
    elif not name and place in (known := catalogue()):
        return known[place]
    else:
        module = _from_import(place)
    return _named(module, name, place) if name else _only(module, place)


def catalogue() -> dict[str, type[Algorithm]]:
    """Return the strategies of `algorithms.library` by the names they have here, in order."""
    from algorithms import library

    found = {name: getattr(library, name) for name in library.__all__}
    return {kind.__module__.rpartition(".")[2]: kind for kind in found.values()}


def _split(where: str) -> tuple[str, str]:
    if not where:
        raise StrategyFileError("no strategy was named", cure=f"give {FORMS}")
    if where.endswith(".py"):
        return where, ""
    place, colon, name = where.rpartition(":")
    return (place, name) if colon and place else (where, "")


# ------------------------------------------------------------------------------------ modules


def _from_file(path: Path) -> ModuleType:
    try:
        source = path.read_bytes()
    except FileNotFoundError:
        raise StrategyFileError(f"there is no file {path}", cure=_other_files(path)) from None
    except OSError as error:
        raise StrategyFileError(
            f"{path} cannot be read: {error.strerror}", cure="give a file of your own"
        ) from error
    digest = hashlib.blake2b(source).digest()
    held = _RUN.get(path.resolve())
    if held is not None and held[0] == digest:
        return held[1]
    code = _compiled(source, path)
    beside = str(path.resolve().parent)
    if beside not in sys.path:
        # After all others: a file called random.py must not become everybody's random.
        sys.path.append(beside)
        importlib.invalidate_caches()
    module = ModuleType(_module_name(path))
    module.__file__ = str(path.resolve())
    # Pickles of its classes find it by this name, in worker processes too.
    sys.modules[module.__name__] = module
    try:
        exec(code, module.__dict__)  # noqa: S102 - running the author's file is what was asked
    except Exception as error:
        del sys.modules[module.__name__]
        raise StrategyFileError(
            f"{path} cannot be run: {type(error).__name__}: {error}{_line_in(error, path)}",
            cure=_missing(error) or "mend it, or run it with python to see more",
        ) from error
    _RUN[path.resolve()] = (digest, module)
    return module


def _compiled(source: bytes, path: Path) -> CodeType:
    try:
        return compile(source, str(path.resolve()), "exec", dont_inherit=True)
    except SyntaxError as error:
        text = (error.text or "").strip()
        shown = f": {text}" if text else ""
        raise StrategyFileError(
            f"{path} is not Python: {error.msg}, line {error.lineno}{shown}",
            cure="mend that line",
            line=error.lineno,
        ) from error
    except ValueError as error:
        raise StrategyFileError(
            f"{path} is not Python: {error}", cure="give a text file in UTF-8"
        ) from error


def _module_name(path: Path) -> str:
    """Return the stem where nothing else has that name, so that workers can import it too."""
    stem, file = path.stem, path.resolve()
    held = sys.modules.get(stem)
    if held is not None and getattr(held, "__file__", None) == str(file):
        return stem
    if stem.isidentifier() and held is None:
        found = importlib.util.find_spec(stem)
        if found is None or found.origin == str(file):
            return stem
    return f"{stem}_{hashlib.blake2b(str(file).encode(), digest_size=4).hexdigest()}"


def _from_import(place: str) -> ModuleType:
    if "/" in place or "\\" in place or not all(p.isidentifier() for p in place.split(".")):
        raise StrategyFileError(f"{place!r} names no strategy", cure=f"give {FORMS}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(place)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and place.startswith(str(error.name)):
            names = ", ".join(catalogue())
            cure = f"the catalogue has {names}; otherwise give FILE.py or package.module:Class"
            raise StrategyFileError(
                f"there is no strategy and no module {place}", cure=_near(place) or cure
            ) from None
        raise StrategyFileError(
            f"{place} cannot be imported: {type(error).__name__}: {error}",
            cure=_missing(error) or "import it in python to see more",
        ) from error


def _near(name: str) -> str:
    """Return a cure for a name that is nearly one of the catalogue."""
    known = catalogue()
    classes = {kind.__name__: short for short, kind in known.items()}
    if name in classes:
        return f"did you mean {classes[name]}?"
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else ""


def _other_files(path: Path) -> str:
    folder = path.parent
    names = sorted(p.name for p in folder.glob("*.py")) if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, names, 1)
    if near:
        return f"did you mean {folder / near[0]}?"
    return f"write one with: marketdata algo new {path.stem}"


def _line_in(error: Exception, path: Path) -> str:
    file = str(path.resolve())
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    return f" (line {lines[-1]})" if lines else ""


def _missing(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"install {error.name.partition('.')[0]}, or put it beside the file"
    return ""


# ------------------------------------------------------------------------------------ classes


def strategies_in(module: ModuleType) -> dict[str, type[Algorithm]]:
    """Return the strategies that a module defines, by name; what others derive from is left out."""
    own = {
        name: kind
        for name, kind in vars(module).items()
        if inspect.isclass(kind) and issubclass(kind, Algorithm)
        if kind.__module__ == module.__name__ and not name.startswith("_")
    }
    bases = {base for kind in own.values() for base in kind.__mro__[1:]}
    return {name: kind for name, kind in own.items() if kind not in bases}


def _only(module: ModuleType, place: str) -> type[Algorithm]:
    found = strategies_in(module)
    if len(found) == 1:
        return next(iter(found.values()))
    if not found:
        raise StrategyFileError(
            f"{place} defines no strategy",
            cure="write a class in it: class Mine(algorithms.Algorithm), with on_bar(self, ctx)",
        )
    names = [f"{place}:{name}" for name in found]
    raise StrategyFileError(
        f"{place} defines {len(found)} strategies", cure="name one: " + ", ".join(names)
    )


def _named(module: ModuleType, name: str, place: str) -> type[Algorithm]:
    kind = getattr(module, name, None)
    if inspect.isclass(kind) and issubclass(kind, Algorithm) and kind is not Algorithm:
        return kind
    names = list(strategies_in(module))
    if kind is not None:
        told = f"{place}:{name} is no strategy"
        cure = f"derive it from algorithms.Algorithm: class {name}(Algorithm)"
    else:
        told = f"{place} has no {name!r}"
        near = difflib.get_close_matches(name, names, 1)
        cure = f"did you mean {near[0]}?" if near else "it has " + (", ".join(names) or "none")
    raise StrategyFileError(told, cure=cure)
