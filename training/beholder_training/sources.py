"""Data files -> decoded rows, each with the place that errors name. Knows files, not what the rows mean.

    .jsonl     one object a line; place file:line
    .json      one array of objects; place file:item
    .parquet   one object a row, read in batches; place file:row

Places count from 1.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from beholder.errors import DataError
from beholder_training.problems import BadRecord

_ROWS = 256  # of a parquet file in memory at once: rows may hold images
Row = tuple[str, Any | BadRecord]  # the place, and the decoded row or why there is none


def read_rows(file: Path) -> Iterator[Row]:
    """Every row of `file`, bad ones too. Raises DataError when the file as a whole cannot be read."""
    readers = {".json": _array, ".parquet": _parquet}
    try:
        yield from readers.get(file.suffix.lower(), _lines)(file)
    except OSError as error:
        raise DataError(f"{file}: {error.strerror or error}") from None


def count_rows(file: Path) -> int | None:
    """Number of rows where the file tells without being read, for a progress bar."""
    if file.suffix.lower() != ".parquet" or not file.is_file():
        return None
    rows: int = _parquet_file(file).metadata.num_rows
    return rows


def _lines(file: Path) -> Iterator[Row]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                where = f"{file}:{number}"
                yield where, _decode(line, where)


def _decode(line: bytes, where: str) -> Any | BadRecord:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        return BadRecord(where, "not-utf8", f"not UTF-8 text ({error.reason})")
    except (ValueError, RecursionError) as error:
        return BadRecord(where, "not-json", f"not JSON ({error})")


def _array(file: Path) -> Iterator[Row]:
    try:
        rows = json.loads(file.read_bytes())
    except ValueError as error:
        raise DataError(f"{file}: not JSON ({error}); one object a line is .jsonl") from None
    if not isinstance(rows, list):
        raise DataError(f"{file}: a .json file holds an array of records, not {type(rows).__name__}")
    for number, row in enumerate(rows, start=1):
        yield f"{file}:{number}", row


def _parquet(file: Path) -> Iterator[Row]:
    number = 0
    for batch in _parquet_file(file).iter_batches(batch_size=_ROWS):
        for row in batch.to_pylist():
            number += 1
            yield f"{file}:{number}", row


def _parquet_file(file: Path) -> Any:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{file}: reading parquet needs pyarrow: pip install 'beholder[training]'") from None
    try:
        return parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{file}: not a parquet file ({error})") from None
