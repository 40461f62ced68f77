"""A trained branch -> the checkpoint folder that the service, and stock vLLM, load."""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import nn

from beholder.checkpoint import Checkpoint, Dtype, Manifest, atomic_folder, write_input, write_manifest
from beholder.golden_samples import write_golden_samples
from beholder.modeling.reward_model import cast_parameters
from beholder.modeling.scoring import score_prompts
from beholder.prompts import Prompt
from beholder.rewards import within_prompt_spread
from beholder_training.branch import Branch
from beholder_training.data import Record
from beholder_training.evaluation import Scores, calibrate

PROXY_FOLDER = "proxy"
HISTORY_NAME = "history.json"


def export(
    branch: Branch,
    output: Path,
    held_out: Sequence[Record],
    *,
    base_model: str,
    algorithm: str,
    data_fingerprint: str,
    dtype: Dtype = "float32",
    evaluation: dict[str, Any] | None = None,
    proxy: Branch | None = None,
    history: Sequence[dict[str, float]] = (),
) -> Checkpoint:
    """Write the checkpoint to `output`, whole or not at all.

    Weights are rounded to `dtype`; golden scores, calibration and spread are computed in float32 with the rounded
    weights on the `held_out` records, as the branch reads them. `proxy` is kept in proxy/, for audits; `history`, the
    log lines of the training steps, in history.json. Raises CheckpointError when `output` exists, and where the rewards
    on `held_out` are not finite or differ within no prompt.
    """
    cast_parameters(branch.model.backbone, getattr(torch, dtype))
    cast_parameters(branch.model.backbone, torch.float32)
    with atomic_folder(output) as folder:
        scores = branch.score(held_out, label="calibrating")
        spread = within_prompt_spread(scores)
        write_model(folder, branch, dtype)
        if proxy is not None:
            (folder / PROXY_FOLDER).mkdir()
            write_model(folder / PROXY_FOLDER, proxy, dtype)
            write_input(folder / PROXY_FOLDER, proxy.input)
        if history:
            (folder / HISTORY_NAME).write_text(json.dumps(list(history), indent=1) + "\n")
        write_golden_samples(folder, branch.renderer.reading(branch.input), partial(_score, branch), held_out)
        manifest = Manifest(
            base_model=base_model,
            architecture=branch.model.architecture.served_class,
            algorithm=algorithm,
            data_fingerprint=data_fingerprint,
            chat_template_sha256=hashlib.sha256(branch.renderer.chat_template.encode()).hexdigest(),
            processor=branch.encoder.processor_settings(),
            dtype=dtype,
            input=branch.input,
            calibration=calibrate(scores),
            within_prompt_spread=spread,
            bf16_error=bf16_error(branch, held_out, scores),
            evaluation=evaluation or {},
        )
        complete = write_manifest(folder, manifest).manifest
    return Checkpoint(output, complete)


def require_golden_samples(branch: Branch, held_out: Sequence[Record]) -> None:
    """Raises what `export` would: no held-out record has an image, or a sample made of one cannot be encoded."""
    with tempfile.TemporaryDirectory() as folder:
        write_golden_samples(Path(folder), branch.renderer.reading(branch.input), partial(_encode, branch), held_out)


def write_model(folder: Path, branch: Branch, dtype: Dtype) -> None:
    """config.json, weights, tokenizer and processor, with the names that stock vLLM expects."""
    branch.encoder.save(folder)
    architecture = branch.model.architecture
    weights = {
        architecture.checkpoint_key(key): value.to(getattr(torch, dtype)).contiguous()
        for key, value in branch.model.backbone.state_dict().items()
    }
    head = branch.model.score
    weights[architecture.head_key] = head.weight.detach()
    if head.bias is not None:
        weights[architecture.head_bias_key] = head.bias.detach()
    save_torch_state_dict(weights, folder)
    config = architecture.served_config(branch.model.backbone.config.to_dict(), dtype)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def bf16_error(branch: Branch, records: Sequence[Record], scores: Scores, limit: int = 64) -> float:
    """Greatest difference between bf16 and float32 rewards on the first `limit` records; `scores` are the latter."""
    with _in_bfloat16(branch.model.backbone):
        rounded = branch.score(records[:limit])
    pairs = zip(rounded, scores[:limit], strict=True)
    return max(abs(a - b) for ours, exact in pairs for a, b in zip(ours, exact, strict=True))


@contextmanager
def _in_bfloat16(backbone: nn.Module) -> Iterator[None]:
    """Its parameters are rounded within the block. Their own values wait on the CPU: an accelerator that holds them
    once need not hold them twice.
    """
    exact = [(parameter, parameter.data.cpu()) for parameter in backbone.parameters()]
    try:
        cast_parameters(backbone, torch.bfloat16)
        yield
    finally:
        for parameter, values in exact:
            parameter.data = values.to(parameter.device)


def _encode(branch: Branch, prompt: Prompt) -> float:
    branch.encoder.encode([prompt])
    return 0.0


def _score(branch: Branch, prompt: Prompt) -> float:
    return score_prompts(branch.model, branch.encoder, [prompt])[0]
