"""best-of-N, filters and pairs come out of a data file and its scores, and go into training as they are."""

from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from beholder.cli import main
from beholder.offline.results import result_rows
from beholder.offline.tasks import Outcome, Scored, read_task
from beholder.records.sources import read_rows
from beholder.settings import Settings
from beholder_training.data import read_records
from tests.offline.scoring import read, score, write
from tests.pictures import png

RECORDS = [
    {"id": "a", "prompt": "A?", "img_path": "a.png", "responses": ["a0", "a1", "a2"]},
    {"id": "b", "prompt": "B?", "img_path": "a.png", "responses": ["b0", "b1"]},
    {"id": "c", "prompt": "C?", "responses": ["c0"]},
]
SCORES: list[list[float | None]] = [[1.0, 3.0, 2.0], [0.5, None], [0.5]]


def results(data: Path, scores: list[list[float | None]]) -> list[dict[str, Any]]:
    """What score-file writes of `data`; None is a response that could not be scored."""
    rows: list[dict[str, Any]] = []
    for task, found in zip(map(read_task, read_rows(data)), scores, strict=True):
        outcomes = (task.problem,) if task.problem else tuple(map(outcome, found))
        rows += result_rows(Scored.of(task, outcomes), "a" * 64)
    return rows


def outcome(score: float | None) -> Outcome:
    return Outcome(code="empty-response", message="") if score is None else Outcome(score)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png())
    write(tmp_path / "in" / "data.jsonl", RECORDS)
    write(tmp_path / "scores.jsonl", results(tmp_path / "in" / "data.jsonl", SCORES))
    return tmp_path


def select(folder: Path, *options: str, data: str = "in/data.jsonl", output: str = "out.jsonl") -> int:
    files = [str(folder / name) for name in (data, "scores.jsonl", output)]
    return main(["select", *files, *options])


@pytest.mark.parametrize(
    ("options", "responses"),
    [
        ([], ["a0", "a1", "a2", "b0", "c0"]),
        (["--min-score", "1.0"], ["a0", "a1", "a2"]),
        (["--top-fraction", "0.2"], ["a1"]),
        (["--top-fraction", "0.8"], ["a0", "a1", "a2", "b0", "c0"]),  # the fourth highest is a tie
        (["--best-of-n"], ["a1", "b0", "c0"]),
        (["--best-of-n", "1"], ["a0", "b0", "c0"]),
        (["--best-of-n", "--top-fraction", "0.3"], ["a1"]),
    ],
)
def test_responses_are_selected_by_score(folder: Path, options: list[str], responses: list[str]) -> None:
    assert select(folder, *options) == 0
    assert [row["response"] for row in read(folder / "out.jsonl")] == responses


def test_pairs_are_training_data(folder: Path) -> None:
    assert select(folder, "--pairs") == 0
    (record,) = read_records([folder / "out.jsonl"])
    assert (record.id, record.prompt, record.responses, record.pairs()) == ("a", "A?", ("a1", "a0"), [(0, 1)])
    assert record.images == (folder / "in" / "a.png",)
    assert read(folder / "out.jsonl")[0]["margin"] == 2.0
    assert select(folder, "--pairs", "--min-score", "2.5", output="none.jsonl") == 0
    assert read(folder / "none.jsonl") == []


def test_embedded_images_stay_embedded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**record, "img_path": None, "image": {"bytes": png(), "path": "x.png"}} for record in RECORDS]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "in" / "data.parquet")
    write(folder / "scores.jsonl", results(folder / "in" / "data.parquet", SCORES))
    assert select(folder, "--pairs", data="in/data.parquet", output="pairs.parquet") == 0
    (pair,) = parquet.read_table(folder / "pairs.parquet").to_pylist()
    assert (pair["chosen"], pair["images"]) == ("a1", [{"path": None, "bytes": png()}])
    assert select(folder, data="in/data.parquet") == 1
    assert "record 'a' holds its images itself: name an output that ends in .parquet" in capsys.readouterr().err
    assert not (folder / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([{**RECORDS[0], "id": "z"}, *RECORDS[1:]], "line 1 is another record"),
        ([{**RECORDS[0], "responses": ["A0", "A1", "A2"]}, *RECORDS[1:]], "line 1 is another record"),
        (RECORDS[:2], "line 3 is another record"),
        ([*RECORDS, {**RECORDS[0], "id": "d"}], "has no scores for"),
    ],
)
def test_scores_of_another_file_are_refused(
    folder: Path, data: list[dict[str, Any]], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder / "in" / "data.jsonl", data)
    assert select(folder, "--best-of-n") == 1
    assert message in capsys.readouterr().err
    assert not (folder / "out.jsonl").exists()


