"""Bars to Parquet and CSV, symbol by symbol; what is not finished is never seen.

Everything goes to a name of its own beside the target and is moved there at the end, so that a
full disk, an error or Ctrl-C leaves neither half a file nor a hole where one was.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from marketdata.errors import RequestError
from marketdata.types import COLUMNS, Bars

FileFormat = Literal["parquet", "csv"]

_UTC: Final[Any] = pa.timestamp("us", tz="UTC")
_NUMBERS: Final = [(name, pa.float64()) for name in COLUMNS]
_SYMBOL: Final = ("symbol", pa.dictionary(pa.int32(), pa.string()))


class BarsFile(Protocol):
    """Where bars go."""

    def write(self, symbol: str, bars: Bars) -> None:
        """Append bars of one symbol; all of a symbol's follow each other, ascending."""
        ...


@contextmanager
def write_bars(
    path: Path,
    kind: FileFormat,
    facts: Mapping[str, str],
    *,
    partitioned: bool = False,
    replace: bool = False,
) -> Iterator[BarsFile]:
    """Yield a `BarsFile`; `path` appears when the block ends, and not if it raises.

    Columns: ``symbol`` (dictionary-encoded in Parquet), ``timestamp`` (bar open, UTC), then
    `types.COLUMNS` as float64. Every float reads back bit for bit, NaN as an empty cell or null.

    Parameters
    ----------
    path : Path
        A file, or with `partitioned` a directory: ``symbol=AAPL/bars.parquet`` and so on.
    facts : mapping of str to str
        What these bars are, kept in a Parquet file's metadata.
    replace : bool
        Whether what is there may be replaced; a directory is replaced as a whole.

    Raises
    ------
    RequestError
        Something is there and may not be replaced, or the place cannot be written to.
    """
    if path.exists() and not replace:
        raise RequestError(f"{path} is there already", cure="give another path, or --force")
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with _opened(part, kind, facts, partitioned) as file:
            yield file
        _move(part, path, replace)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise RequestError(
            f"cannot write {path}: {error.strerror or error}",
            cure="check the directory, its rights and the space left on its disk",
        ) from error
    finally:
        _remove(part)


def stream_csv(stream: IO[bytes]) -> BarsFile:
    """Return a `BarsFile` that writes CSV to an open stream, as far as it comes."""
    return _File(stream, "csv", {}, with_symbol=True)


@contextmanager
def _opened(
    part: Path, kind: FileFormat, facts: Mapping[str, str], partitioned: bool
) -> Iterator[BarsFile]:
    if partitioned:
        part.mkdir(parents=True)
        directory = _Directory(part, kind, facts)
        try:
            yield directory
        finally:
            directory.close()
        return
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("wb") as stream:
        file = _File(stream, kind, facts, with_symbol=True)
        try:
            yield file
        finally:
            file.close()
        stream.flush()
        os.fsync(stream.fileno())


def _move(part: Path, path: Path, replace: bool) -> None:
    if path.exists() and not replace:  # somebody else's, made meanwhile
        raise RequestError(f"{path} is there already", cure="give another path, or --force")
    if path.is_dir():
        old = part.with_suffix(".old")
        path.rename(old)
        try:
            part.rename(path)
        except OSError:
            old.rename(path)
            raise
        _remove(old)
    else:
        part.replace(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


class _File:
    """One file, whose schema stands before the first bar."""

    def __init__(
        self, stream: IO[bytes], kind: FileFormat, facts: Mapping[str, str], with_symbol: bool
    ) -> None:
        self._with_symbol = with_symbol
        self._writer: Any
        columns = [("timestamp", _UTC), *_NUMBERS]
        if kind == "parquet":
            schema = pa.schema([_SYMBOL, *columns] if with_symbol else columns)
            schema = schema.with_metadata({f"marketdata.{k}": v for k, v in facts.items()})
            self._batch = self._typed
            self._writer = pa.parquet.ParquetWriter(stream, schema, compression="zstd")
        else:
            self._with_symbol = True
            schema = pa.schema([("symbol", pa.string()), ("timestamp", pa.string()), *_NUMBERS])
            self._batch = self._spelled
            plain = pa.csv.WriteOptions(quoting_style="none", quoting_header="none")
            self._writer = pa.csv.CSVWriter(stream, schema, write_options=plain)
        self._schema = schema

    def write(self, symbol: str, bars: Bars) -> None:
        if len(bars):
            # NaN is a number to Arrow; nothing is nothing.
            numbers = [pa.array(row, from_pandas=True) for row in bars.values]
            self._writer.write_batch(self._batch(symbol, bars, numbers))

    def _typed(self, symbol: str, bars: Bars, numbers: list[Any]) -> Any:
        times = pa.array(bars.timestamp, pa.int64()).cast(_UTC)
        columns = [times, *numbers]
        if self._with_symbol:
            index = pa.array(np.zeros(len(bars), np.int32))
            columns.insert(0, pa.DictionaryArray.from_arrays(index, pa.array([symbol])))
        return pa.record_batch(columns, schema=self._schema)

    def _spelled(self, symbol: str, bars: Bars, numbers: list[Any]) -> Any:
        whole = not (bars.timestamp % 1_000_000).any()
        moments = bars.timestamp.astype("datetime64[us]")
        spelled = np.datetime_as_string(moments, unit="s" if whole else "us")
        times = pa.array(np.char.add(spelled, "Z"))
        symbols = pa.array([symbol]).take(pa.array(np.zeros(len(bars), np.int32)))
        return pa.record_batch([symbols, times, *numbers], schema=self._schema)

    def close(self) -> None:
        self._writer.close()


class _Directory:
    """A file for each symbol, in the directories that Hive, DuckDB and Arrow understand."""

    def __init__(self, path: Path, kind: FileFormat, facts: Mapping[str, str]) -> None:
        self._path = path
        self._kind: FileFormat = kind
        self._facts = facts
        self._symbol: str | None = None
        self._stream: IO[bytes] | None = None
        self._file: _File | None = None

    def write(self, symbol: str, bars: Bars) -> None:
        if not len(bars):
            return
        if symbol != self._symbol or self._file is None:
            self.close()
            directory = self._path / f"symbol={symbol}"
            directory.mkdir()
            self._stream = (directory / f"bars.{self._kind}").open("wb")
            # Readers of such directories add the column themselves and stumble over a second one.
            self._file = _File(self._stream, self._kind, self._facts, with_symbol=False)
            self._symbol = symbol
        self._file.write(symbol, bars)

    def close(self) -> None:
        if self._file is not None and self._stream is not None:
            try:
                self._file.close()
            finally:
                self._stream.close()
        self._file = self._stream = None
