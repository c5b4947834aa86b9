"""Rows out of CSV, CSV.gz and Parquet files of any size, a batch at a time.

Cells of CSV stay text here: what they mean, and which of them mean nothing, `parsing` says.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from marketdata.errors import RequestError
from marketdata.types import COLUMNS

NEEDED: Final = ("timestamp", "open", "high", "low", "close", "volume")
NAMES: Final = ("symbol", "timestamp", *COLUMNS)
SUFFIXES: Final = (".csv", ".csv.gz", ".parquet", ".pq")
BATCH_ROWS: Final = 65_536
_BLOCK_BYTES: Final = 4 << 20
_EXAMPLES: Final = 3
JOINED: Final = "+"
"""Between the names of two columns that make one: ``timestamp=date+time``."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Where in a table what is.

    Attributes
    ----------
    columns : mapping of str to str
        The table's name for each of `NAMES` that has another one there; two columns that make one,
        a date and a time, are joined with ``+``.
    symbol : str, optional
        The symbol of all rows, where no column names it.
    delimiter : str
        Between the cells of a CSV file.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    symbol: str | None = None
    delimiter: str = ","


@dataclass(slots=True)
class Table:
    """A table being read.

    Attributes
    ----------
    batches : iterator of dict
        By name of `NAMES`: Arrow arrays of one length; a column that the table lacks is absent.
    malformed : int
        Rows so far that had too few or too many cells, and were left out.
    examples : list of str
        The first of those.
    """

    name: str
    batches: Iterator[dict[str, Any]] = field(default_factory=lambda: iter(()))
    malformed: int = 0
    examples: list[str] = field(default_factory=list)


def files_of(paths: Sequence[Path]) -> list[Path]:
    """Return the files named, and those inside the directories named, at any depth.

    Raises
    ------
    RequestError
        A path does not exist, is no CSV or Parquet file, or a directory has none of them.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(f for f in path.rglob("*") if f.name.endswith(SUFFIXES) and f.is_file())
            if not inside:
                raise RequestError(f"no CSV or Parquet file is in {path}", cure=_KINDS)
            found += inside
        elif not path.is_file():
            raise RequestError(f"no such file: {path}", cure=_KINDS)
        elif not path.name.endswith(SUFFIXES):
            raise RequestError(f"{path} is neither CSV nor Parquet by its name", cure=_KINDS)
        else:
            found.append(path)
    return found


_KINDS: Final = "give files called .csv, .csv.gz or .parquet, or a directory of them"


@contextmanager
def open_table(path: Path, shape: Shape) -> Iterator[Table]:
    """Yield the rows of one file.

    Raises
    ------
    RequestError
        The file cannot be read, or lacks a column; a retry does not help.
    """
    if shape.symbol is None and path.parent.name.startswith("symbol="):
        # One of many files, as `write_bars` and others partition them.
        own = path.parent.name.removeprefix("symbol=")
        shape = Shape({**shape.columns}, own, shape.delimiter)
    try:
        if path.name.endswith((".parquet", ".pq")):
            with pa.parquet.ParquetFile(path) as file:
                yield _parquet(path.name, file, shape)
            return
        packed = path.name.endswith(".gz")
        with gzip.open(path, "rb") if packed else path.open("rb") as stream:
            yield csv_table(path.name, stream, shape)  # type: ignore[arg-type]  # reads as such
    except (OSError, EOFError, pa.ArrowException) as error:
        raise _unreadable(path.name, error) from error


def csv_table(name: str, stream: IO[bytes], shape: Shape) -> Table:
    """Return the rows of CSV text, whose first line names the columns."""
    try:
        line = stream.readline().decode("utf-8-sig").strip("\r\n")
    except UnicodeDecodeError:
        raise RequestError(f"{name} is not UTF-8 text", cure="convert it to UTF-8") from None
    if not line:
        raise RequestError(f"{name} is empty", cure="give a file with a line of column names")
    names = next(csv.reader([line], delimiter=shape.delimiter))
    chosen = _chosen(name, names, shape)
    wanted = [column for parts in chosen.values() for column in parts]
    table = Table(name)

    def skip(row: Any) -> str:
        table.malformed += 1
        if len(table.examples) < _EXAMPLES:
            cells = f"{row.actual_columns} cells instead of {row.expected_columns}"
            table.examples.append(f"{cells}: {row.text[:80]}")
        return "skip"

    def batches() -> Iterator[dict[str, Any]]:
        try:
            reader = pa.csv.open_csv(
                stream,
                read_options=pa.csv.ReadOptions(column_names=names, block_size=_BLOCK_BYTES),
                parse_options=pa.csv.ParseOptions(
                    delimiter=shape.delimiter, invalid_row_handler=skip
                ),
                convert_options=pa.csv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.string()),
                    include_columns=wanted,
                    strings_can_be_null=True,
                    null_values=[""],
                ),
            )
            for batch in reader:
                yield _named(batch, chosen, shape)
        except pa.ArrowInvalid as error:
            if "Empty CSV file" not in str(error):
                raise _unreadable(name, error) from error
        except (OSError, EOFError, pa.ArrowException) as error:
            raise _unreadable(name, error) from error

    table.batches = batches()
    return table


def _parquet(name: str, file: Any, shape: Shape) -> Table:
    chosen = _chosen(name, file.schema_arrow.names, shape)
    wanted = [column for parts in chosen.values() for column in parts]
    batches = file.iter_batches(BATCH_ROWS, columns=wanted)
    return Table(name, (_named(batch, chosen, shape) for batch in batches))


def _chosen(name: str, there: Sequence[str], shape: Shape) -> dict[str, list[str]]:
    """Return which columns of the table make each of ours.

    Raises
    ------
    RequestError
        One that is needed, or was named, is not there, or is there twice.
    """
    by_case: dict[str, list[str]] = {}
    for column in there:
        by_case.setdefault(column.strip().lower(), []).append(column)
    chosen: dict[str, list[str]] = {}
    for ours in NAMES:
        named = shape.columns.get(ours)
        if ours == "symbol" and shape.symbol is not None and named is None:
            continue
        if named is not None and named in there:
            chosen[ours] = [named]
            continue
        parts = [part.strip() for part in (named or ours).split(JOINED)]
        found = [by_case.get(part.lower(), []) for part in parts]
        if all(len(each) == 1 for each in found):
            chosen[ours] = [each[0] for each in found]
        elif named is not None or ours in NEEDED or ours == "symbol":
            twice = any(len(each) > 1 for each in found)
            raise RequestError(
                f"{name} has {'more than one column' if twice else 'no column'} {named or ours!r}, "
                f"but {', '.join(there)}",
                cure="say which column is which: --columns open=o,timestamp=date+time"
                + ("; or name the only symbol: --symbol AAPL" if ours == "symbol" else ""),
            )
    return chosen


def _named(batch: Any, chosen: Mapping[str, Sequence[str]], shape: Shape) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for ours, parts in chosen.items():
        found = [batch.column(batch.schema.get_field_index(part)) for part in parts]
        columns[ours] = found[0] if len(found) == 1 else _joined(found)
    if "symbol" not in columns:
        columns["symbol"] = pa.repeat(pa.scalar(shape.symbol), len(batch))
    return columns


def _joined(parts: Sequence[Any]) -> Any:
    import pyarrow.compute as pc

    texts = [part if pa.types.is_string(part.type) else part.cast(pa.string()) for part in parts]
    return pc.binary_join_element_wise(*texts, " ")


def _unreadable(name: str, error: Exception) -> RequestError:
    text = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
    return RequestError(f"{name} cannot be read: {text}", cure="repair the file, or leave it out")
