"""verl's custom reward function; the service's URL comes from BEHOLDER_URL.

    reward.custom_reward_function.path=pkg://beholder.trainers.verl
    reward.custom_reward_function.name=compute_score          (or compute_score_async)

(in older releases without `reward.` in front). verl passes nothing of the prompt, so the data set must put it into
`extra_info`: `prompt`, a string or messages, and `images`, a list of paths or of {"bytes": ..}. A failed sample raises.
"""

from collections.abc import Mapping
from typing import Any

from beholder.client import Sample
from beholder.errors import DataError
from beholder.trainers.conversations import chat_sample
from beholder.trainers.rewards import Rewarder, default_rewarder


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    rewarder: Rewarder | None = None,
    **unused: Any,
) -> float:
    """The reward of one response. Raises BeholderError."""
    (reward,) = (rewarder or default_rewarder()).rewards([_sample(solution_str, extra_info)])
    assert reward is not None, "the only sample of a call raises when it fails"
    return reward


async def compute_score_async(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    rewarder: Rewarder | None = None,
    **unused: Any,
) -> float:
    """The same for verl's event loop."""
    (reward,) = await (rewarder or default_rewarder()).async_rewards([_sample(solution_str, extra_info)])
    assert reward is not None, "the only sample of a call raises when it fails"
    return reward


def _sample(response: str, extra_info: Mapping[str, Any] | None) -> Sample:
    info = extra_info or {}
    if info.get("prompt") is None:
        raise DataError("verl: extra_info needs `prompt`, and `images` where there are any: add them in the data set")
    images = info.get("images")
    return chat_sample(info["prompt"], response, [] if images is None else images)
