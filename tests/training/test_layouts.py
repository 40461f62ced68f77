"""The published data sets' own layouts become records, from every kind of file."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from beholder.errors import DataError
from beholder.images import load_image_file
from beholder_training.data import ImagePlaces, Record, read_records, repeat_by_weight, scan
from tests.pictures import png
from tests.training.rows import read_row, refusal


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(png())
    return tmp_path


def annotation(*ratings: str) -> dict[str, Any]:
    aspects = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")
    return {aspect: {"Rating": rating, "Rationale": "."} for aspect, rating in zip(aspects, ratings, strict=True)}


VLFEEDBACK = {
    "id": "svit-1",
    "prompt": "What is it?",
    "img_path": "a.png",
    "models": ["m1", "m2"],
    "completions": [
        {"annotations": annotation("4", "5", "3"), "model": "m1", "response": "A"},
        {"annotations": annotation("1", "5", "3"), "model": "m2", "response": "B"},
    ],
}
VLFEEDBACK_LISTS = {
    **VLFEEDBACK,
    "completions": {
        "annotations": [annotation("4", "5", "3"), annotation("1", "5", "3")],
        "model": ["m1", "m2"],
        "response": ["A", "B"],
    },
}
POVID: dict[str, Any] = {
    "id": 5,
    "image": "a.png",
    "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A"}],
    "rejected_conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "B"}],
}
RLHF_V = {
    "ds_name": "RLHF-V",
    "image": {"bytes": png(), "path": "elsewhere.jpg"},
    "text": json.dumps({"question": "What is it?", "chosen": "A", "rejected": "B"}),
    "idx": 9,
    "image_path": "coco/000000000009.jpg",
}
RLAIF_V = {"question": "What is it?", "chosen": "A", "rejected": "B", "image": {"bytes": png(), "path": None}, "idx": 1}


@pytest.mark.parametrize("raw", [VLFEEDBACK, VLFEEDBACK_LISTS, POVID], ids=["objects", "lists", "povid"])
def test_json_layouts(folder: Path, raw: dict[str, Any]) -> None:
    record = read_row(raw, folder)
    assert (record.prompt, record.responses, record.pairs()) == ("What is it?", ("A", "B"), [(0, 1)])
    assert record.images == (folder / "a.png",)


def test_several_images_and_none(folder: Path) -> None:
    pair = {"prompt": "?", "chosen": "A", "rejected": "B"}
    assert read_row({**pair, "images": ["a.png", "a.png"]}, folder).images == (folder / "a.png",) * 2
    assert read_row(pair, folder).images == ()
    assert read_row({**pair, "img_path": None}, folder).images == ()


@pytest.mark.parametrize("key", ["video", "videos", "video_path", "audio", "audio_url", "frames", "frame_paths"])
def test_what_no_model_here_reads_is_refused(folder: Path, key: str) -> None:
    """MM-RLHF's rows with a video; beside an image too."""
    pair = {"prompt": "?", "chosen": "A", "rejected": "B"}
    for raw in ({**pair, key: "a.mp4"}, {**pair, key: ["a.mp4"], "image": "a.png"}):
        problem = refusal(raw, folder)
        assert problem.kind == "unknown-image-field"
        assert f"'{key}' is not read: models here see images and text alone" in problem.message
    empty: list[Any] = [None, "", []]
    for value in empty:
        assert read_row({**pair, key: value, "image": "a.png"}, folder).images == (folder / "a.png",)


def test_an_image_mark_in_a_prompt_without_image_stays(folder: Path) -> None:
    record = read_row({"prompt": "What does <image> mean?", "chosen": "A", "rejected": "B"}, folder)
    assert record.prompt == "What does <image> mean?"


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("<image>\n<image>\n<image>\nCompare.", "Compare."),
        ("<image> <image><image>Compare.", "Compare."),
        ("<image>\nCompare.\n<image>\n<image>", "Compare."),
        ("<image>\nCompare.", "Compare."),
        ("<image><image><image>\n<image> is a tag.", "<image> is a tag."),
        ("Compare.", "Compare."),
    ],
)
def test_marks_at_either_end_are_taken_off_one_an_image(folder: Path, prompt: str, read: str) -> None:
    raw = {"prompt": prompt, "images": ["a.png"] * 3, "chosen": "A", "rejected": "B"}
    assert read_row(raw, folder).prompt == read


