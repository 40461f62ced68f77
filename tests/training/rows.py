"""One row of a data file, read as training reads it."""

import json
from pathlib import Path
from typing import Any

from beholder.records.problems import Problem
from beholder_training.data import Record, read_records, scan


def read_row(raw: Any, folder: Path) -> Record:
    """The record that `raw` becomes as the only line of `folder`/data.jsonl. Raises DataError."""
    return read_records([_write(raw, folder)])[0]


def refusal(raw: Any, folder: Path) -> Problem:
    """Why `raw` becomes no record there."""
    ((record, (problem,)),) = scan([_write(raw, folder)])
    assert record is None
    return problem


def _write(raw: Any, folder: Path) -> Path:
    file = folder / "data.jsonl"
    file.write_text(json.dumps(raw) + "\n")
    return file
