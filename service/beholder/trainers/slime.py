"""slime's custom reward; the service's URL comes from BEHOLDER_URL.

    --custom-rm-path beholder.trainers.slime.custom_rm          (with --group-rm too)

Images are those of the prompt's messages, else of `sample.multimodal_inputs`. With --apply-chat-template the prompt is
a string of the policy's template, which is not the reward model's: the data set then gives the prompt, a string or
messages, as `prompt` in its metadata column.

slime leaves what the policy ends a turn with in the response (unless --rollout-skip-special-tokens is set). It is cut:
BEHOLDER_END_OF_TURN, by default <|im_end|>.
"""

from collections.abc import Sequence
from typing import Any

from beholder.client import Sample
from beholder.errors import DataError
from beholder.trainers.conversations import chat_sample, without_end_of_turn
from beholder.trainers.rewards import Reward, Rewarder, default_rewarder


async def custom_rm(
    args: Any, sample: Any, *, rewarder: Rewarder | None = None, **unused: Any
) -> Reward | list[Reward]:
    """The reward of a sample, or of each of a list. Raises BeholderError."""
    several = isinstance(sample, Sequence)
    samples = list(sample) if several else [sample]
    rewards = await (rewarder or default_rewarder()).async_rewards([_sample(args, one) for one in samples])
    return rewards if several else rewards[0]


def _sample(args: Any, sample: Any) -> Sample:
    images = (sample.multimodal_inputs or {}).get("images") or []
    prompt = (sample.metadata or {}).get("prompt")
    if prompt is None:
        if isinstance(sample.prompt, str) and getattr(args, "apply_chat_template", False):
            raise DataError("slime: with --apply-chat-template the metadata column must have `prompt`")
        prompt = sample.prompt
    return chat_sample(prompt, without_end_of_turn(sample.response), images)
