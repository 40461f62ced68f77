"""slime's custom reward; the service's URL comes from BEHOLDER_URL. miles, a fork of slime, takes the same function.

    --custom-rm-path beholder.trainers.slime.custom_rm          (with --group-rm too)

With --apply-chat-template the prompt is a string of the policy's template, which is not the reward model's: the data
set then gives the prompt, a string or messages, as `prompt` in its metadata column. Images are those of the prompt's
messages, else `images` of the metadata column (paths), else `sample.multimodal_inputs`, which slime has resized for the
policy.

A response with tool outputs in it (zeros in its loss mask) and a list of samples for one prompt are no single answer
and raise. slime takes a number for every sample, so BEHOLDER_FAILED=none is refused.

slime leaves what the policy ends a turn with in the response (unless --rollout-skip-special-tokens is set). It is cut:
BEHOLDER_END_OF_TURN.
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
    rewarder = rewarder or default_rewarder()
    rewarder.require_numbers("slime")
    several = isinstance(sample, Sequence)
    samples = list(sample) if several else [sample]
    rewards = await rewarder.async_rewards([_sample(args, one) for one in samples])
    return rewards if several else rewards[0]


def _sample(args: Any, sample: Any) -> Sample:
    if isinstance(sample, Sequence):
        raise DataError("slime: several samples of one prompt (of a custom generate function) have no reward each")
    if 0 in (sample.loss_mask or []) and not _masks_old_parts(args):
        raise DataError("slime: a response with zeros in its loss mask has tool outputs in it: it is not one answer")
    given = sample.multimodal_inputs or {}
    if given.get("videos"):
        raise DataError("slime: a sample with videos cannot be scored: the reward model reads text and images")
    asked = sample.metadata or {}
    prompt = asked.get("prompt")
    if prompt is None:
        if isinstance(sample.prompt, str) and getattr(args, "apply_chat_template", False):
            raise DataError("slime: with --apply-chat-template the metadata column must have `prompt`")
        prompt = sample.prompt
    images = asked.get("images") or given.get("images") or []
    return chat_sample(prompt, without_end_of_turn(sample.response), images)


def _masks_old_parts(args: Any) -> bool:
    """Whether zeros are what an earlier policy wrote of the same response."""
    return bool(getattr(args, "partial_rollout", False) and getattr(args, "mask_offpolicy_in_partial_rollout", False))
