"""CSV, TSV, Excel and Parquet files as columns of text."""

from __future__ import annotations

import csv
import io
import math
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sagittal.errors import ConfigError, ReadError, nearest, require
from sagittal.guard.limits import MAX_INFLATED_BYTES, as_read_error, check_file

Rows = dict[str, list[str]]
#: Parts of a workbook, and how often its text may be larger than the file.
_MOST_PARTS = 2000
_MARKUP = re.compile(rb"<!\s*(DOCTYPE|ENTITY)|\0", re.IGNORECASE)
_ENCODING = re.compile(rb"<\?xml[^>]*encoding\s*=\s*[\"']([^\"']*)", re.IGNORECASE)


def read_table(path: Path, *, sheet: str | None = None) -> Rows:
    """A table as columns of text, empty where nothing stands.

    Parameters
    ----------
    path : Path
        CSV, TSV, Parquet, or Excel's ``.xlsx``, of which values are read and no formula, macro or link is followed.
    sheet : str, optional
        Sheet of a workbook; the first where left out.

    Raises
    ------
    ReadError
        If the file is damaged, has no header or no rows.
    ConfigError
        If a sheet is named and there is none of that name.
    MissingPackageError
        For ``.xlsx`` without the ``excel`` extra.
    """
    check_file(path)
    suffix = path.suffix.lower()
    if suffix in {".xls", ".xlsm", ".xlsb", ".ods"}:
        raise ReadError(f"the table '{path.name}': {suffix} is not read; save it as .xlsx or CSV")
    if sheet is not None and suffix != ".xlsx":
        raise ConfigError(f"--sheet {sheet}: '{path.name}' has no sheets, only .xlsx has")
    with as_read_error("table"):
        if suffix == ".xlsx":
            rows = _excel(path, sheet)
        else:
            rows = _parquet(path) if suffix == ".parquet" else _delimited(path)
    if not rows or not next(iter(rows.values())):
        raise ReadError(f"the table '{path.name}' has no rows below its header")
    return rows


def _excel(path: Path, sheet: str | None) -> Rows:
    _check_workbook(path)
    openpyxl = require("openpyxl", feature="reading Excel tables", extra="excel")
    # Opened here: of a workbook that turns out to be damaged, openpyxl leaves the file open.
    with path.open("rb") as file:
        book = openpyxl.load_workbook(file, read_only=True, data_only=True, keep_links=False)
        try:
            return _sheet(book, sheet)
        finally:
            book.close()


def _sheet(book: Any, sheet: str | None) -> Rows:
    """The cells of a sheet, the first where none is named."""
    names = [one.title for one in book.worksheets]
    if sheet is not None and sheet not in names:
        raise ConfigError(f"the workbook has no sheet '{sheet}'. {nearest(sheet, names)}")
    if not names:
        raise ReadError("table: the workbook has no sheet of cells")
    chosen = book[sheet if sheet is not None else names[0]]
    # A declared size may be a lie in either direction: rows are taken as they come.
    chosen.reset_dimensions()
    lines = ([_text(cell) for cell in line] for line in chosen.iter_rows(values_only=True))
    return _columns(line for line in lines if any(cell.strip() for cell in line))


def _check_workbook(path: Path) -> None:
    """Refuse a workbook that unpacks without end, runs code, or declares entities; its parts are unpacked once."""
    total = 0
    with zipfile.ZipFile(path) as book:
        parts = book.infolist()
        if len(parts) > _MOST_PARTS:
            raise ReadError(f"table: the workbook has {len(parts):,} parts; at most {_MOST_PARTS:,} are read")
        for part in parts:
            name = part.filename.lower()
            if "vbaproject" in name:
                raise ReadError("table: the workbook holds macros; save it as .xlsx without macros, or as CSV")
            if not name.endswith((".xml", ".rels")):
                continue
            with book.open(part) as opened:
                tail = b""
                while chunk := opened.read(2**20):
                    if not tail and (found := _ENCODING.search(chunk[:200])):
                        encoding = found[1].lower()
                        if encoding not in {b"utf-8", b"us-ascii", b"ascii"}:
                            raise ReadError("table: the workbook is not written in UTF-8")
                    total += len(chunk)
                    if total > MAX_INFLATED_BYTES:
                        raise ReadError(f"table: the workbook unpacks to more than {MAX_INFLATED_BYTES:,} bytes")
                    if _MARKUP.search(tail + chunk):
                        raise ReadError("table: the workbook declares a document type or entities, which are not read")
                    tail = chunk[-32:]


def _parquet(path: Path) -> Rows:
    import pyarrow.parquet as pq

    columns_ = pq.read_table(path).to_pydict()
    return {str(name): [_text(v) for v in values] for name, values in columns_.items()}


def _text(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(int(value)) if isinstance(value, bool) else str(value)


def _delimited(path: Path) -> Rows:
    raw = path.read_bytes()
    if b"\0" in raw[:4096] and raw[:2] not in {b"\xff\xfe", b"\xfe\xff"}:
        raise ReadError("table: holds binary data, not text. Expected CSV, TSV, Excel (.xlsx) or Parquet.")
    text = _decoded(raw)
    header = text.split("\n", 1)[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t|", key=header.count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        head = next(lines, [])
        return _columns(line for line in [head, *lines] if line is head or any(cell.strip() for cell in line))
    except csv.Error as error:
        raise ReadError(f"table: {error}") from error


def _columns(lines: Iterator[list[str]]) -> Rows:
    """Lines, the first of them the header, to columns."""
    names = [name.strip() for name in next(lines, [])]
    body = list(lines)
    while (
        names and not names[-1] and not any(len(line) >= len(names) and line[len(names) - 1].strip() for line in body)
    ):
        names.pop()
    twice = [name for name, n in Counter(names).items() if n > 1 and name]
    if twice:
        raise ReadError(f"table: the column '{twice[0]}' occurs twice; rename one")
    for number, line in enumerate(body, start=2):
        if len(line) > len(names) and any(cell.strip() for cell in line[len(names) :]):
            raise ReadError(
                f"table: row {number} has {len(line)} cells, the header {len(names)}: a delimiter without quotes?"
            )
    return {
        name or f"column {n + 1}": [line[n] if n < len(line) else "" for line in body] for n, name in enumerate(names)
    }


def _decoded(raw: bytes) -> str:
    if raw[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        return raw.decode("utf-16")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("gb18030" if _is_gb(raw) else "latin-1")


def _is_gb(raw: bytes) -> bool:
    try:
        return any("\u4e00" <= c <= "\u9fff" for c in raw.decode("gb18030"))
    except UnicodeDecodeError:
        return False
