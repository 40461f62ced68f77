"""The published code's scoring loop, on our model: what offline scoring is measured against.

Batches of 8 responses as they come, padded; for each response its image is read, decoded and processed again and the
whole prompt is computed again; plain Hugging Face, one step after the other. Left out, in favour of the published code:
its logits over the whole vocabulary, and its resume, which reads all results at each start.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from beholder.modeling.reward_model import RewardModel

BATCH = 8


class PublishedLoop:
    """Scores (prompt, image, response) triples with the checkpoint in `folder`."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoProcessor

        self._processor: Any = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        self._processor.tokenizer.padding_side = "right"
        self._backbone: Any = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
        self._head = RewardModel.from_checkpoint(folder).score

    def score(self, samples: Sequence[tuple[str, Path, str]]) -> Iterator[float]:
        remaining = iter(samples)
        while batch := list(islice(remaining, BATCH)):
            yield from self._score_batch(batch)

    @torch.inference_mode()
    def _score_batch(self, batch: list[tuple[str, Path, str]]) -> list[float]:
        texts = [self._text(prompt, response) for prompt, _, response in batch]
        images = [Image.open(path).convert("RGB") for _, path, _ in batch]
        inputs = self._processor(text=texts, images=images, padding=True, return_tensors="pt")
        hidden = self._backbone(**inputs, use_cache=False).last_hidden_state
        last = inputs["attention_mask"].sum(dim=1) - 1
        rewards: list[float] = self._head(hidden[torch.arange(len(batch)), last]).squeeze(-1).tolist()
        return rewards

    def _text(self, prompt: str, response: str) -> str:
        messages = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]},
            {"role": "assistant", "content": [{"type": "text", "text": response}]},
        ]
        text: str = self._processor.apply_chat_template(messages, tokenize=False)
        return text
