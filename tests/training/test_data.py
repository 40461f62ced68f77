"""Both preference formats become records; every unusable line is named."""

import json
from pathlib import Path
from typing import Any

import pytest

from beholder.errors import DataError
from beholder_training.data import read_records, scan, with_pairs
from tests.pictures import png
from tests.training.rows import read_row


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(png())
    return tmp_path


def rating(*values: str) -> dict[str, Any]:
    return {f"aspect {number}": {"Rating": value} for number, value in enumerate(values)}


def completions(ratings: list[dict[str, Any]], responses: list[str]) -> dict[str, Any]:
    return {"prompt": "?", "img_path": "a.png", "completions": {"annotations": ratings, "response": responses}}


def test_pairs(folder: Path) -> None:
    record = read_row({"id": 7, "prompt": "?", "img_path": "a.png", "chosen": "A", "rejected": "B"}, folder)
    assert (record.id, record.responses, record.pairs()) == ("7", ("A", "B"), [(0, 1)])
    assert record.images == (folder / "a.png",)


def test_completions_give_every_pair_of_different_means(folder: Path) -> None:
    raw = completions([rating("4", "2"), rating("5", "5"), rating("3"), rating("1", "N/A")], ["A", "B", "C", "D"])
    record = read_row(raw, folder)
    assert record.responses == ("A", "B", "C")  # D has a rating that is no number
    assert record.qualities == (3.0, 5.0, 3.0)
    assert record.pairs() == [(1, 0), (1, 2)]  # A and C tie


def test_equal_means_tie_in_any_order_of_the_ratings(folder: Path) -> None:
    raw = completions([rating("5", "3.3", "3.3"), rating("3.3", "3.3", "5")], ["A", "B"])
    assert not read_row(raw, folder).pairs()


@pytest.mark.parametrize("ratings", [("1e308", "1e308"), ("inf", "-inf"), ()])
def test_ratings_without_a_mean_are_no_number(folder: Path, ratings: tuple[str, ...]) -> None:
    record = read_row(completions([rating(*ratings), rating("1"), rating("2")], ["A", "B", "C"]), folder)
    assert record.responses == ("B", "C")


def test_to_score(folder: Path) -> None:
    raw = {"prompt": "?", "img_path": ["a.png", "a.png"], "responses": ["A", "B"], "best": 1}
    record = read_row(raw, folder)
    assert len(record.images) == 2
    assert record.qualities == (0.0, 1.0)
    assert read_row({**raw, "best": 1.0}, folder).qualities == (0.0, 1.0)  # as pandas writes it


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([1], "must be a JSON object, not list"),
        ({"prompt": "?"}, "needs 'completions', or 'chosen' and 'rejected'"),
        ({"prompt": "?", "chosen": "A"}, "'rejected' is missing or not a text"),
        ({"prompt": "?", "chosen": "A", "rejected": "  "}, "response 1 is empty"),
        ({"chosen": "A", "rejected": "B"}, "'prompt' is missing or empty"),
        ({"prompt": "?", "chosen": "A", "rejected": "B", "img_path": "no.png"}, "no.png does not exist"),
        ({"prompt": "?", "chosen": "A", "rejected": "B", "img_path": 3}, "must be a path or a list of paths"),
        ({"prompt": "?", "responses": ["A", ""]}, "response 1 is empty"),
        ({"prompt": "?", "responses": ["A"], "best": 1}, "'best' must be an index"),
        ({"prompt": "?", "responses": ["A", "B"], "best": True}, "'best' must be an index"),
        ({"prompt": "?", "responses": ["A", "B"], "best": 0.5}, "'best' must be an index"),
        ({"prompt": "?", "responses": []}, "must be a list of texts"),
        (completions([rating("1")], ["A", "B"]), "lists of one length"),
        (completions([rating("1"), rating("2")], ["A", ""]), "response 1 is empty"),
        ({"prompt": "?", "completions": 3}, "lists of one length"),
    ],
)
def test_a_bad_record_is_named(folder: Path, raw: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read_row(raw, folder)
    assert str(caught.value).startswith(f"{folder / 'data.jsonl'}:1: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "field", ["iVBORw0KGgo" * 500, "data:image/png;base64,iVBORw0KGgo=", "a\0b.png"], ids=["base64", "data URL", "null"]
)
def test_an_image_field_that_is_no_path_is_that_records_problem(folder: Path, field: str) -> None:
    file = folder / "data.jsonl"
    good = {"prompt": "?", "img_path": "a.png", "chosen": "A", "rejected": "B"}
    file.write_text("".join(json.dumps(line) + "\n" for line in ({**good, "img_path": field}, good)))
    (bad, (problem,)), (record, none) = scan([file])
    assert (bad, problem.where, problem.kind) == (None, f"{file}:1", "bad-image-field")
    assert "is no path: write the picture to a file" in problem.message
    assert len(problem.message) < 200
    assert record is not None
    assert not none


def test_a_line_that_is_not_json_is_named(folder: Path) -> None:
    file = folder / "data.jsonl"
    file.write_text(json.dumps({"prompt": "?", "chosen": "A", "rejected": "B"}) + "\n\n{oops\n")
    with pytest.raises(DataError, match=r"data\.jsonl:3: not JSON"):
        read_records([file])


def test_only_ties_is_an_error(folder: Path) -> None:
    record = read_row({"prompt": "?", "responses": ["A", "B"]}, folder)
    with pytest.raises(DataError, match="none of the 1 records"):
        with_pairs([record])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: No such file"):
        read_records([tmp_path / "none.jsonl"])
