"""Prompts -> the tensors of one packed forward.

`PromptEncoder` belongs to one base model or checkpoint: it processes pictures with the checkpoint's own image
processor, expands each placeholder to as many tokens as the picture takes, and packs the responses of a prompt.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from beholder.errors import CheckpointError, PromptTooLong
from beholder.images import LoadedImage
from beholder.lru import ByteBoundedCache
from beholder.modeling.packed_attention import make_layout
from beholder.modeling.packing import IMAGE_TYPE, PADDING, Packed, pack
from beholder.prompts import Prompt

_PIXELS_TOGETHER: Final = 2**20
"""Pixels of the images processed in one call: for small images the call itself costs most, large ones fill memory."""

_BYTES_A_TOKEN: Final = 3 * 8 + 2 * 32
"""Of an encoded group: references in Packed's three lists, and at most two integers that nothing else holds."""

_TILES: Final = "crop_to_patches"
"""InternVLProcessor cuts every picture into tiles, and so does vLLM, which calls it, whatever the folder has stored:
published ones store False. Here its image processor is called, so it is told."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One processed image: the model's tensors, and the token ids that its placeholder becomes."""

    tensors: dict[str, Tensor]
    token_ids: list[int]

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


@dataclass(frozen=True, slots=True)
class EncodedGroup:
    """The responses of one prompt, ready to be batched. `pictures` are those of the shared prefix."""

    packed: Packed
    pictures: list[Picture]

    @property
    def bytes(self) -> int:
        return sum(picture.bytes for picture in self.pictures) + _BYTES_A_TOKEN * len(self.packed.token_ids)


class PromptEncoder:
    """Raises PromptTooLong when one sequence exceeds `max_length` tokens (0: no limit).

    A text-only model has no `image_token_id`, and its `processor` is its tokenizer.
    """

    def __init__(
        self, processor: Any, image_token_id: int | None, max_length: int = 0, cache_bytes: int = 2**30
    ) -> None:
        self.image_token_id = image_token_id
        self.max_length = max_length
        self._processor = processor
        self._tokenizer = processor if image_token_id is None else processor.tokenizer
        if image_token_id is not None and hasattr(processor.image_processor, _TILES):
            setattr(processor.image_processor, _TILES, True)
        self._cache: ByteBoundedCache[str, Picture] = ByteBoundedCache(cache_bytes)
        self._tokenize = lru_cache(maxsize=64)(self._tokenize_once)

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        image_token_id: int | None,
        max_length: int = 0,
        cache_bytes: int = 2**30,
        backend: str | None = None,
    ) -> "PromptEncoder":
        """`backend` ("pil", "torchvision") is what a checkpoint pins; None takes what is installed."""
        from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

        loader: Any = AutoTokenizer if image_token_id is None else AutoProcessor
        processor = loader.from_pretrained(folder, trust_remote_code=False)
        if backend is not None:
            images: Any = AutoImageProcessor
            processor.image_processor = images.from_pretrained(folder, backend=backend, trust_remote_code=False)
        return cls(processor, image_token_id, max_length, cache_bytes)

    @property
    def pad_token_id(self) -> int:
        """What fills a short row; masked, so any token of the vocabulary does."""
        return int(self._tokenizer.pad_token_id or 0)

    def processor_settings(self) -> dict[str, Any]:
        """What decides the pixels that the model sees: backend, sizes, tiles, normalisation. Empty without images."""
        if self.image_token_id is None:
            return {}
        image_processor = self._processor.image_processor
        backend = "pil" if type(image_processor).__name__.endswith("Pil") else "torchvision"
        settings = json.loads(image_processor.to_json_string())
        return {"backend": backend, **settings}

    def set_image_options(self, options: Mapping[str, Any]) -> None:
        """Change settings of the image processor (tiles, sizes), before any image. Raises CheckpointError."""
        if options and self.image_token_id is None:
            raise CheckpointError("image options are of no use to a base that sees no picture: leave them out")
        for name, value in options.items():
            if not hasattr(self._processor.image_processor, name):
                raise CheckpointError(f"the image processor of this base has no setting {name!r}")
            if name == _TILES and not value:
                raise CheckpointError(
                    f"{_TILES}: false would not be served: vLLM cuts every picture into tiles; "
                    "max_patches: 1 leaves each one tile"
                )
            setattr(self._processor.image_processor, name, value)

    def save(self, folder: Path) -> None:
        """Write processor, tokenizer and chat template as Hugging Face does."""
        self._processor.save_pretrained(folder)

    def encode(self, prompts: Sequence[Prompt]) -> EncodedGroup:
        """Pack `prompts`, which differ in their response alone."""
        pictures = self.pictures(prompts[0].images)
        return EncodedGroup(pack([self.expand(prompt, pictures) for prompt in prompts]), pictures)

    def expand(self, prompt: Prompt, pictures: Sequence[Picture]) -> list[int]:
        """The prompt's token ids with every image placeholder replaced by its picture's tokens."""
        remaining = iter(pictures)
        expanded: list[int] = []
        for token_id in prompt.token_ids:
            expanded += next(remaining).token_ids if token_id == self.image_token_id else (token_id,)
        if self.max_length and len(expanded) > self.max_length:
            raise PromptTooLong(
                f"the conversation has {len(expanded)} tokens with its images, at most {self.max_length} are accepted",
                len(expanded),
                self.max_length,
            )
        return expanded

    def pictures(self, images: Sequence[LoadedImage]) -> list[Picture]:
        """Process the images, or take them from the cache."""
        known = {image.sha256: self._cache.get(image.sha256) for image in images}
        found = {sha256: picture for sha256, picture in known.items() if picture is not None}
        missing = {image.sha256: image for image in images if image.sha256 not in found}
        for together in _in_parts(list(missing.values())):
            for image, picture in zip(together, self._process(together), strict=True):
                found[image.sha256] = picture
                self._cache.put(image.sha256, picture, picture.bytes)
        return [found[image.sha256] for image in images]

    def _process(self, images: Sequence[LoadedImage]) -> list[Picture]:
        """In one call of the image processor, which gives each the pixels that it would have alone."""
        outputs = self._processor.image_processor(images=[image.pixels for image in images], return_tensors="pt")
        parts: dict[str, Sequence[Tensor]] = {
            "pixel_values": outputs["pixel_values"].split(_rows(outputs, len(images)))
        }
        if "image_grid_thw" in outputs:
            parts["image_grid_thw"] = outputs["image_grid_thw"].split(1)
        return [
            Picture(
                {name: part[index].clone() for name, part in parts.items()},  # a view would hold all of them
                self._tokenize(self._processor.replace_image_token(outputs, index)),
            )
            for index in range(len(images))
        ]

    def _tokenize_once(self, replacement: str) -> list[int]:
        token_ids: list[int] = self._tokenizer(replacement, add_special_tokens=False)["input_ids"]
        return token_ids


