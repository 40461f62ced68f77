"""Data files -> decoded rows, each with the place that errors name. Knows files, not what the rows mean.

    .jsonl     one object a line, after a byte order mark or none; place file:line
    .json      one array of objects, read whole; place file:item
    .parquet   one object a row, read in batches of a row group; place file:row

Places count from 1.
"""

import codecs
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from beholder.errors import DataError
from beholder.records.problems import BadRecord

_ROWS = 64  # of a parquet file in memory at once: rows may hold images
_BLOCK = 2**20


@dataclass(frozen=True, slots=True)
class Row:
    """One row of `file`: its `number`, and its decoded `value` or why there is none.

    `offset`: where reading goes on from here (see `read_rows`); `line`: its bytes, of a .jsonl file; in Parquet
    those of a text that is none.
    """

    file: Path
    number: int
    value: Any | BadRecord
    offset: int
    line: bytes = b""

    @property
    def where(self) -> str:
        return f"{self.file}:{self.number}"

    def digest(self) -> str:
        """32 hex digits of the content; images stand for themselves where they are embedded, else their paths do."""
        content = self.line.strip() or json.dumps(self.value, default=_plain).encode()
        return hashlib.sha256(content).hexdigest()[:32]


def read_rows(file: Path, offset: int = 0, number: int = 0) -> Iterator[Row]:
    """Every row of `file`, bad ones too, or those after the row with this `offset` and `number`.

    Raises DataError when the file as a whole cannot be read.
    """
    readers = {".json": _array, ".parquet": _parquet}
    try:
        yield from readers.get(file.suffix.lower(), _lines)(file, offset, number)
    except OSError as error:
        raise DataError(f"{file}: {error.strerror or error}") from None


def split_rows(file: Path, size: int, offset: int = 0, number: int = 0) -> Iterator[tuple[int, int]]:
    """Offset and number from which `read_rows` reads each `size` rows, without decoding them.

    Raises DataError, also for .json, which would be read whole for every part.
    """
    if file.suffix.lower() == ".json":
        raise DataError(f"{file} cannot be read in parts: write one object a line, as .jsonl")
    if file.suffix.lower() == ".parquet":
        yield from ((start, start) for start in range(offset, _parquet_file(file).metadata.num_rows, size))
        return
    for count, line in enumerate(_filled_lines(file, offset, number)):
        if count % size == 0:
            yield line.start, line.number - 1


def count_rows(file: Path) -> int | None:
    """Number of rows where it can be known at little cost, for a progress bar; blank lines count."""
    if not file.is_file() or file.suffix.lower() == ".json":
        return None
    if file.suffix.lower() == ".parquet":
        rows: int = _parquet_file(file).metadata.num_rows
        return rows
    with file.open("rb") as content:
        return sum(block.count(b"\n") for block in iter(lambda: content.read(_BLOCK), b""))


def _plain(value: object) -> str:
    """What JSON does not have, of a parquet file."""
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else str(value)


class _Line(NamedTuple):
    """The bytes from `start` to `end`; `content` is without a byte order mark."""

    start: int
    end: int
    number: int
    content: bytes


def _filled_lines(file: Path, offset: int, number: int) -> Iterator[_Line]:
    """Those that are not blank."""
    with file.open("rb") as lines:
        lines.seek(offset)
        for line in lines:
            start, offset = offset, offset + len(line)
            number += 1
            content = line if start else line.removeprefix(codecs.BOM_UTF8)
            if content.strip():
                yield _Line(start, offset, number, content)


def _lines(file: Path, offset: int, number: int) -> Iterator[Row]:
    for line in _filled_lines(file, offset, number):
        yield Row(file, line.number, _decode(line.content, f"{file}:{line.number}"), line.end, line.content)


def _decode(line: bytes, where: str) -> Any | BadRecord:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        return _not_utf8(where, error)
    except (ValueError, RecursionError) as error:
        return BadRecord(where, "not-json", f"not JSON ({error})")


def _not_utf8(where: str, error: UnicodeDecodeError) -> BadRecord:
    return BadRecord(where, "not-utf8", f"not UTF-8 text ({error.reason})")


def _array(file: Path, offset: int, number: int) -> Iterator[Row]:
    try:
        rows = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not JSON ({error}); one object a line is .jsonl") from None
    if not isinstance(rows, list):
        raise DataError(f"{file}: a .json file holds an array of records, not {type(rows).__name__}")
    for index, row in enumerate(rows[offset:], start=offset + 1):
        yield Row(file, index, row, index)


def _parquet(file: Path, offset: int, number: int) -> Iterator[Row]:
    source = _parquet_file(file)
    index = 0
    for group in range(source.num_row_groups):
        rows = source.metadata.row_group(group).num_rows
        if index + rows <= offset:
            index += rows
            continue
        for batch in source.iter_batches(batch_size=_ROWS, row_groups=[group]):
            if index + batch.num_rows > offset:
                yield from _batch(file, batch, index, offset)
            index += batch.num_rows


def _batch(file: Path, batch: Any, index: int, offset: int) -> Iterator[Row]:
    """The rows of `batch`, of which the first follows `index` others; those up to `offset` are left out."""
    for number, value in enumerate(_values(batch), start=index + 1):
        if number <= offset:
            continue
        if isinstance(value, UnicodeDecodeError):
            yield Row(file, number, _not_utf8(f"{file}:{number}", value), number, value.object)
        else:
            yield Row(file, number, value, number)


def _values(batch: Any) -> list[Any]:
    """Each row's value, or the error where a text in it cannot be decoded."""
    try:
        values: list[Any] = batch.to_pylist()
        return values
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            return [error]
    return [value for row in range(batch.num_rows) for value in _values(batch.slice(row, 1))]


def _parquet_file(file: Path) -> Any:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{file}: reading parquet needs pyarrow: pip install pyarrow") from None
    try:
        # Pages are read as they are needed: else the columns of a row group would be in memory as they stand on disk.
        return parquet.ParquetFile(file, buffer_size=_BLOCK, pre_buffer=False)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{file}: not a parquet file ({error})") from None
