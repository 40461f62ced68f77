"""Every kind of bad record is reported by its line, and none ends a run that skips them."""

import json
from pathlib import Path

import pytest

from beholder.errors import DataError
from beholder.records.problems import KINDS, Problem
from beholder_training.bases import make_base
from beholder_training.checking import Examine, PictureCheck, check_files
from beholder_training.cli import main
from beholder_training.measuring import LengthCheck
from tests.pictures import png
from tests.training.hostile import BAD, PAIR, write_hostile


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    return write_hostile(tmp_path)


def test_every_bad_record_is_reported_by_line_with_its_kind(hostile: Path, tiny_base: Path) -> None:
    examine: list[Examine] = [PictureCheck(), LengthCheck(str(tiny_base), max_length=512)]
    checked = check_files([hostile], examine=examine, progress=False)
    found: dict[str, list[str]] = {}
    for problem in checked.problems:
        found.setdefault(problem.where, []).append(problem.kind)
    for number, (kind, _) in enumerate(BAD):
        assert found.pop(f"{hostile}:{2 * number + 1}")[0] == kind
    assert not found  # the good lines between them
    assert checked.read == 2 * len(BAD)
    partly = 3  # a response of three left out, two remain
    assert len(checked.records) == len(BAD) + partly


def test_the_hostile_set_has_every_kind() -> None:
    kinds = {kind for kind, _ in BAD}
    assert kinds == set(KINDS) - {"unexpected", "rewritten-text"}  # no template of ours rewrites
    assert len(kinds) >= 15


def test_whatever_a_processor_raises_is_the_records_problem(hostile: Path) -> None:
    def fail(record: object) -> None:
        raise ZeroDivisionError

    checked = check_files([hostile], examine=[fail], progress=False)
    assert Problem(f"{hostile}:2", "unexpected", "ZeroDivisionError") in checked.problems
    assert not checked.records


