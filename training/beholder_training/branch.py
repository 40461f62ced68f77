"""One reward model together with what it takes to read records: the main branch, or the text-only proxy.

Knows of models, prompts and records; not of losses or training.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch.utils.data import get_worker_info
from tqdm import tqdm

from beholder.checkpoint import read_checkpoint, read_input
from beholder.images import LoadedImage, blank_image, load_image_file
from beholder.lru import ByteBoundedCache
from beholder.modeling.inputs import EncodedGroup, PromptEncoder, collate, to_device
from beholder.modeling.reward_model import RewardModel
from beholder.prompts import ModelInput, PromptRenderer, single_turn
from beholder_training.data import Record


@dataclass
class Branch:
    """`sees_images` False leaves the images out of every conversation: the text-only proxy.

    blank_images: every image is a white square instead. packed: a record's responses share one sequence; otherwise
    each is a row of its own with the images again. batch_prompts, token_budget: the most records, and tokens with
    padding (0: no limit), that `score` forwards at once.
    """

    model: RewardModel
    renderer: PromptRenderer
    encoder: PromptEncoder
    sees_images: bool
    folder: Path
    """Where the base came from."""
    blank_images: bool = False
    packed: bool = True
    batch_prompts: int = 64
    token_budget: int = 0

    def __post_init__(self) -> None:
        self._encoded: ByteBoundedCache[str, list[EncodedGroup]] = ByteBoundedCache(2**31)

    @classmethod
    def from_base(
        cls, base: str, sees_images: bool = True, max_length: int = 0, dtype: torch.dtype = torch.float32
    ) -> "Branch":
        """A branch on a pretrained base, by folder or hub name, with a new head."""
        folder = resolve_base(base)
        model = RewardModel.from_base(folder, dtype)
        renderer = PromptRenderer.from_folder(folder)
        # Encoded groups are cached whole, below; the encoder's own cache would hold the pictures twice.
        encoder = PromptEncoder.from_folder(folder, renderer.image_token_id, max_length, cache_bytes=0)
        return cls(model, renderer, encoder, sees_images, folder)

    @classmethod
    def from_checkpoint(cls, folder: Path, dtype: torch.dtype = torch.float32) -> "Branch":
        """The main branch that an exported checkpoint holds, with its head; it reads what it was trained on."""
        manifest = read_checkpoint(folder).manifest
        return cls._from_weights(folder, manifest.input, dtype, manifest.processor.get("backend"))

    @classmethod
    def from_proxy(cls, folder: Path, dtype: torch.dtype = torch.float32) -> "Branch":
        """The proxy/ of a checkpoint, with its head. Those from before their input was written read text alone."""
        return cls._from_weights(folder, read_input(folder) or "text", dtype)

    @classmethod
    def _from_weights(
        cls, folder: Path, model_input: ModelInput, dtype: torch.dtype, backend: str | None = None
    ) -> "Branch":
        model = RewardModel.from_checkpoint(folder, dtype)
        renderer = PromptRenderer.from_folder(folder)
        encoder = PromptEncoder.from_folder(folder, renderer.image_token_id, cache_bytes=0, backend=backend)
        blank = model_input == "blank_image"
        return cls(model, renderer, encoder, model_input != "text", folder, blank_images=blank)

    @property
    def input(self) -> ModelInput:
        """What it reads of a record's images."""
        if not self.sees_images:
            return "text"
        return "blank_image" if self.blank_images else "image"

    def encode(self, record: Record) -> list[EncodedGroup]:
        """The record's responses as rows of a batch: one packed row, or one each. Kept within a bound of 2 GiB.

        But not in a loader's workers: each would keep its own, and a picture that a worker sends moves to shared
        memory, whose descriptor what is kept would hold open.
        """
        if get_worker_info() is not None:
            return self._encode(record)
        key = f"{self.packed} {record.where} {len(record.responses)}"
        if (known := self._encoded.get(key)) is not None:
            return known
        groups = self._encode(record)
        self._encoded.put(key, groups, sum(group.bytes for group in groups))
        return groups

    def _encode(self, record: Record) -> list[EncodedGroup]:
        images = self._images(record)
        conversation = single_turn(record.prompt, len(images))
        prompts = [self.renderer.render(conversation, response, images) for response in record.responses]
        return [self.encoder.encode(rows) for rows in ([prompts] if self.packed else [[each] for each in prompts])]

    def _images(self, record: Record) -> list[LoadedImage]:
        if not self.sees_images:
            return []
        return [blank_image() if self.blank_images else load_image_file(path) for path in record.images]

    def collate_groups(self, groups: Sequence[EncodedGroup]) -> dict[str, Any]:
        """The batch of these rows, as `RewardModel.forward` takes it."""
        return collate(groups, self.renderer.image_token_id, self.encoder.pad_token_id)

    @property
    def device(self) -> torch.device:
        return self.model.score.weight.device

    @torch.inference_mode()
    def score(self, records: Sequence[Record], batch_prompts: int = 0, label: str = "") -> list[list[float]]:
        """Rewards of every record's responses. `batch_prompts` in place of the branch's own, unless it is 0. A progress
        bar is shown when `label` is given.
        """
        self.model.eval()
        scores: list[list[float]] = []
        with tqdm(total=len(records), desc=label, unit="prompt", disable=not label) as bar:
            for batch, groups in self._forwards(records, batch_prompts or self.batch_prompts):
                rewards = self.model(**to_device(self.collate_groups(groups), self.device)).tolist()
                flat = iter(rewards)
                scores += [[next(flat) for _ in record.responses] for record in batch]
                bar.update(len(batch))
        return scores

    def _forwards(
        self, records: Sequence[Record], prompts: int
    ) -> Iterator[tuple[Sequence[Record], list[EncodedGroup]]]:
        """`records` in order with their rows, as many at once as the limits allow, but never none."""
        batch: list[Record] = []
        rows: list[EncodedGroup] = []
        for record in records:
            more = self.encode(record)
            full = len(batch) == prompts or (self.token_budget and padded_tokens([*rows, *more]) > self.token_budget)
            if batch and full:
                yield batch, rows
                batch, rows = [], []
            batch, rows = [*batch, record], [*rows, *more]
        if batch:
            yield batch, rows


def device() -> torch.device:
    """This process's accelerator, where there is one."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


@contextmanager
def on_accelerator(branch: Branch) -> Iterator[None]:
    """The branch is on this process's accelerator within the block, and then where it was: others need the memory."""
    before = branch.device
    try:
        branch.model.to(device())
        yield
    finally:
        branch.model.to(before)
        torch.cuda.empty_cache()


def padded_tokens(rows: Sequence[EncodedGroup]) -> int:
    """Tokens of one forward over these rows, each padded to the longest."""
    return len(rows) * max((len(group.packed.token_ids) for group in rows), default=0)


BASE_FILES: Final = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
"""What a base is made of; beside them a folder may hold anything."""


def resolve_base(base: str) -> Path:
    """A local folder as it is; otherwise a hub name, downloaded once."""
    if (folder := Path(base)).is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    from beholder.errors import CheckpointError

    try:
        return Path(snapshot_download(base, allow_patterns=[*BASE_FILES]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(f"base {base!r} is neither a folder nor to be had from the hub: {error}") from None
