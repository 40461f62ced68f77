"""The policy of the examples: a vision-language model, or a tiny one from the demo's base after a short warm start."""

import copy
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from beholder.errors import ConfigurationError
from examples.scenes import Item, answer, draw


def load_policy(name: str) -> tuple[Any, Any]:
    """Model (on the accelerator, where there is one) and processor of a Hugging Face folder or name."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(name)
    processor.tokenizer.padding_side = "left"  # generation goes on at the right
    model = AutoModelForImageTextToText.from_pretrained(name)
    if model.generation_config.eos_token_id is None:  # a base that nobody has generated with yet
        model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
        model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.to(torch.accelerator.current_accelerator() or "cpu")  # type: ignore[arg-type]
    return model, processor


def make_tiny_policy(base: Path, folder: Path, steps: int, seed: int = 0) -> None:
    """Write to `folder` what `base` (a tiny one that sees) becomes with its embeddings as language-model head, taught
    for `steps` batches to phrase answers, in every style alike: long enough to answer, too short to answer well.

    Raises ConfigurationError where there is no base.
    """
    if not (base / "config.json").is_file():
        raise ConfigurationError(f"{base} is no base model: run `make demo` first, or give --policy")
    torch.manual_seed(seed)
    model, processor = load_policy(str(base))
    warm_up(model, processor, steps, seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def warm_up(model: Any, processor: Any, steps: int, seed: int, batch: int = 32) -> None:
    """Supervised steps on fresh scenes; the loss is on the response alone."""
    rng = random.Random(f"{seed}-answers")
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    model.train()
    for step in tqdm(range(steps), desc="warm start", unit="batch"):
        items = draw(batch, f"{seed}-warm-{step}")
        inputs = encode(processor, items, model.device)
        responses = [answer(item, rng) + processor.tokenizer.eos_token for item in items]
        targets = processor.tokenizer(responses, padding=True, padding_side="right", return_tensors="pt")
        targets = targets.to(model.device)
        loss = -response_logps(model, inputs, targets["input_ids"], targets["attention_mask"])
        loss = loss.sum() / targets["attention_mask"].sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def encode(processor: Any, items: Sequence[Item], device: Any) -> dict[str, torch.Tensor]:
    """The prompts of a batch, with the turn of the assistant begun, padded on the left."""
    chats = [filled(item) for item in items]
    inputs = processor.apply_chat_template(
        chats,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        processor_kwargs={"return_tensors": "pt", "padding": True},
    )
    return dict(inputs.to(device))


def filled(item: Item) -> list[dict[str, Any]]:
    """The item's chat with the picture in its place."""
    messages = copy.deepcopy(item.messages)
    messages[0]["content"][0]["image"] = item.image
    return messages


def joined(inputs: dict[str, torch.Tensor], responses: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """Prompts (B, P) followed by responses (B, R), whose pads `mask` leaves out."""
    whole = {**inputs, "input_ids": torch.cat([inputs["input_ids"], responses], 1)}
    whole["attention_mask"] = torch.cat([inputs["attention_mask"], mask], 1)
    if "mm_token_type_ids" in inputs:
        kinds = inputs["mm_token_type_ids"]
        whole["mm_token_type_ids"] = torch.cat([kinds, kinds.new_zeros(responses.shape)], 1)
    return whole


def response_logps(
    model: Any, inputs: dict[str, torch.Tensor], responses: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Log-probabilities of the responses' tokens, (B, R), 0 where `mask` is."""
    logits = model(**joined(inputs, responses, mask)).logits[:, -responses.shape[1] - 1 : -1].float()
    chosen = logits.log_softmax(-1).gather(-1, responses.unsqueeze(-1)).squeeze(-1)
    logps: torch.Tensor = chosen * mask
    return logps


def sample(model: Any, inputs: dict[str, torch.Tensor], max_new_tokens: int) -> torch.Tensor:
    """A response to each prompt, (B, R), from the policy as it is: temperature 1, nothing cut off.

    But for the placeholders of pictures: a model that reads one of its own has a picture less than placeholders.
    """
    placeholders = [getattr(model.config, name, None) for name in ("image_token_id", "video_token_id")]
    ids: torch.Tensor = model.generate(
        **inputs,
        do_sample=True,
        max_new_tokens=max_new_tokens,
        top_k=0,
        top_p=1.0,
        suppress_tokens=[token for token in placeholders if token is not None] or None,
    )
    return ids[:, inputs["input_ids"].shape[1] :]


@torch.no_grad()
def generate(
    model: Any, processor: Any, items: Sequence[Item], max_new_tokens: int, seed: int = 0, batch: int = 64
) -> list[str]:
    """One sampled response to each item, as text."""
    torch.manual_seed(seed)
    model.eval()
    texts: list[str] = []
    for start in range(0, len(items), batch):
        responses = sample(model, encode(processor, items[start : start + batch], model.device), max_new_tokens)
        texts += processor.batch_decode(responses, skip_special_tokens=True)
    return texts
