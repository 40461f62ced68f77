"""TRL's GRPO and RLOO.

    trainer = GRPOTrainer(..., reward_funcs=reward_function(RewardSettings(("http://127.0.0.1:8000",))))
    trl grpo --reward_funcs beholder.trainers.trl.reward ...       (BEHOLDER_URL says where)

Images are those in the prompts' messages, or in a column `image` (one) or `images` (a list). `async_reward_function`
and `async_reward` are the same for TRL's event loop, where several reward functions wait at the same time.

A column `beholder_prompt` (a string or messages) is scored in place of the prompt. Unsloth needs it: where there are
images it passes the prompt as a string of the policy's template, which raises.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from beholder.client import Sample
from beholder.errors import InvalidRequest
from beholder.trainers.conversations import chat_sample, held_images
from beholder.trainers.rewards import Reading, Reward, Rewarder, RewardSettings, default_rewarder, read_rows
from beholder.trainers.templates import has_image_place

PROMPT_COLUMN: Final = "beholder_prompt"


class _Named:
    """What both kinds share. They can be pickled, as AsyncGRPO asks, since a Rewarder can."""

    def __init__(self, settings: RewardSettings, name: str) -> None:
        self.__name__ = name  # TRL logs under it
        self._rewarder = Rewarder(settings)


class RewardFunction(_Named):
    """A function for `reward_funcs`."""

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[Reward]:
        """Raises BeholderError."""
        return self._rewarder.rewards(_samples(prompts, completions, columns))


class AsyncRewardFunction(_Named):
    """An asynchronous one; TRL recognises it by its call."""

    async def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[Reward]:
        """Raises BeholderError."""
        return await self._rewarder.async_rewards(_samples(prompts, completions, columns))


def reward_function(settings: RewardSettings, name: str = "beholder") -> RewardFunction:
    """A function for `reward_funcs`, logged under `name`: give several names of their own. It raises BeholderError."""
    return RewardFunction(settings, name)


def async_reward_function(settings: RewardSettings, name: str = "beholder") -> AsyncRewardFunction:
    """An asynchronous function for `reward_funcs`, logged under `name`. It raises BeholderError."""
    return AsyncRewardFunction(settings, name)


def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[Reward]:
    """Configured by the environment. Raises BeholderError."""
    return default_rewarder().rewards(_samples(prompts, completions, columns))


async def async_reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[Reward]:
    """Configured by the environment. Raises BeholderError."""
    return await default_rewarder().async_rewards(_samples(prompts, completions, columns))


def _samples(prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any]) -> list[Reading]:
    images = _images(columns, len(prompts))
    asked = columns.get(PROMPT_COLUMN)
    if asked is None:
        asked = [None] * len(prompts)
    seeing = [any(row != [] for row in images)] * len(prompts)
    return read_rows(_sample, prompts, completions, images, asked, seeing)


def _sample(prompt: Any, completion: Any, images: list[Any] | None, asked: Any, seeing: bool) -> Sample:
    """`asked` is the row of `beholder_prompt`, where there is one; `seeing` whether the call has images at all."""
    templated = isinstance(prompt, str) and (seeing or has_image_place(prompt))
    if asked is None:
        if templated:
            raise InvalidRequest(
                "TRL passes a prompt with images as messages. This is a string of the policy's template, as Unsloth "
                f"passes it: add a column `{PROMPT_COLUMN}` with what was asked (a string or messages)"
            )
        return chat_sample(prompt, completion, images or [])
    sample = chat_sample(asked, completion, images or ([] if isinstance(prompt, str) else held_images(prompt)))
    if templated and has_image_place(prompt) and not sample.images:
        raise InvalidRequest(f"the images of the prompt must be in a column, or in the messages of `{PROMPT_COLUMN}`")
    return sample


def _images(columns: Mapping[str, Any], count: int) -> list[list[Any] | None]:
    """Each sample's images, None where TRL takes a chat without; TRL has put those of chats into their messages."""
    if columns.get("images") is not None:
        return [_listed(images) for images in columns["images"]]
    if columns.get("image") is not None:
        return [None if image is None else [image] for image in columns["image"]]
    return [[] for _ in range(count)]


def _listed(images: Any) -> list[Any] | None:
    if images is None:
        return None
    if isinstance(images, str | bytes):
        raise InvalidRequest("the column `images` has a list for each prompt; one image belongs into `image`")
    return list(images)