def test_a_good_set_passes(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-data", str(world / "length" / "train.jsonl")]) == 0
    assert "64 records read, 64 usable (64 with images) with 192 pairs; no problems" in capsys.readouterr().out


def test_check_data_lists_by_line_and_fails(hostile: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-data", str(hostile), "--base", str(tiny_base), "--max-length", "512"]) == 1
    printed = capsys.readouterr()
    assert f"{hostile}:1: not-json: not JSON" in printed.out
    assert f"{hostile}:{2 * len(BAD) - 1}: too-long: the conversation has" in printed.out
    assert f"{2 * len(BAD)} records read" in printed.out
    assert "3 missing-response" in printed.err


@pytest.mark.parametrize("sees", ["text_only", "blank_image"])
def test_check_data_measures_for_the_proxy(
    sees: str, world: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The blank image has more tokens than the world's pictures, no image has fewer."""
    command = ["check-data", str(world / "length" / "train.jsonl"), "--base", str(tiny_base), "--max-length", "100"]
    assert main(command) == 0
    assert main([*command, "--proxy-input", sees]) == (1 if sees == "blank_image" else 0)
    assert ("too-long: for the proxy: the conversation has" in capsys.readouterr().out) == (sees == "blank_image")


def test_check_data_measures_with_the_runs_image_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A picture three times as wide as high is three tiles and a thumbnail for InternVL, one tile where that is set."""
    make_base(tmp_path / "base", "internvl")
    (tmp_path / "wide.png").write_bytes(png(192, 64))
    (tmp_path / "data.jsonl").write_text(json.dumps({**PAIR, "img_path": "wide.png"}) + "\n")
    command = ["check-data", str(tmp_path / "data.jsonl"), "--base", str(tmp_path / "base"), "--max-length", "80"]
    assert main(command) == 1
    assert "too-long: the conversation has" in capsys.readouterr().out
    assert main([*command, "--image-options", "max_patches=1"]) == 0
    assert main([*command, "--image-options", "patches=1"]) == 1
    assert "the image processor of this base has no setting 'patches'" in capsys.readouterr().err


@pytest.mark.parametrize("proxy", [[], ["--proxy-base"]])
def test_a_proxy_on_a_base_of_its_own_has_its_own_images(proxy: list[str], world: Path, tmp_path: Path) -> None:
    """Four tiles of the square blank image and a thumbnail, on the base that is the run's or another."""
    make_base(tmp_path / "base", "internvl")
    command = ["check-data", str(world / "length" / "train.jsonl"), "--base", str(tmp_path / "base")]
    command += ["--max-length", "100", "--image-options", "max_patches=1", "--proxy-input", "blank_image"]
    assert main([*command, *proxy, *[str(tmp_path / "base")] * len(proxy)]) == len(proxy)


@pytest.mark.parametrize(
    "option",
    [["--max-length", "100"], ["--image-options", "a=1"], ["--proxy-input", "text_only"], ["--proxy-base", "b"]],
)
def test_check_data_measures_for_a_base_alone(
    option: list[str], world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check-data", str(world / "length" / "train.jsonl"), *option]) == 1
    assert f"{option[0]} measures sequences for a base: give --base too" in capsys.readouterr().err


def _train(hostile: Path, world: Path, base: Path, output: Path, bad_records: str) -> int:
    files = ["--train", str(hostile), "--validation", str(world / "length" / "responses.jsonl")]
    settings = ["batch_prompts=8", "max_length=512", f"bad_records={bad_records}", "learning_rate=1e-3"]
    arguments = ["--base", str(base), "--output", str(output), "--steps", "2", "--algorithm", "sfc"]
    return main(["train", *files, *arguments, "--set", *settings])


def test_training_fails_by_default_and_says_what_and_where(
    hostile: Path, world: Path, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _train(hostile, world, tiny_base, tmp_path / "rm", "fail") == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"beholder-train: error: {hostile}:1: not-json")
    assert "3 missing-response" in error
    assert not (tmp_path / "rm").exists()


def test_training_skips_on_request_and_prints_the_counts(
    hostile: Path, world: Path, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _train(hostile, world, tiny_base, tmp_path / "rm", "skip") == 0
    assert f"{hostile}: {2 * len(BAD)} records read, {len(BAD) + 3} usable" in capsys.readouterr().err
    assert (tmp_path / "rm" / "reward.json").is_file()


def test_held_out_records_are_examined_by_the_same_rule(
    hostile: Path, world: Path, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Partly usable records, and those without a pair, are no better held out than trained on."""
    lines = [json.dumps(bad) for kind, bad in BAD if kind in ("duplicate-response", "non-numeric-rating", "ties-only")]
    held_out = hostile.with_name("held_out.jsonl")
    held_out.write_text("\n".join([*lines, json.dumps(PAIR)]) + "\n")
    files = ["--train", str(world / "length" / "train_pairs.jsonl"), "--validation", str(held_out)]
    arguments = ["train", *files, "--base", str(tiny_base), "--output", str(tmp_path / "rm"), "--steps", "1"]
    settings = ["--algorithm", "standard", "--set", "batch_prompts=2"]
    assert main([*arguments, *settings]) == 1
    assert f"error: {held_out}:1: duplicate-response" in capsys.readouterr().err.strip().splitlines()[-1]
    assert main([*arguments, *settings, "bad_records=skip"]) == 0
    printed = capsys.readouterr()
    assert (
        f"{held_out}: 6 records read, 4 usable (4 with images) with 4 pairs; problems: 2 duplicate-response"
        in printed.err
    )
    assert "over 4 pairs" in printed.out


def test_data_without_any_image_are_refused_unless_text_alone_is_asked_for(
    world: Path, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "texts.jsonl"
    data.write_text(json.dumps({key: PAIR[key] for key in ("prompt", "chosen", "rejected")}) + "\n")
    files = ["--train", str(data), "--validation", str(data), "--base", str(tiny_base)]
    arguments = ["train", *files, "--output", str(tmp_path / "rm"), "--steps", "1", "--algorithm", "standard"]
    assert main(arguments) == 1
    assert f"{data}: no record has an image; set text_only=true and algorithm=standard" in capsys.readouterr().err
    assert main([*arguments, "--set", "text_only=true"]) == 0


def test_every_file_says_how_many_of_its_records_have_images(
    world: Path, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file with pictures hides none without."""
    texts, pictures = tmp_path / "texts.jsonl", world / "length" / "train_pairs.jsonl"
    texts.write_text(json.dumps({key: PAIR[key] for key in ("prompt", "chosen", "rejected")}) + "\n")
    held_out = world / "length" / "responses.jsonl"
    files = ["--train", str(pictures), str(texts), "--validation", str(held_out), str(texts)]
    arguments = ["train", *files, "--base", str(tiny_base), "--output", str(tmp_path / "rm"), "--steps", "1"]
    assert main([*arguments, "--algorithm", "standard", "--set", "batch_prompts=2"]) == 0
    printed = capsys.readouterr().err
    assert f"{pictures}: 64 records read, 64 usable (64 with images) with 64 pairs; no problems" in printed
    assert f"{texts}: 1 records read, 1 usable (0 with images) with 1 pairs; no problems" in printed
    assert printed.count(f"warning: {texts}: none of its 1 records has an image") == 2  # trained on, and held out
    assert f"warning: {pictures}" not in printed


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("[]\n")
    with pytest.raises(DataError, match="not-an-object"):
        check_files([tmp_path / "a.jsonl"], progress=False).require_good()
