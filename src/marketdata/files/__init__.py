"""Bars in files: Parquet and CSV, written whole or not at all, and read in batches."""

from marketdata.files.reading import Shape, Table, open_table
from marketdata.files.writing import BarsFile, FileFormat, stream_csv, write_bars

__all__ = ["BarsFile", "FileFormat", "Shape", "Table", "open_table", "stream_csv", "write_bars"]
