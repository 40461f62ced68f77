"""`adopt`: the checkpoint of a reward model that was trained elsewhere, whole or not at all.

The golden scores are those of our own float32 forward on the checkpoint as written. Calibration is absent: nothing is
known of the responses that the model was trained on.
"""

import hashlib
import json
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from beholder.adopting.layouts import Move
from beholder.adopting.plan import Plan, make_plan
from beholder.adopting.samples import Sample, pictured_samples, text_samples
from beholder.adopting.source import Source, Weights, read_weights
from beholder.checkpoint import Checkpoint, Manifest, atomic_folder, read_input, write_manifest
from beholder.errors import CheckpointError
from beholder.golden_samples import write_golden_samples
from beholder.images import load_image_file
from beholder.modeling.inputs import PromptEncoder
from beholder.modeling.reward_model import RewardModel, quiet_transformers
from beholder.modeling.scoring import score_prompts
from beholder.prompts import ModelInput, Prompt, PromptRenderer, single_turn
from beholder.rewards import within_prompt_spread

ALGORITHM = "adopted"
UNKNOWN = "unknown"
_DROPPED = ("auto_map", "classifier_from_token", "method", "_name_or_path")
"""Entries of config.json that would name remote code, or make vLLM compute the head from the vocabulary's."""


def adopt(
    folder: Path,
    output: Path,
    *,
    base_name: str | None = None,
    head_file: Path | None = None,
    chat_template: Path | None = None,
    model_input: ModelInput | None = None,
) -> Checkpoint:
    """Write the checkpoint of the reward model in `folder` to `output`.

    `head_file` holds the head where it is neither in the model nor in value_head.*; `chat_template` (Jinja) replaces
    the folder's own; `model_input` is what the model was trained on, by default what the folder says (a proxy/ does),
    else images. Raises CheckpointError, with the weights that do not map, and leaves nothing behind.
    """
    source = Source(folder, head_file)
    with quiet_transformers(), atomic_folder(output) as scratch:
        plan = make_plan(source)
        _write_weights(scratch, plan)
        config = {key: value for key, value in plan.config.to_dict().items() if key not in _DROPPED}
        served = plan.architecture.served_config(config, plan.dtype)
        (scratch / "config.json").write_text(json.dumps(served, indent=2) + "\n")
        backend = _write_processor(scratch, source, plan, chat_template)
        reads = model_input or read_input(folder) or "image"
        manifest = _measure(scratch, source, plan, backend, base_name or _base_name(source), reads)
        complete = write_manifest(scratch, manifest).manifest
    return Checkpoint(output, complete)


def _base_name(source: Source) -> str:
    return str(source.config.get("_name_or_path") or source.folder.resolve().name)


def _write_weights(folder: Path, plan: Plan) -> None:
    """One file for each of the source's, so that no more than one is in memory."""
    from safetensors.torch import save_file

    head = {plan.architecture.head_key: plan.head.weight}
    if plan.head.bias is not None:
        head[plan.architecture.head_bias_key] = plan.head.bias
    files = [file for file, moves in plan.moves.items() if moves]
    where: dict[str, str] = {}
    for number, file in enumerate(files, start=1):
        shard = f"model-{number:05}-of-{len(files):05}.safetensors"
        tensors = _moved(read_weights(file, plan.moves[file]), plan, file) | (head if number == 1 else {})
        save_file(tensors, folder / shard, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, shard)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _moved(stored: Weights, plan: Plan, file: Path) -> dict[str, Tensor]:
    """The checkpoint's weights that come from one file."""
    dtype = getattr(torch, plan.dtype)

    def take(move: Move, name: str) -> Tensor:
        return move.take(stored[name]).to(dtype).clone(memory_format=torch.contiguous_format)

    return {
        plan.architecture.checkpoint_key(move.target): take(move, name)
        for name, moves in plan.moves[file].items()
        for move in moves
    }


def _write_processor(folder: Path, source: Source, plan: Plan, chat_template: Path | None) -> str | None:
    """Tokenizer, processor and chat template as Hugging Face writes them; the image backend, if any."""
    processor = plan.layout.read_processor(source, plan.config)
    tokenizer = getattr(processor, "tokenizer", processor)
    template = _read_template(chat_template) if chat_template else processor.chat_template or tokenizer.chat_template
    if not isinstance(template, str):
        raise CheckpointError(f"{source.folder} has no chat template: give the one of its training (--chat-template)")
    processor.chat_template = tokenizer.chat_template = template
    processor.save_pretrained(folder)
    return getattr(getattr(processor, "image_processor", None), "backend", None)


def _read_template(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def _measure(
    folder: Path, source: Source, plan: Plan, backend: str | None, base_name: str, model_input: ModelInput
) -> Manifest:
    """Write the golden samples of the checkpoint in `folder`; its manifest."""
    renderer = _renderer(folder, source, model_input)
    _check_last_token(source, plan, renderer)
    encoder = PromptEncoder.from_folder(folder, renderer.image_token_id, backend=backend)
    model: Any = RewardModel.from_checkpoint(folder).to("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as pictures:
        pictured = pictured_samples(Path(pictures)) if plan.architecture.reads_images else []
        samples = pictured + text_samples()
        write_golden_samples(folder, renderer, partial(_score, model, encoder), samples)
        scores = [score_prompts(model, encoder, _render(renderer, sample)) for sample in samples]
    try:
        spread = within_prompt_spread(scores)
    except CheckpointError as error:
        raise error.at(str(source.folder)) from None
    return Manifest(
        base_model=base_name,
        architecture=plan.architecture.served_class,
        algorithm=ALGORITHM,
        data_fingerprint=UNKNOWN,
        chat_template_sha256=hashlib.sha256(renderer.chat_template.encode()).hexdigest(),
        processor=encoder.processor_settings(),
        dtype=plan.dtype,
        input=model_input,
        within_prompt_spread=spread,
    )


def _renderer(folder: Path, source: Source, model_input: ModelInput) -> PromptRenderer:
    try:
        return PromptRenderer.from_folder(folder, model_input)
    except CheckpointError as error:
        raise CheckpointError(f"{source.folder}: {error}; --chat-template takes another template") from None


def _check_last_token(source: Source, plan: Plan, renderer: PromptRenderer) -> None:
    """transformers' sequence classification reads the reward at the last token that is no padding, vLLM at the last."""
    by_class = "ForSequenceClassification" in str(source.config.get("architectures"))
    padding = plan.config.get_text_config().pad_token_id
    if by_class and renderer.token_ids(single_turn("p", 0), "r")[-1] == padding:
        raise CheckpointError(
            f"{source.folder}: a conversation ends in the padding token, before which this model reads its reward; "
            "vLLM reads it there: give a --chat-template that ends before it"
        )


def _render(renderer: PromptRenderer, sample: Sample) -> Sequence[Prompt]:
    images = [load_image_file(path) for path in sample.images]
    conversation = single_turn(sample.prompt, len(images))
    return [renderer.render(conversation, response, images) for response in sample.responses]


def _score(model: RewardModel, encoder: PromptEncoder, prompt: Prompt) -> float:
    return score_prompts(model, encoder, [prompt])[0]
