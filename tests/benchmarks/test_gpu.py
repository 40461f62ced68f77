"""The programs for a CUDA card, at their smallest on the CPU: they run to their end and write what they promise."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu.card import add_output, output_path
from benchmarks.gpu.stages import Clock

PROVENANCE = {"command", "rows", "card", "settings", "machine", "versions", "commit"}


def run(program: str, *options: str, output: Path) -> dict[str, Any]:
    """What `python -m benchmarks.gpu.PROGRAM` wrote, in a process of its own: it changes settings of the whole one."""
    command = [sys.executable, "-m", f"benchmarks.gpu.{program}", *options, "--output", str(output)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.endswith(f"wrote {output}\n")
    found: dict[str, Any] = json.loads(output.read_text())
    assert found.keys() >= PROVENANCE
    assert found["card"] == {"name": "CPU"}
    return found


@pytest.mark.slow
def test_training_packs_proxies_and_profiles(tmp_path: Path) -> None:
    options = ("--size", "tiny", "--steps", "3", "--prompts", "1", "--completion-tokens", "24")
    found = run("training", *options, output=tmp_path / "training.json")
    assert len(found["rows"]) == 8
    for row in found["rows"]:
        assert min(row["pairs_per_second"], row["step_seconds"], row["tflop_a_step"], row["utilisation"]) > 0
    first_losses = {(row["architecture"], row["schedule"]): row["first_loss"] for row in found["rows"]}
    flops = {(row["architecture"], row["schedule"]): row["tflop_a_step"] for row in found["rows"]}
    for architecture in ("qwen3_vl", "internvl"):
        published, packed, text_only, alone = (
            flops[architecture, name] for name in ("published", "packed", "packed_text_only", "packed_no_proxy")
        )
        assert published > packed > text_only > alone  # what each leaves out
        assert first_losses[architecture, "packed"] == pytest.approx(first_losses[architecture, "published"], abs=0.02)
        details = found["details"][architecture]
        assert sum(details["stages"].values()) == pytest.approx(1)
        assert {"main vision tower", "main language model", "proxy", "backward", "optimiser"} <= details[
            "stages"
        ].keys()
        assert all(kernel["calls"] > 0 for kernel in details["kernels"])
        assert found["ratios"].keys() >= {
            f"{architecture}_packed_vs_published",
            f"{architecture}_text_only_proxy_share",
        }


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["transformers", "vllm"])
@pytest.mark.timeout(900)
def test_serving_stands_beside_the_engine_alone(engine: str, tmp_path: Path) -> None:
    pytest.importorskip(engine)
    options = ("--engine", engine, "--sizes", "tiny", "--prompts", "1", "--rounds", "1", "--concurrency", "16")
    found = run("serving", *options, output=tmp_path / "serving.json")
    (row,) = found["rows"]
    passed, of, golden = row["golden"].split()
    assert (passed, of) == (golden, "of")
    assert row["golden_error"] <= row["golden_tolerance"]
    assert min(row["rank_16"], row["score_16"], row["rank_16_engine"], row["score_16_engine"]) > 0
    assert row["greatest_difference"] < row["golden_tolerance"]
    assert found["ratios"].keys() == {"tiny_rank_16_vs_16_calls", "tiny_rank_16_vs_engine", "tiny_16_calls_vs_engine"}
    assert found["spread"].keys() == found["ratios"].keys()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_reproduction_keeps_what_is_finished(tmp_path: Path) -> None:
    options = ("--size", "tiny", "--scenes", "32", "--seeing-steps", "1", "--workers", "1", "--folder", str(tmp_path))
    found = run("reproduction", *options, output=tmp_path / "reproduction.json")
    assert [row["weighting"] for row in found["rows"]] == ["standard", "sfc", "proxy_balanced"]
    assert found["rows"][0].keys() == {"weighting", "iid", "cue_free", "cue_flipped", "ood", "minutes"}
    assert len(found["details"]["differences"]) == 2
    cells = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/cells/*.json")}
    assert len(cells) == 6
    again = run("reproduction", *options, output=tmp_path / "again.json")
    assert again["rows"] == found["rows"]
    assert all(path.stat().st_mtime_ns == written for path, written in cells.items())


def test_a_cpus_figures_are_not_written_as_a_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    parser = argparse.ArgumentParser()
    add_output(parser)
    with pytest.raises(SystemExit):
        output_path(parser, parser.parse_args([]), "training")
    assert output_path(parser, parser.parse_args(["--output", "here.json"]), "training") == Path("here.json")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert output_path(parser, parser.parse_args([]), "training") == Path("benchmarks/results/gpu_training.json")


def test_a_stage_inside_another_is_counted_once() -> None:
    clock, started = Clock(), time.perf_counter()
    with clock.stage("backward"):
        time.sleep(0.01)
        with clock.stage("vision"):
            time.sleep(0.1)
    elapsed = time.perf_counter() - started
    assert clock.seconds["vision"] >= 0.1
    assert 0.01 <= clock.seconds["backward"] <= elapsed - clock.seconds["vision"]
    clock.reset()
    assert not clock.seconds