def collate(groups: Sequence[EncodedGroup], image_token_id: int | None, pad_token_id: int) -> dict[str, Any]:
    """One batch, a row a group.

    input_ids, segments, offsets, mm_token_type_ids: (groups, length), int64; padding has segment PADDING.
    rows, columns: (responses,): where each response's reward is read, group by group.
    pictures: {name: tensors of all images, concatenated}; empty for text.
    layout: see `packed_attention.Layout`.
    """
    length = max(len(group.packed.token_ids) for group in groups)
    input_ids = _padded([group.packed.token_ids for group in groups], length, pad_token_id)
    is_image = torch.zeros_like(input_ids) if image_token_id is None else (input_ids == image_token_id).long()
    return {
        "input_ids": input_ids,
        "segments": _padded([group.packed.segments for group in groups], length, PADDING),
        "offsets": _padded([group.packed.offsets for group in groups], length, 0),
        "mm_token_type_ids": is_image * IMAGE_TYPE,
        "rows": torch.tensor([row for row, group in enumerate(groups) for _ in group.packed.last]),
        "columns": torch.tensor([index for group in groups for index in group.packed.last]),
        "layout": make_layout([group.packed for group in groups], length),
        "pictures": _concatenate([picture for group in groups for picture in group.pictures]),
    }


def to_device(batch: Any, device: torch.device) -> Any:
    """Every tensor of a nested dict on `device`."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    return {name: to_device(value, device) for name, value in batch.items()}


def _padded(rows: list[list[int]], length: int, value: int) -> Tensor:
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


def _concatenate(pictures: list[Picture]) -> dict[str, Tensor]:
    names = pictures[0].tensors if pictures else ()
    return {name: torch.cat([picture.tensors[name] for picture in pictures]) for name in names}


def _in_parts(images: Sequence[LoadedImage]) -> Iterator[list[LoadedImage]]:
    """In order, each of at most _PIXELS_TOGETHER or a single image."""
    part: list[LoadedImage] = []
    pixels = 0
    for image in images:
        size = image.pixels.width * image.pixels.height
        if part and pixels + size > _PIXELS_TOGETHER:
            yield part
            part, pixels = [], 0
        part.append(image)
        pixels += size
    if part:
        yield part


def _rows(outputs: Any, images: int) -> list[int]:
    """How many rows of pixel_values each image has: patches, tiles, or itself."""
    if "image_grid_thw" in outputs:
        rows: list[int] = outputs["image_grid_thw"].prod(1).tolist()
        return rows
    return list(map(int, outputs["num_patches"])) if "num_patches" in outputs else [1] * images
