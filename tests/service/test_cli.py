"""The `beholder` command, as far as it needs no engine."""

import json
import shutil
from pathlib import Path

import pytest

from beholder import local
from beholder.checkpoint import Checkpoint
from beholder.cli import main
from tests.service.stand_in import StandInEngine


@pytest.fixture
def stand_in(engine: StandInEngine, monkeypatch: pytest.MonkeyPatch) -> StandInEngine:
    monkeypatch.setattr(local, "create_engine", lambda settings, checkpoint: engine)
    return engine


@pytest.mark.parametrize("command", [[], ["serve"], ["rank"], ["score"], ["verify"], ["adopt"]])
def test_help_has_examples(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "example" in shown
    if command == ["serve"]:
        assert "--max-in-flight" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "no/such/folder"], "no/such/folder is not a folder"),
        (["serve", "no/such/folder", "--port", "0"], "no/such/folder is not a folder"),
        (["serve", "x", "--port", "many"], "port: Input should be a valid integer"),
        (["serve", "x", "--engine-args", "{"], "--engine-args: "),
        (["serve", "x", "--engine-args", "{runner: generate}"], "runner cannot be set"),
        (["serve", "x", "--model", "no/name"], "--model no/name: write NAME=CHECKPOINT"),
        (["serve", "x", "--model", "x=y"], "settings: models: x names the first model already"),
        (["serve", "x", "--config", "no/such.yaml"], "no/such.yaml"),
        (["score", "p", "--response", "a", "--response", "b", "--url", "http://x"], "score takes one --response"),
        (["rank", "p", "--image", "no/such.png", "--response", "a", "--url", "http://x"], "image no/such.png: No such"),
        (["rank", "p", "--image", "no/such.png", "--response", "a", "--checkpoint", "x"], "image no/such.png: No such"),
        (["rank", "p", "--image", __file__, "--response", "a", "--checkpoint", "x"], "test_cli.py: the "),
        (["rank", "p", "--response", "a", "--url", "http://127.0.0.1:1"], "http://127.0.0.1:1/rank cannot be reached"),
    ],
)
def test_errors_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    out, error = capsys.readouterr()
    assert error.startswith("beholder: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert out == ""


@pytest.mark.parametrize("source", ["flag", "variable", "file"])
def test_serve_takes_the_checkpoint_from_any_source(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "settings.yaml").write_text("checkpoint: of/file\n" if source == "file" else "port: 0\n")
    if source == "variable":
        monkeypatch.setenv("BEHOLDER_CHECKPOINT", "of/variable")
    given = ["of/flag"] if source == "flag" else []
    assert main(["serve", *given, "--config", str(tmp_path / "settings.yaml")]) == 1
    assert f"of/{source} is not a folder" in capsys.readouterr().err


def test_serve_without_a_checkpoint_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve"]) == 1
    assert capsys.readouterr().err == "beholder: error: settings: checkpoint is missing\n"


def test_verify_compares_hashes(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tiny_checkpoint), "--no-engine"]) == 0
    assert "match their sha256" in capsys.readouterr().out


def test_verify_names_a_damaged_file(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_checkpoint, folder)
    with (folder / "golden" / "golden.jsonl").open("a") as file:
        file.write("\n")
    assert main(["verify", str(folder), "--no-engine"]) == 1
    assert "golden.jsonl: sha256 is" in capsys.readouterr().err


def test_verify_prints_the_golden_samples(
    tiny_checkpoint: Path, checkpoint: Checkpoint, stand_in: StandInEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(tiny_checkpoint)]) == 0
    shown = capsys.readouterr().out
    assert all(sample.id in shown for sample in checkpoint.golden())
    assert stand_in.stopped


def test_verify_fails_and_says_which_sample(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(local, "create_engine", lambda settings, checkpoint: StandInEngine({}))
    assert main(["verify", str(tiny_checkpoint)]) == 1
    out, error = capsys.readouterr()
    assert "FAILED" in out
    assert "golden sample" in error


@pytest.mark.usefixtures("stand_in")
def test_rank_prints_the_best_first(
    tiny_checkpoint: Path, golden_image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["rank", "p", "--image", str(golden_image), "--checkpoint", str(tiny_checkpoint)]
    arguments += [word for response in ("one", "two", "three") for word in ("--response", response)]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1", "2"]
    assert main([*arguments, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert lines[0].endswith(["one", "two", "three"][answer["best"]])
    assert sorted(answer["scores"], reverse=True) == [answer["scores"][index] for index in answer["order"]]


@pytest.mark.usefixtures("stand_in")
def test_score_prints_one_reward(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "p", "--response", "r", "--checkpoint", str(tiny_checkpoint)]) == 0
    float(capsys.readouterr().out.split()[0])
