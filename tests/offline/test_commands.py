"""The commands' flags, and what they print."""

import subprocess
import sys
from pathlib import Path

import pytest

from beholder.cli import main
from tests.offline.scoring import read, write
from tests.training.hostile import BAD, write_hostile


@pytest.mark.parametrize("command", ["score-file", "select"])
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert "example" in capsys.readouterr().out


def test_score_file_prints_a_summary(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = write_hostile(tmp_path)
    arguments = [str(hostile), str(tmp_path / "out.jsonl"), "--checkpoint", str(tiny_checkpoint), "--engine", "fake"]
    assert main(["score-file", *arguments, "--max-model-len", "512", "--no-progress"]) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "the fake engine's scores mean nothing" in printed.err
    assert f"responses of {2 * len(BAD)} records scored, " in printed.err
    assert "3 missing-response" in printed.err
    assert read(tmp_path / "out.jsonl")[0]["line"] == 1


def test_a_bad_record_stops_on_request(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "data.jsonl", [{"prompt": "?", "responses": ["A"]}, {"prompt": "?", "responses": [" "]}])
    arguments = [str(data), str(tmp_path / "out.jsonl"), "--checkpoint", str(tiny_checkpoint), "--engine", "fake"]
    assert main(["score-file", *arguments, "--on-error", "stop", "--no-progress"]) == 1
    assert f"beholder: error: {data}:2: empty-response: the response is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score-file", __file__, "out.jsonl", "--checkpoint", "no/such"], "no/such is not a folder"),
        (["score-file", "i", "o", "--checkpoint", "x", "--engine-args", "{"], "--engine-args: "),
        (["score-file", "i", "o", "--checkpoint", "x", "--engine", "none"], "engine: Input should be"),
        (["score-file", __file__, "o", "--url", "http://127.0.0.1:1"], "is a Beholder service running there"),
        (["score-file", "i", "o", "--url", "http://x", "--ray"], "--ray loads the checkpoint on the cluster"),
        (["score-file", "i", "o", "--url", "http://x", "--engines", "2"], "--engines loads them on this machine"),
        (["score-file", "i", "o", "--url", "http://x", "--dtype", "bfloat16"], "--dtype is for a checkpoint"),
        (["score-file", "i", "o", "--url", "http://x", "--config", "c"], "--config is for a checkpoint"),
        (["score-file", "i", "o", "--url", "http://x", "--max-images", "2"], "--max-images is for a checkpoint"),
        (["score-file", "i", "o", "--url", "http://x", "--api-key-file", "none"], "--api-key-file none: no key"),
        (["select", "no.jsonl", "no2.jsonl", "out.jsonl"], "no2.jsonl: No such file"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    out, error = capsys.readouterr()
    assert error.startswith("beholder: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        ["--top-fraction", "0"],
        ["--top-fraction", "x"],
        ["--best-of-n", "0"],
        ["--min-score", "1", "--top-fraction", "1"],
    ],
)
def test_flags_that_say_nothing_are_refused(options: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(["select", "a", "b", "c", *options])


def test_a_missing_input_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tmp_path / "no.jsonl"), str(tmp_path / "out.jsonl"), "--checkpoint", str(tiny_checkpoint)]
    assert main(["score-file", *arguments, "--engine", "fake"]) == 1
    assert "no.jsonl: No such file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_loads_no_model_library() -> None:
    code = "import sys, beholder.cli; sys.exit(bool({'torch', 'transformers', 'ray', 'pyarrow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
