"""What `beholder adopt` refuses: in one line, with the names of the weights, and nothing is left behind."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from beholder.adopting.adopt import adopt
from beholder.errors import CheckpointError
from beholder.prompts import PromptRenderer, single_turn
from tests.service import layouts
from tests.service.test_adopt import change_weights, make


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    original = make("text-qwen2", tmp_path)
    (original.folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Hostile(tmp_path / "ran")}, original.folder / "pytorch_model.bin")
    assert_refused(original.folder, tmp_path, "not readable as plain tensors")
    assert not (tmp_path / "ran").exists()


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def assert_refused(folder: Path, tmp_path: Path, *words: str) -> None:
    before = set(tmp_path.iterdir())
    with pytest.raises(CheckpointError) as caught:
        adopt(folder, tmp_path / "refused")
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("model.norm.weight"), ["1 missing: norm.weight"]),
        (
            lambda w: w.update({f"model.layers.0.Plora_{n}.weight": torch.zeros(2) for n in range(7)}),
            ["7 unknown: model.layers.0.Plora_0.weight", "and 2 more"],
        ),
        (lambda w: w.update({"model.norm.weight": torch.zeros(3)}), ["1 of another shape: model.norm.weight (3,)"]),
        (lambda w: w.pop("score.weight"), ["no reward head", "--head-file"]),
        (lambda w: w.update({"score.weight": torch.zeros(2, 128)}), ["score.weight has shape (2, 128)"]),
        (lambda w: w.update({"score.0.weight": torch.zeros(8, 64)}), ["1 unknown: score.0.weight"]),
        (lambda w: w.update({"v_head.weight": torch.zeros(1, 128)}), ["2 heads differ", "--head-file"]),
        (lambda w: w.update({"score.weight": torch.zeros(1, 128)}), ["not different numbers"]),
        (lambda w: w.update({"norm.weight": w["model.norm.weight"].clone()}), ["1 stored twice: norm.weight"]),
        (lambda w: w.update({"model.norm.weight": torch.zeros(128, dtype=torch.int8)}), ["full-precision model"]),
    ],
)
def test_weights_that_do_not_map_are_named(
    change: Callable[[dict[str, torch.Tensor]], object], words: list[str], tmp_path: Path
) -> None:
    original = make("text-qwen2", tmp_path)
    change_weights(original.folder, change)
    assert_refused(original.folder, tmp_path, *words)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "gemma3"}, ["gemma3"]),
        ({"model_type": "another", "auto_map": {"AutoConfig": "evil.Config"}}, ["config.json"]),
        (
            {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["sliding_attention"] * 2},
            ["sliding window"],
        ),
        ({"num_attention_heads": 3}, ["of another shape"]),
        ({"quantization_config": {"quant_method": "awq"}}, ["is quantized"]),
    ],
)
def test_models_that_cannot_be_served(config: dict[str, object], words: list[str], tmp_path: Path) -> None:
    original = make("text-qwen2", tmp_path)
    layouts.write_config(original.folder, **config)
    (original.folder / "evil.py").write_text("raise SystemExit('ran')")
    assert_refused(original.folder, tmp_path, *words)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"ps_version": "v1"}, ["ps_version is 'v1'"]),
        ({"select_layer": -4}, ["select_layer is -4"]),
        ({"use_thumbnail": False}, ["use_thumbnail is False"]),
        ({"llm_config": {"architectures": ["Phi3ForCausalLM"]}}, ["Phi3ForCausalLM"]),
        ({"llm_config": {"architectures": ["Qwen2ForCausalLM"]}}, ["rope_theta"]),
        ({"llm_config": 3}, ["config.json"]),
        ({}, ["no chat template", "--chat-template"]),
    ],
)
def test_published_internvls_that_do_not_map(config: dict[str, object], words: list[str], tmp_path: Path) -> None:
    original = make("published-internvl-qwen2", tmp_path)
    layouts.write_config(original.folder, **config)
    assert_refused(original.folder, tmp_path, *words)


def test_folders_that_are_no_model(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nowhere", tmp_path, "is not a folder")
    folder = tmp_path / "folder"
    folder.mkdir()
    assert_refused(folder, tmp_path, "config.json")
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    assert_refused(folder, tmp_path, "has no model weights")
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"")
    assert_refused(folder, tmp_path, "merge its adapter")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"w": "../../etc/passwd"}}')
    assert_refused(folder, tmp_path, "which is not a file of the folder")
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model.safetensors").write_bytes(b"damaged")
    assert_refused(folder, tmp_path, "not readable as plain tensors")


def test_a_reward_before_the_padding_is_refused(tmp_path: Path) -> None:
    original = make("text-qwen2", tmp_path)
    newline = PromptRenderer.from_folder(original.folder).token_ids(single_turn("p", 0), "r")[-1]
    layouts.write_config(original.folder, pad_token_id=newline)
    assert_refused(original.folder, tmp_path, "ends in the padding token")
