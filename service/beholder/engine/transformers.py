"""Plain torch and transformers: runs anywhere, and computes a shared prefix once by packing (modeling/packing.py).

The prompts that wait are batched by batcher.py. A batch that does not fit in the accelerator's memory is halved until
it does.
"""

import asyncio
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from beholder.checkpoint import Checkpoint
from beholder.engine import Activity, EngineScore
from beholder.engine.batcher import Batcher
from beholder.engine.coalescing import Coalescer
from beholder.engine.memory import keep_freed_memory
from beholder.engine.queued_pictures import QueuedPictures
from beholder.engine.refused_pictures import refused_picture
from beholder.errors import (
    BeholderError,
    EngineError,
    EngineUnavailable,
    ImageMismatch,
    InvalidRequest,
    PromptTooLong,
)
from beholder.prompts import Prompt, read_image_token_id

if TYPE_CHECKING:
    from beholder.modeling.inputs import EncodedGroup, Picture, PromptEncoder
    from beholder.settings import Settings

DEFAULT_BATCH_TOKENS = {"cuda": 16_384, "cpu": 4_096}
"""A CPU's caches hold the activations of the smaller batch: the larger one scores 10% to 30% fewer responses."""
DEFAULT_IMAGE_CACHE_BYTES = 2**30
_ENCODED_TOGETHER: Final = 32
"""Groups of prompts, of which the first wait for the last."""


@dataclass(frozen=True, slots=True)
class _Sample:
    """A prompt with its images processed and its placeholders expanded; `key` are the images. See `rows.Entry`."""

    key: tuple[str, ...]
    sequence: list[int]
    pictures: "list[Picture]"
    images_end: int


