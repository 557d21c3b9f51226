"""Stored results as CSV, JSON or Parquet, one document after the other, so that memory stays small."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from fieldflows.errors import StoreError
from fieldflows.store.query import QueryField

_PORTION = 1000


def value_at(document: Any, path: str) -> Any:
    """Return the value at a dotted path; a list of values where the path passes through a list."""
    for position, part in enumerate(parts := path.split(".")):
        if isinstance(document, list):
            if not part.isdigit():
                return [value_at(item, ".".join(parts[position:])) for item in document]
            document = document[int(part)] if int(part) < len(document) else None
        else:
            document = document.get(part) if isinstance(document, dict) else None
    return document


def write_json(documents: Iterable[Mapping[str, Any]], stream: TextIO) -> None:
    """Write documents as one JSON array."""
    separator = "["
    for document in documents:
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False, default=str)
        stream.write(separator + "\n  " + text.replace("\n", "\n  "))
        separator = ","
    stream.write("[]\n" if separator == "[" else "\n]\n")


def write_csv(documents: Iterable[Mapping[str, Any]], paths: Sequence[str], stream: TextIO) -> None:
    """Write one line for each document, after a line with the paths; the entries of a list are joined by ``;``."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(paths)
    for document in documents:
        writer.writerow([_cell(value_at(document, path)) for path in paths])


def write_parquet(documents: Iterable[Mapping[str, Any]], fields: Sequence[QueryField], path: Path) -> int:
    """Write a Parquet file with a column for each field; return the number of rows.

    Numbers, texts and truth values have columns of their kind, with null for what is absent.  Whatever is a list or an
    object is a column of JSON texts.  Units stand in the metadata of the columns.  The file appears when it is
    complete.

    Args:
        documents: The documents.
        fields: The columns.
        path: The file; one that is there is replaced.

    Raises:
        StoreError: If pyarrow is not installed, a value is not of the kind of its field, or the file cannot be written.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise StoreError(
            "Parquet files are written by pyarrow, which is not installed.",
            "Install it (`pip install fieldflows[parquet]`), or take --csv.",
        ) from error
    kinds = {"number": pa.float64(), "text": pa.string(), "truth": pa.bool_()}
    plain = [field.kind in kinds and not field.is_list for field in fields]
    schema = pa.schema(
        [
            pa.field(field.path, kinds[field.kind] if is_plain else pa.string(), metadata={"unit": field.unit})
            for field, is_plain in zip(fields, plain, strict=True)
        ]
    )
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    count, rows = 0, iter(documents)
    try:
        with parquet.ParquetWriter(unfinished, schema) as writer:
            while portion := list(islice(rows, _PORTION)):
                columns = [
                    [_parquet_cell(value_at(document, field.path), is_plain) for document in portion]
                    for field, is_plain in zip(fields, plain, strict=True)
                ]
                arrays = [pa.array(column, item.type) for column, item in zip(columns, schema, strict=True)]
                writer.write_batch(pa.record_batch(arrays, schema=schema))
                count += len(portion)
        os.replace(unfinished, path)
    except pa.ArrowException as error:
        raise StoreError(f"The results do not fit into the columns of a Parquet file: {error}.") from error
    except OSError as error:
        raise StoreError(f"The file {path} cannot be written: {error.strerror or error}.") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return ";".join(str(_cell(item)) for item in value)
    text = "" if value is None else value
    # A text that starts like a formula would be run by spreadsheet programs.
    return f"'{text}" if isinstance(text, str) and text[:1] in ("=", "@", "+", "-") else text


def _parquet_cell(value: Any, is_plain: bool) -> Any:
    if value is None or (is_plain and isinstance(value, str | int | float)):
        return value
    return str(value) if is_plain else json.dumps(value, ensure_ascii=False, default=str)
