"""TRL's GRPO and RLOO.

    trainer = GRPOTrainer(..., reward_funcs=reward_function(RewardSettings(("http://127.0.0.1:8000",))))
    trl grpo --reward_funcs beholder.trainers.trl.reward ...       (BEHOLDER_URL says where)

Images are those in the prompts' messages, or in a column `image` (one) or `images` (a list). `async_reward_function`
and `async_reward` are the same for TRL's event loop, where several reward functions wait at the same time.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from beholder.client import Sample
from beholder.errors import InvalidRequest
from beholder.trainers.conversations import chat_sample
from beholder.trainers.rewards import Reward, Rewarder, RewardSettings, default_rewarder


def reward_function(settings: RewardSettings, name: str = "beholder") -> Callable[..., list[Reward]]:
    """A function for `reward_funcs`, logged under `name`: give several names of their own. It raises BeholderError."""
    rewarder = Rewarder(settings)

    def beholder(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[Reward]:
        return rewarder.rewards(_samples(prompts, completions, columns))

    beholder.__name__ = name
    return beholder


def async_reward_function(settings: RewardSettings, name: str = "beholder") -> Callable[..., Awaitable[list[Reward]]]:
    """An asynchronous function for `reward_funcs`, logged under `name`. It raises BeholderError."""
    rewarder = Rewarder(settings)

    async def beholder(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[Reward]:
        return await rewarder.async_rewards(_samples(prompts, completions, columns))

    beholder.__name__ = name
    return beholder


def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[Reward]:
    """Configured by the environment. Raises BeholderError."""
    return default_rewarder().rewards(_samples(prompts, completions, columns))


async def async_reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[Reward]:
    """Configured by the environment. Raises BeholderError."""
    return await default_rewarder().async_rewards(_samples(prompts, completions, columns))


def _samples(prompts: Sequence[Any], completions: Sequence[Any], columns: dict[str, Any]) -> list[Sample]:
    images = _images(columns, len(prompts))
    return [chat_sample(*row) for row in zip(prompts, completions, images, strict=True)]


def _images(columns: dict[str, Any], count: int) -> Sequence[Sequence[Any]]:
    """Each sample's images. TRL has put them into the messages already where those are chats."""
    if columns.get("images") is not None:
        return [_listed(images) for images in columns["images"]]
    if columns.get("image") is not None:
        return [[] if image is None else [image] for image in columns["image"]]
    return [[]] * count


def _listed(images: Any) -> Sequence[Any]:
    if images is None:
        return []
    if isinstance(images, str | bytes):
        raise InvalidRequest("the column `images` has a list for each prompt; one image belongs into `image`")
    return list(images)