def test_scores_that_are_not_all_there_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder / "scores.jsonl", read(folder / "scores.jsonl")[1:])
    assert select(folder) == 1
    assert "line 1 has other responses" in capsys.readouterr().err


def test_scores_of_an_older_version_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{name: row[name] for name in row if name != "digest"} for row in read(folder / "scores.jsonl")]
    write(folder / "scores.jsonl", rows)
    assert select(folder) == 1
    assert "scores.jsonl:1 has no digest, which shows what was scored: score the file again" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_what_score_file_writes_is_selected_from(fake: Settings, folder: Path, form: str) -> None:
    """Of each form of data and scores; a record that was not read among them."""
    records = [*RECORDS, {"id": "d", "prompt": None, "responses": ["d0"]}]
    parquet.write_table(pyarrow.Table.from_pylist(records), folder / "in" / "data.parquet")
    data = write(folder / "in" / "data.jsonl", records).with_suffix(f".{form}")
    score(fake, data, folder / f"own.{form}")
    assert main(["select", str(data), str(folder / f"own.{form}"), str(folder / "out.jsonl")]) == 0
    assert [row["response"] for row in read(folder / "out.jsonl")] == ["a0", "a1", "a2", "b0", "b1", "c0"]


def test_images_are_found_from_an_output_in_a_linked_folder(folder: Path) -> None:
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "link").symlink_to(folder / "deep" / "er")
    assert select(folder, "--pairs", output="link/out.jsonl") == 0
    (record,) = read_records([folder / "link" / "out.jsonl"])
    assert [image.read_bytes() for image in record.images] == [png()]


def test_a_share_is_not_rounded_up_by_floating_point(folder: Path) -> None:
    write(folder / "in" / "data.jsonl", [{"prompt": f"{n}?", "responses": ["A"]} for n in range(100)])
    write(folder / "scores.jsonl", results(folder / "in" / "data.jsonl", [[float(n)] for n in range(100)]))
    assert select(folder, "--top-fraction", "0.07") == 0
    assert len(read(folder / "out.jsonl")) == 7


@pytest.mark.parametrize("link", [None, "symlink_to", "hardlink_to"])
@pytest.mark.parametrize("name", ["in/data.jsonl", "scores.jsonl"])
def test_an_input_is_not_replaced(
    folder: Path, name: str, link: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    before, output = (folder / name).read_bytes(), name
    if link:
        getattr(folder / "out.jsonl", link)(folder / name)
        output = "out.jsonl"
    assert select(folder, "--best-of-n", output=output) == 1
    assert "would replace the input" in capsys.readouterr().err
    assert (folder / name).read_bytes() == before


def test_what_is_no_result_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder / "scores.jsonl", [{"id": "a", "score": 1.0}])
    assert select(folder) == 1
    assert "scores.jsonl:1: not a result of score-file" in capsys.readouterr().err


def test_a_record_that_was_not_read_is_passed_over(folder: Path) -> None:
    write(folder / "in" / "data.jsonl", [[1], RECORDS[1]])
    write(folder / "scores.jsonl", results(folder / "in" / "data.jsonl", [[], [1.0, 2.0]]))
    assert select(folder, "--best-of-n") == 0
    assert [row["response"] for row in read(folder / "out.jsonl")] == ["b1"]