class TransformersEngine:
    """See `beholder.engine.Engine`.

    engine_args: max_batch_tokens (padded, a forward; by default DEFAULT_BATCH_TOKENS), patience_s (see batcher.py),
    image_cache_bytes (of processed images).
    """

    def __init__(self, settings: "Settings", checkpoint: Checkpoint) -> None:
        self._settings = settings
        self._checkpoint = checkpoint
        self._image_token_id = read_image_token_id(checkpoint.folder)
        self._model: Any = None
        self._encoder: PromptEncoder | None = None
        self._accelerator_failed = False
        self._pictures = QueuedPictures()
        # One call at a time: the encoder's cache bears no more.
        self._encoding: Coalescer[Sequence[Prompt], list[_Sample | Exception]] = Coalescer(
            self._encode, _ENCODED_TOGETHER, "encode", self._pictures.room
        )
        self.activity = Activity()
        self._batcher: Batcher[_Sample, EngineScore] | None = None

    async def start(self) -> None:
        try:
            self._model, self._encoder = await asyncio.to_thread(self._load)
        except BeholderError:
            raise
        except Exception as error:
            raise EngineError(f"transformers does not load {self._checkpoint.folder}: {error}") from error
        arguments = self._settings.engine_args
        self._batcher = Batcher(
            self._score_batch,
            int(arguments.get("max_batch_tokens", DEFAULT_BATCH_TOKENS[self._model.score.weight.device.type])),
            float(arguments.get("patience_s", 0.002)),
            self.activity,
        )
        self._batcher.start()

    @property
    def max_tokens(self) -> int:
        return self._encoder.max_length if self._encoder else self._settings.max_model_len

    @property
    def healthy(self) -> bool:
        return self._batcher is not None and self._batcher.running and not self._accelerator_failed

    async def score(self, prompt: Prompt, *, fresh: bool = False) -> EngineScore:
        """`fresh` needs nothing here: the one cache holds processed pictures by the sha256 of their bytes."""
        (result,) = await self.score_group([prompt])
        if isinstance(result, EngineScore):
            return result
        try:
            raise result
        finally:
            del result  # its traceback holds this frame: a cycle

    async def score_group(self, prompts: Sequence[Prompt]) -> list[EngineScore | BaseException]:
        """See `beholder.engine.GroupEngine`: one change of threads for all, where `score` takes one a prompt."""
        if (batcher := self._batcher) is None:
            raise EngineUnavailable("the engine is not running")
        samples = await self._encoding.submit(prompts)
        with self._pictures.holding([picture for sample in samples for picture in _pictures_of(sample)]):
            queued = [batcher.enqueue(sample) if isinstance(sample, _Sample) else sample for sample in samples]
            scores = iter(await asyncio.gather(*filter(asyncio.isfuture, queued), return_exceptions=True))
        return [item if isinstance(item, Exception) else next(scores) for item in queued]

    async def stop(self) -> None:
        if self._batcher is not None:
            await self._batcher.stop()
        await self._encoding.stop()
        self._model = None

    def _load(self) -> "tuple[Any, PromptEncoder]":
        import torch

        from beholder.modeling.inputs import PromptEncoder
        from beholder.modeling.reward_model import RewardModel

        dtype = getattr(torch, self._settings.dtype or self._checkpoint.manifest.dtype)
        model = RewardModel.from_checkpoint(self._checkpoint.folder, dtype)
        if torch.cuda.is_available():
            model.to("cuda")
        else:
            keep_freed_memory()
        longest = min(self._settings.max_model_len, built_for(model.backbone.config))
        backend = self._checkpoint.manifest.processor.get("backend")
        encoder = PromptEncoder.from_folder(
            self._checkpoint.folder,
            self._image_token_id,
            longest,
            int(self._settings.engine_args.get("image_cache_bytes", DEFAULT_IMAGE_CACHE_BYTES)),
            backend,
        )
        return model, encoder

    def _encode(self, groups: Sequence[Sequence[Prompt]]) -> list[list[_Sample | Exception]]:
        """The samples of each group's prompts; an error stands in the place of one that there is none of."""
        if self._encoder is None:
            raise EngineUnavailable("the engine is not running")
        samples = self._samples(self._encoder, [prompt for group in groups for prompt in group])
        return [list(islice(samples, len(group))) for group in groups]

    def _samples(self, encoder: "PromptEncoder", prompts: Sequence[Prompt]) -> Iterator[_Sample | Exception]:
        try:
            pictures = iter(encoder.pictures([image for prompt in prompts for image in prompt.images]))
        except Exception as error:  # of one picture, which costs its own prompts alone
            if len(prompts) == 1:
                yield refused_picture(error)
            else:
                yield from (found for prompt in prompts for found in self._samples(encoder, [prompt]))
            return
        for prompt in prompts:
            yield self._sample(encoder, prompt, list(islice(pictures, len(prompt.images))))

    def _sample(self, encoder: "PromptEncoder", prompt: Prompt, pictures: "list[Picture]") -> _Sample | InvalidRequest:
        places = prompt.token_ids.count(self._image_token_id)
        if places != len(prompt.images):
            return ImageMismatch(f"the prompt has {places} image placeholders but {len(prompt.images)} images")
        key = tuple(image.sha256 for image in prompt.images)
        try:
            sequence = encoder.expand(prompt, pictures)
        except PromptTooLong as error:
            return error
        return _Sample(key, sequence, pictures, _behind_last(sequence, self._image_token_id))

    def _score_batch(self, rows: list[list[_Sample]]) -> list[EngineScore | Exception]:
        """Scores row by row. Halves the batch while the accelerator's memory does not hold it."""
        import torch

        try:
            return self._finite(rows, self._forward(rows))
        except torch.AcceleratorError as error:  # all that follow in this process would fail the same way
            self._accelerator_failed = True
            raise EngineUnavailable(f"the engine died: {error}") from error
        except torch.OutOfMemoryError:
            pass  # until the error is gone its traceback holds the forward's tensors
        if len(rows) == len(rows[0]) == 1:
            return [EngineError("the conversation does not fit in the accelerator's memory")]
        torch.cuda.empty_cache()
        first, second = _halves(rows)
        return self._score_batch(first) + self._score_batch(second)

    def _finite(self, rows: list[list[_Sample]], scores: list[EngineScore]) -> list[EngineScore | Exception]:
        """The scores, and an error for each that is no number; it may be so through attention to others of its row
        (0 x NaN is NaN), so these are scored again alone."""
        samples = [(sample, len(row)) for row in rows for sample in row]
        checked: list[EngineScore | Exception] = []
        for (sample, together), score in zip(samples, scores, strict=True):
            if together > 1 and not math.isfinite(score.logit):
                (score,) = self._forward([[sample]])
            checked.append(score if math.isfinite(score.logit) else _not_finite(score))
        return checked

    def _forward(self, rows: list[list[_Sample]]) -> list[EngineScore]:
        import torch

        from beholder.modeling.inputs import EncodedGroup, collate, to_device
        from beholder.modeling.packing import pack

        if self._encoder is None:
            raise EngineUnavailable("the engine is not running")
        groups = [EncodedGroup(pack([sample.sequence for sample in row]), row[0].pictures) for row in rows]
        batch = collate(groups, self._image_token_id, self._encoder.pad_token_id)
        with torch.inference_mode():
            rewards = self._model(**to_device(batch, self._model.score.weight.device)).tolist()
        cached = [count for group in groups for count in _shared_tokens(group)]
        samples = [sample for row in rows for sample in row]
        return [
            EngineScore(reward, len(sample.sequence), shared)
            for sample, reward, shared in zip(samples, rewards, cached, strict=True)
        ]


def _not_finite(score: EngineScore) -> EngineError:
    return EngineError(f"the model's reward is {score.logit}: its weights overflow in this dtype")


def _pictures_of(sample: _Sample | Exception) -> "list[Picture]":
    return sample.pictures if isinstance(sample, _Sample) else []


def _behind_last(sequence: list[int], token_id: int | None) -> int:
    """The index behind the last `token_id`, 0 where there is none."""
    return next((index for index in range(len(sequence), 0, -1) if sequence[index - 1] == token_id), 0)


def _halves(rows: list[list[_Sample]]) -> tuple[list[list[_Sample]], list[list[_Sample]]]:
    """Two parts of a batch, in order: of its rows, or of its only row."""
    if len(rows) > 1:
        return rows[: len(rows) // 2], rows[len(rows) // 2 :]
    (row,) = rows
    return [row[: len(row) // 2]], [row[len(row) // 2 :]]


def _shared_tokens(group: "EncodedGroup") -> list[int]:
    """Tokens that each response took over from the row's first one."""
    from beholder.modeling.packing import PREFIX

    shared = group.packed.segments.count(PREFIX)
    return [0] + [shared] * (len(group.packed.last) - 1)


def built_for(config: Any) -> int:
    """The longest sequence that the text model was built for, in tokens."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or 2**31)
