"""What comes out of score-file: one row a response, in order, whatever the input's layout and the file's form."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from beholder.checkpoint import read_checkpoint
from beholder.errors import DataError, EngineUnavailable
from beholder.local import rank_locally
from beholder.settings import Settings, load_settings
from tests.offline.scoring import read, score, write
from tests.pictures import png


def test_one_row_a_response_in_order(fake: Settings, scenes: Path, tmp_path: Path) -> None:
    summary = score(fake, scenes, tmp_path / "out.jsonl")
    rows, records = read(tmp_path / "out.jsonl"), read(scenes)
    expected = [(record["id"], index) for record in records for index in range(len(record["responses"]))]
    assert [(row["id"], row["index"]) for row in rows] == expected
    assert list(rows[0]) == [
        "id", "index", "score", "normalized", "truncated", "error", "line", "digest", "fingerprint",
    ]  # fmt: skip
    assert {row["fingerprint"] for row in rows} == {read_checkpoint(fake.checkpoint).fingerprint}
    assert all(row["error"] is None and row["normalized"] is not None for row in rows)
    assert [rows[4]["line"], rows[-1]["line"]] == [2, 64]
    assert str(summary) == f"{len(rows)} responses of 64 records scored, 0 errors"
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_scores_are_those_of_rank(tiny_checkpoint: Path, scenes: Path, tmp_path: Path) -> None:
    settings = load_settings({"checkpoint": tiny_checkpoint, "engine": "transformers"})
    few = write(tmp_path / "few.jsonl", read(scenes)[:8])
    score(settings, few, tmp_path / "out.jsonl", image_root=scenes.parent)
    rows = read(tmp_path / "out.jsonl")
    record = read(few)[3]
    image = scenes.parent / record["img_path"]
    ranking = asyncio.run(rank_locally(settings, record["prompt"], [image], record["responses"]))
    found = [row for row in rows if row["line"] == 4]
    assert [row["score"] for row in found] == pytest.approx(ranking.scores, abs=1e-5)
    assert [row["normalized"] for row in found] == pytest.approx(ranking.normalized, abs=1e-5)


def test_every_layout_is_scored(fake: Settings, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    rated = {"annotations": [{"Helpfulness": {"Rating": "N/A"}}, {}], "response": ["A", "B"]}
    data = write(
        tmp_path / "data.jsonl",
        [
            {"id": 7, "prompt": "?", "img_path": "a.png", "chosen": "A", "rejected": "B"},
            {"id": "c", "prompt": "?", "img_path": "a.png", "completions": rated},  # scored whatever the ratings are
            {"id": "t", "prompt": "?", "responses": ["A", "B"]},
        ],
    )
    score(fake, data, tmp_path / "out.jsonl")
    rows = read(tmp_path / "out.jsonl")
    assert [(row["id"], row["index"]) for row in rows] == [(id_, index) for id_ in "7ct" for index in (0, 1)]
    assert [row["score"] for row in rows[:2]] == [row["score"] for row in rows[2:4]]
    assert rows[4]["score"] != rows[0]["score"]


def test_parquet_in_and_out(fake: Settings, tmp_path: Path) -> None:
    picture = png()
    (tmp_path / "a.png").write_bytes(picture)
    records = [{"id": f"r{n}", "prompt": f"{n}?", "responses": ["A", "B"]} for n in range(600)]
    lines = write(tmp_path / "data.jsonl", [{**record, "img_path": "a.png"} for record in records])
    embedded = [{**record, "image": {"bytes": picture, "path": "elsewhere.png"}} for record in records]
    parquet.write_table(pyarrow.Table.from_pylist(embedded), tmp_path / "data.parquet", row_group_size=250)
    score(fake, lines, tmp_path / "from_lines.jsonl")
    score(fake, tmp_path / "data.parquet", tmp_path / "from_parquet.jsonl")
    score(fake, tmp_path / "data.parquet", tmp_path / "out.parquet")
    rows = read(tmp_path / "from_parquet.jsonl")
    assert parquet.read_table(tmp_path / "out.parquet").to_pylist() == rows
    others = read(tmp_path / "from_lines.jsonl")
    assert {row.pop("digest") for row in rows}.isdisjoint([row.pop("digest") for row in others])  # of other records
    assert rows == others


def test_records_without_an_id_are_told_apart(fake: Settings, tmp_path: Path) -> None:
    record: dict[str, Any] = {"prompt": "?", "responses": ["A"]}
    (tmp_path / "data.jsonl").write_text(f"{json.dumps(record)}\n\n{json.dumps(record)}\n")
    score(fake, tmp_path / "data.jsonl", tmp_path / "out.jsonl")
    first, second = (row["id"] for row in read(tmp_path / "out.jsonl"))
    assert (first[:2], second[:2]) == ("1-", "3-")
    assert first[2:] == second[2:]


def test_a_record_with_a_null_id_has_its_idx(fake: Settings, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", [{"id": None, "idx": 5, "prompt": "?", "responses": ["A"]}])
    score(fake, data, tmp_path / "out.jsonl")
    assert read(tmp_path / "out.jsonl")[0]["id"] == "5"


@pytest.mark.parametrize("name", ["out.json", "out.JSON", "out.csv"])
def test_a_name_of_another_form_is_refused(fake: Settings, scenes: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"name an output that ends in \.jsonl or \.parquet"):
        score(fake, scenes, tmp_path / name)


def test_what_is_too_long_is_cut_by_setting_and_said_so(fake: Settings, tmp_path: Path) -> None:
    """With a picture, which takes tokens that only the engine knows of; a response is never cut."""
    (tmp_path / "a.png").write_bytes(png())
    long = "word " * 2000 + "the end?"
    data = write(
        tmp_path / "data.jsonl",
        [
            {"prompt": long, "img_path": "a.png", "responses": ["A", "B"]},
            {"prompt": "?", "responses": ["A", long]},
        ],
    )
    cutting = fake.model_copy(update={"overlong": "truncate"})
    assert score(cutting, data, tmp_path / "out.jsonl").errors == {"prompt-too-long": 1}
    assert [row["truncated"] for row in read(tmp_path / "out.jsonl")] == [True, True, False, None]
    score(fake, data, tmp_path / "refused.jsonl")
    assert [row["truncated"] for row in read(tmp_path / "refused.jsonl")] == [None, None, False, None]


def test_what_was_cut_is_scored_again_where_the_engine_fails(
    tiny_checkpoint: Path, fake: Settings, tmp_path: Path
) -> None:
    data = write(tmp_path / "data.jsonl", [{"prompt": "word " * 2000, "responses": [f"A{n}" for n in range(40)]}])
    failing = fake.model_copy(update={"overlong": "truncate", "engine_args": {"failure_rate": 0.2}})
    summary = score(failing, data, tmp_path / "out.jsonl")
    assert summary.scored > 30
    assert summary.scored + summary.errors["engine-error"] == 40


@pytest.mark.parametrize(("options", "error_rows"), [({"failure_rate": 0.3}, True), ({"failure_rate": 0.0}, False)])
def test_a_failing_engine_costs_no_other_response(
    tiny_checkpoint: Path, scenes: Path, tmp_path: Path, options: dict[str, float], error_rows: bool
) -> None:
    settings = load_settings({"checkpoint": tiny_checkpoint, "engine": "fake", "engine_args": options})
    summary = score(settings, scenes, tmp_path / "out.jsonl")
    assert summary.scored + summary.errors["engine-error"] == 256
    assert summary.scored > 200  # of three attempts one succeeds mostly
    assert bool(summary.errors) == error_rows


def test_a_dead_engine_ends_the_run_and_the_next_goes_on(fake: Settings, scenes: Path, tmp_path: Path) -> None:
    score(fake, scenes, tmp_path / "whole.jsonl")
    dying = fake.model_copy(update={"engine_args": {"die_after": 100}})
    with pytest.raises(EngineUnavailable):
        score(dying, scenes, tmp_path / "out.jsonl", in_flight=16)
    assert not (tmp_path / "out.jsonl").exists()
    assert len(read(tmp_path / "out.jsonl.partial")) > 10
    score(fake, scenes, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("no/such/out.jsonl", "is not a folder"),
        ("there.jsonl", "there.jsonl exists: name another output, or score anew with --restart"),
    ],
)
def test_what_cannot_be_written_is_refused_first(
    fake: Settings, scenes: Path, tmp_path: Path, output: str, message: str
) -> None:
    (tmp_path / "there.jsonl").write_text("mine")
    with pytest.raises(DataError, match=message):
        score(fake, scenes, tmp_path / output)
    assert (tmp_path / "there.jsonl").read_text() == "mine"


@pytest.mark.parametrize("output", ["in.jsonl", "./in.jsonl", "linked.jsonl", "in"])
def test_the_input_is_not_replaced_even_by_a_restart(fake: Settings, tmp_path: Path, output: str) -> None:
    data = tmp_path / ("in.partial" if output == "in" else "in.jsonl")
    (tmp_path / "linked.jsonl").symlink_to(data)
    write(data, [{"prompt": "?", "responses": ["A"]}])
    before = data.read_bytes()
    with pytest.raises(DataError, match="would replace the input"):
        score(fake, data, tmp_path / output, restart=True)
    assert data.read_bytes() == before


def test_restart_replaces_the_output(fake: Settings, scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("old")
    (tmp_path / "out.jsonl.partial").write_text("older")
    score(fake, scenes, tmp_path / "out.jsonl", restart=True)
    assert len(read(tmp_path / "out.jsonl")) == 256
