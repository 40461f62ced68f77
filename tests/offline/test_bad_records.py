"""Bad records: each is reported with its line, and every good one beside it is scored."""

from pathlib import Path

import pytest

from beholder.errors import DataError
from beholder.settings import Settings, load_settings
from tests.offline.scoring import read, score, write
from tests.pictures import png
from tests.training.hostile import BAD, PAIR, write_hostile

GOOD_TO_SCORE = {"duplicate-response", "non-numeric-rating", "ties-only"}  # bad for training alone
CODES = {
    "missing-image": "image-not-found",
    "unreadable-image": "invalid-image",
    "too-large-image": "image-too-large",
    "too-long": "prompt-too-long",
}
PARTLY = {"empty-response", "invalid-text", "prompt-too-long"}  # of a response: the record's other one is scored


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    return write_hostile(tmp_path)


def test_every_bad_record_has_its_line_and_code(hostile: Path, fake: Settings, tmp_path: Path) -> None:
    summary = score(fake, hostile, tmp_path / "out.jsonl")
    rows = read(tmp_path / "out.jsonl")
    by_line = {line: [row for row in rows if row["line"] == line] for line in range(1, 2 * len(BAD) + 1)}
    kinds = set()
    for number, (kind, _) in enumerate(BAD):
        bad, good = by_line[2 * number + 1], by_line[2 * number + 2]
        assert [(row["index"], row["error"]) for row in good] == [(0, None), (1, None)]
        assert all(row["score"] is not None for row in good)
        code = CODES.get(kind, kind)
        found = [row["error"]["code"] if row["error"] else None for row in bad]
        if kind in GOOD_TO_SCORE:
            assert set(found) == {None}
        elif code in PARTLY:
            assert sorted(map(str, found)) == sorted(["None", code])
        else:
            assert set(found) == {code}
        kinds |= set(found) - {None}
        assert all((row["score"] is None) == (row["error"] is not None) for row in bad)
    assert len(kinds) >= 15
    assert summary.errors.total() == sum(row["error"] is not None for row in rows)


def test_an_unread_record_has_one_row_without_index(hostile: Path, fake: Settings, tmp_path: Path) -> None:
    score(fake, hostile, tmp_path / "out.jsonl")
    first = read(tmp_path / "out.jsonl")[0]
    assert (first["index"], first["error"]["code"]) == (None, "not-json")
    assert first["id"].startswith("1-")


def test_a_record_of_the_wrong_shape_keeps_its_id(fake: Settings, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", [{"id": "a \ud800", "prompt": "?"}])
    score(fake, data, tmp_path / "out.parquet")
    score(fake, data, tmp_path / "out.jsonl")
    assert read(tmp_path / "out.jsonl")[0]["id"] == "a \\ud800"


@pytest.mark.parametrize("path", ["/dev/zero", "nul\0byte.png", ".", "x" * 5000, "lone \ud800.png"])
def test_hostile_image_paths(fake: Settings, tmp_path: Path, path: str) -> None:
    (tmp_path / "good.png").write_bytes(b"")
    data = write(tmp_path / "data.jsonl", [{**PAIR, "img_path": path}, {"prompt": "?", "responses": ["A"]}])
    score(fake, data, tmp_path / "out.jsonl")
    assert [row["error"] is None for row in read(tmp_path / "out.jsonl")] == [False, False, True]


def test_more_images_than_are_served_is_an_error(fake: Settings, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", [{**PAIR, "img_path": ["a.png"] * 5}])
    assert score(fake, data, tmp_path / "out.jsonl").errors == {"too-many-images": 2}


def test_a_picture_that_the_model_does_not_take_is_its_record_s(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The settings accept it, the checkpoint's image processor refuses it."""
    settings = load_settings({"checkpoint": tiny_checkpoint, "engine": "transformers", "max_image_aspect": 1000})
    (tmp_path / "narrow.png").write_bytes(png(2, 600))
    text = {"prompt": "?", "responses": ["A", "B"]}
    data = write(tmp_path / "data.jsonl", [text, {**text, "img_path": "narrow.png"}, text])
    assert score(settings, data, tmp_path / "out.jsonl").errors == {"invalid-image": 2}
    assert [row["error"] is None for row in read(tmp_path / "out.jsonl")] == [True, True, False, False, True, True]


def test_a_bad_record_ends_the_run_on_request(hostile: Path, fake: Settings, tmp_path: Path) -> None:
    lines = hostile.read_bytes().splitlines()
    reordered = tmp_path / "reordered.jsonl"
    reordered.write_bytes(b"\n".join([*lines[1::2], lines[0]]))
    with pytest.raises(DataError, match=rf"reordered\.jsonl:{len(BAD) + 1}: not-json: not JSON"):
        score(fake, reordered, tmp_path / "out.jsonl", stop_on_error=True)
    reordered.write_bytes(b"\n".join([*lines[1::2], lines[1]]))  # mended
    assert score(fake, reordered, tmp_path / "out.jsonl", stop_on_error=True).scored == 2 * (len(BAD) + 1)