def test_an_images_mark_between_words_is_refused(folder: Path) -> None:
    raw = {"prompt": "Look at <image> and tell.", "image": "a.png", "chosen": "A", "rejected": "B"}
    problem = refusal(raw, folder)
    assert problem.kind == "bad-image-field"
    assert "has <image> between its words, but images come before the text" in problem.message


@pytest.mark.parametrize("answer", [None, {"text": "B"}, 3])
def test_a_conversations_answer_must_be_a_text(folder: Path, answer: Any) -> None:
    turns = [POVID["rejected_conversations"][0], {"from": "gpt", "value": answer}]
    problem = refusal({**POVID, "rejected_conversations": turns}, folder)
    assert problem.kind == "missing-response"
    assert "'rejected' is missing or not a text" in problem.message


def test_both_conversations_ask_the_same_but_for_the_mark(folder: Path) -> None:
    def asking(question: str) -> dict[str, Any]:
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "B"}]
        return {**POVID, "rejected_conversations": turns}

    assert read_row(asking("What is it?\n<image>"), folder).responses == ("A", "B")
    problem = refusal(asking("<image>\nWhere is it?"), folder)
    assert problem.kind == "bad-conversation"
    assert "ask different questions" in problem.message


@pytest.mark.parametrize("raw", [RLHF_V, RLAIF_V], ids=["rlhf-v", "rlaif-v"])
def test_parquet_with_embedded_images(tmp_path: Path, raw: dict[str, Any]) -> None:
    file = tmp_path / "data.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([raw, {**raw, "idx": 10}]), file)
    places = ImagePlaces(cache=tmp_path / "cache")
    records = [record for record, _ in scan([file], places) if record is not None]
    assert [(record.id, record.prompt, record.responses) for record in records] == [
        (str(raw["idx"]), "What is it?", ("A", "B")),
        ("10", "What is it?", ("A", "B")),
    ]
    assert records[0].images == records[1].images  # stored once, by content
    assert len(list((tmp_path / "cache").rglob("*.png"))) == 1
    assert load_image_file(records[0].images[0]).pixels.size == (64, 64)


def test_a_parquet_file_of_completions(folder: Path) -> None:
    parquet.write_table(pyarrow.Table.from_pylist([VLFEEDBACK]), folder / "data.parquet")
    assert read_records([folder / "data.parquet"])[0].qualities == (4.0, 3.0)


def test_a_json_array_and_a_mixed_file(folder: Path) -> None:
    (folder / "array.json").write_text(json.dumps([VLFEEDBACK, POVID]))
    (folder / "mixed.jsonl").write_text("\n".join(map(json.dumps, (POVID, VLFEEDBACK_LISTS))))
    records = read_records([folder / "array.json", folder / "mixed.jsonl"])
    assert [record.id for record in records] == ["svit-1", "5", "5", "svit-1"]
    assert records[1].where == f"{folder / 'array.json'}:2"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{}", "holds an array of records, not dict"),
        ("a.json", "{", "one object a line is .jsonl"),
        ("a.parquet", "no", "not a parquet file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_records([tmp_path / name])


def test_weights_repeat_and_thin_a_file() -> None:
    records = [Record(str(n), "?", (), ("A", "B"), (1.0, 0.0), f"f:{n}") for n in range(10)]
    assert len(repeat_by_weight(records, 2.5, seed=0)) == 25
    thinned = repeat_by_weight(records, 0.3, seed=0)
    assert len({record.id for record in thinned}) == 3
    assert thinned == repeat_by_weight(records, 0.3, seed=0)
    assert repeat_by_weight(records, 1.0, seed=0) == records
