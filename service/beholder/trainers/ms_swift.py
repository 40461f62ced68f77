"""ms-swift's GRPO; the service's URL comes from BEHOLDER_URL.

    # plugin.py
    from swift.rewards import orms
    from beholder.trainers.ms_swift import BeholderORM
    orms["beholder"] = BeholderORM

    swift rlhf --rlhf_type grpo --external_plugins plugin.py --reward_funcs beholder ...

AsyncBeholderORM is the same for ms-swift's event loop. Both take the columns `messages` and `images` that ms-swift
passes; `<image>` in a user's message is the place of the next image. A row with videos, audios or objects cannot be
scored. ms-swift counts a None as 0, also where there is no other reward function, so BEHOLDER_FAILED=none is refused.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from beholder.client import Sample
from beholder.errors import InvalidRequest
from beholder.trainers.conversations import chat_sample
from beholder.trainers.rewards import Reward, Rewarder, default_rewarder

_UNREAD: Final = ("videos", "audios", "objects")


class BeholderORM:
    """ms-swift calls what `orms` holds with its arguments, and the instance with completions and columns."""

    def __init__(self, args: Any = None, rewarder: Rewarder | None = None, **unused: Any) -> None:
        self._rewarder = _with_numbers(rewarder)

    def __call__(self, completions: Sequence[str], **columns: Any) -> list[Reward]:
        """Raises BeholderError."""
        return self._rewarder.rewards(_samples(completions, columns))


class AsyncBeholderORM:
    """ms-swift recognises it by its asynchronous call."""

    def __init__(self, args: Any = None, rewarder: Rewarder | None = None, **unused: Any) -> None:
        self._rewarder = _with_numbers(rewarder)

    async def __call__(self, completions: Sequence[str], **columns: Any) -> list[Reward]:
        """Raises BeholderError."""
        return await self._rewarder.async_rewards(_samples(completions, columns))


def _with_numbers(rewarder: Rewarder | None) -> Rewarder:
    rewarder = rewarder or default_rewarder()
    rewarder.require_numbers("ms-swift")
    return rewarder


def _samples(completions: Sequence[str], columns: Mapping[str, Any]) -> list[Sample]:
    if columns.get("messages") is None:
        raise InvalidRequest("ms-swift: the reward function got no column `messages`")
    beside = [columns.get(name) or [None] * len(completions) for name in ("images", *_UNREAD)]
    return [_sample(*row) for row in zip(columns["messages"], completions, *beside, strict=True)]


def _sample(messages: Sequence[Mapping[str, Any]], completion: str, images: Any, *unread: Any) -> Sample:
    """ms-swift has put the completion at the end of the messages."""
    for name, held in zip(_UNREAD, unread, strict=True):
        if any(held.values()) if isinstance(held, Mapping) else held:
            raise InvalidRequest(
                f"ms-swift: a row with {name} cannot be scored: the reward model reads text and images"
            )
    listed = [] if images is None else images if isinstance(images, list) else [images]
    context = messages[:-1] if messages[-1].get("role") == "assistant" else messages
    return chat_sample(context, completion, listed)
