"""Rows come out of every kind of file the same, wherever reading begins; what cannot be decoded costs its own row."""

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from beholder.records.problems import BadRecord
from beholder.records.sources import Row, read_rows, split_rows
from beholder.settings import Settings
from tests.offline.scoring import read, score, write

MARK = b"\xef\xbb\xbf"
MEASURED = """
import json, re, sys
from pathlib import Path
import pyarrow.parquet
from beholder.records.sources import read_rows

peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
before = peak()
rows = sum(1 for _ in read_rows(Path(sys.argv[1])))
print(json.dumps([rows, peak() - before]))
"""
RECORDS = [{"id": f"r{n}", "prompt": "?", "responses": ["A"]} for n in range(200)]


def values(rows: list[Row]) -> list[Any]:
    return [row.value for row in rows]


def in_parts(file: Path, size: int) -> list[Row]:
    """As actors read it."""
    return [row for place in split_rows(file, size) for row in islice(read_rows(file, *place), size)]


@pytest.fixture(params=["jsonl", "marked.jsonl", "parquet"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """RECORDS; as Parquet in three row groups, of several batches each."""
    path = tmp_path / f"data.{request.param}"
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path, row_group_size=90)
        return path
    write(path, RECORDS)
    path.write_bytes(MARK * ("marked" in path.name) + path.read_bytes())
    return path


def test_reading_may_begin_after_any_row(file: Path) -> None:
    rows = list(read_rows(file))
    assert values(rows) == RECORDS
    for begin in (0, 1, 63, 64, 89, 90, 150, 199):
        row = rows[begin]
        assert list(read_rows(file, row.offset, row.number)) == rows[begin + 1 :]


@pytest.mark.parametrize("size", [7, 64, 128])
def test_parts_are_the_whole(file: Path, size: int) -> None:
    assert in_parts(file, size) == list(read_rows(file))


def test_a_byte_order_mark_is_no_part_of_a_record(tmp_path: Path) -> None:
    """Also where the first line has nothing else; within the file it is what it was."""
    plain = write(tmp_path / "plain.jsonl", RECORDS[:3])
    marked = tmp_path / "marked.jsonl"
    marked.write_bytes(MARK + plain.read_bytes())
    assert [row.digest() for row in read_rows(marked)] == [row.digest() for row in read_rows(plain)]
    marked.write_bytes(MARK + b"\n" + plain.read_bytes())
    assert [row.number for row in in_parts(marked, 2)] == [2, 3, 4]
    marked.write_bytes(plain.read_bytes() + MARK + plain.read_bytes())
    assert [isinstance(row.value, BadRecord) for row in read_rows(marked)] == [False] * 3 + [True] + [False] * 2


def test_a_text_that_is_not_utf8_costs_its_row(fake: Settings, tmp_path: Path) -> None:
    texts = pyarrow.StringArray.from_buffers(
        3, pyarrow.py_buffer(np.array([0, 3, 6, 9], "i4").tobytes()), pyarrow.py_buffer(b"Q0?Q\xff?Q2?")
    )
    columns = {"id": ["a", "b", "c"], "prompt": texts, "responses": [["A"]] * 3}
    parquet.write_table(pyarrow.table(columns), tmp_path / "data.parquet")
    assert score(fake, tmp_path / "data.parquet", tmp_path / "out.jsonl").errors == {"not-utf8": 1}
    rows = read(tmp_path / "out.jsonl")
    assert [(row["line"], row["error"] and row["error"]["code"]) for row in rows] == [
        (1, None),
        (2, "not-utf8"),
        (3, None),
    ]
    elsewhere = tmp_path / "elsewhere.parquet"
    elsewhere.write_bytes((tmp_path / "data.parquet").read_bytes())
    assert [row.digest() for row in read_rows(elsewhere)] == [row["digest"] for row in rows]


def test_a_row_group_does_not_stand_in_memory_whole(tmp_path: Path) -> None:
    """Of 90 MiB of images in one group."""
    images = [{"bytes": os.urandom(3000)} for _ in range(30_000)]
    kind = pyarrow.struct([("bytes", pyarrow.binary())])
    parquet.write_table(pyarrow.table({"image": pyarrow.array(images, kind)}), tmp_path / "data.parquet")
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "data.parquet")]
    rows, mebibytes = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert rows == 30_000
    assert mebibytes < 60
