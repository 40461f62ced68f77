"""The finished file: one row a response, in the input's order; JSON lines, or Parquet where the name ends so.

id            the record's id; without one LINE-DIGEST, from its line and content
index         which response of the record, from 0; null where the record could not be read
score         the raw logit; null with an error
normalized    in deviations from the mean of held-out responses; null where the checkpoint is not calibrated
truncated     whether the prompt was shortened, since it was too long; null with an error
error         null, or {"code", "message"}
line          the record's line (Parquet: row) in the input, from 1
digest        of the record's content, 32 hex digits
fingerprint   of the checkpoint
"""

import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any, Final

from beholder.errors import DataError
from beholder.offline.tasks import Scored

_GROUP: Final = 50_000  # rows of a Parquet row group
_OTHER_FORMS: Final = (".json", ".csv")
"""Suffixes under which other programs, and `read_rows`, expect other than JSON lines."""


def result_rows(scored: Scored, fingerprint: str) -> Iterator[dict[str, Any]]:
    """The rows of one record, as the module says."""
    for index, outcome in enumerate(scored.outcomes):
        yield {
            "id": scored.id,
            "index": None if scored.unread else index,
            "score": outcome.score,
            "normalized": outcome.normalized,
            "truncated": None if outcome.code else outcome.truncated,
            "error": {"code": outcome.code, "message": outcome.message} if outcome.code else None,
            "line": scored.line,
            "digest": scored.digest,
            "fingerprint": fingerprint,
        }


def is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def require_writable(path: Path, inputs: Iterable[Path] = ()) -> None:
    """Raises DataError when `path` cannot be written once everything is scored, or takes the place of an input."""
    if path.suffix.lower() in _OTHER_FORMS:
        raise DataError(f"{path}: JSON lines or Parquet are written: name an output that ends in .jsonl or .parquet")
    if not path.parent.is_dir():
        raise DataError(f"{path.parent} is not a folder: make it, or name another output")
    for written, source in product((path, journal_path(path), _scratch_path(path)), inputs):
        if written.exists() and source.exists() and written.samefile(source):
            raise DataError(f"{written} would replace the input {source}: name another output")
    if is_parquet(path):
        _pyarrow()


def journal_path(output: Path) -> Path:
    """The file that holds what is scored so far."""
    return output.with_name(f"{output.name}.partial")


def write_rows(path: Path, rows: Iterable[dict[str, Any]], schema: Any = None) -> None:
    """Write all or nothing: `path` appears when it is whole. `schema` is Parquet's, by default that of results."""
    scratch = _scratch_path(path)
    try:
        if is_parquet(path):
            _write_parquet(scratch, rows, schema or _schema())
        else:
            _write_lines(scratch, rows)
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        scratch.unlink(missing_ok=True)


def _scratch_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.writing")


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _write_parquet(path: Path, rows: Iterable[dict[str, Any]], schema: Any) -> None:
    pyarrow, parquet = _pyarrow()
    remaining = iter(rows)
    with parquet.ParquetWriter(path, schema) as writer:
        while group := list(islice(remaining, _GROUP)):
            writer.write_table(pyarrow.Table.from_pylist(group, schema))


def _schema() -> Any:
    pyarrow, _ = _pyarrow()
    text = pyarrow.string()
    return pyarrow.schema(
        {
            "id": text,
            "index": pyarrow.int64(),
            "score": pyarrow.float64(),
            "normalized": pyarrow.float64(),
            "truncated": pyarrow.bool_(),
            "error": pyarrow.struct({"code": text, "message": text}),
            "line": pyarrow.int64(),
            "digest": text,
            "fingerprint": text,
        }
    )


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError("writing parquet needs pyarrow: pip install pyarrow") from None
    return pyarrow, parquet
