"""verl's reward manager, and its custom reward function; the service's URL comes from BEHOLDER_URL.

    reward.reward_manager.source=importlib
    reward.reward_manager.name=BeholderRewardManager
    reward.reward_manager.module.path=pkg://beholder.trainers.verl

scores the prompt that verl's own data set makes (`raw_prompt`: messages with their images), so the data stay as they
are. In older releases, or beside another manager,

    reward.custom_reward_function.path=pkg://beholder.trainers.verl
    reward.custom_reward_function.name=compute_score          (or compute_score_async)

(still older: without `reward.` in front). That gets nothing of the prompt but what the data set puts into `extra_info`:
`prompt`, a string or messages, and `images`, a list of paths or of {"bytes": ..}. Without `prompt` it takes the
`raw_prompt` that verl's legacy trainer puts there.

A sample that fails raises, and so does a response of several turns, which has tool outputs in it. verl's trainer then
ends the prompt's group as a `failure`. Do not use reward_manager.name=rate_limited: it turns errors into the reward 0.
"""

from collections.abc import Mapping
from typing import Any, Final

from beholder.client import Sample
from beholder.errors import ConfigurationError, DataError
from beholder.trainers.conversations import chat_sample
from beholder.trainers.rewards import Rewarder, default_rewarder

_ONE_ANSWER: Final = 2
"""verl's number of turns where the policy has answered once: the user's and its own."""


class BeholderRewardManager:
    """What verl's streaming reward loop asks of a manager; nothing of verl is imported."""

    def __init__(
        self,
        config: Any,
        tokenizer: Any,
        compute_score: Any = None,
        reward_router_address: str | None = None,
        *,
        rewarder: Rewarder | None = None,
        **unused: Any,
    ) -> None:
        if reward_router_address is not None:
            raise ConfigurationError("verl: with BeholderRewardManager reward.reward_model.enable must be false")
        self._tokenizer = tokenizer
        self._rewarder = rewarder or default_rewarder()

    async def run_single(self, data: Any) -> dict[str, Any]:
        """The reward of one rollout, a DataProto. Raises BeholderError."""
        reward = await _async_reward(self._rewarder, self._sample(data))
        return {"reward_score": reward, "reward_extra_info": {}}

    def _sample(self, data: Any) -> Sample:
        if len(data) != 1:
            raise DataError(f"verl: a rollout of {len(data)} sequences cannot be scored: it must be one answer")
        item = data[0]
        _refuse_turns(item.non_tensor_batch.get("__num_turns__"))
        tokens = item.batch["responses"]
        written = item.batch["attention_mask"][-tokens.shape[-1] :].sum()
        response = self._tokenizer.decode(tokens[:written], skip_special_tokens=True)
        prompt = item.non_tensor_batch.get("raw_prompt")
        if prompt is None:
            raise DataError("verl: the rollout has no raw_prompt: use compute_score, with `prompt` in extra_info")
        return chat_sample(prompt, response)


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
    return await _async_reward(rewarder or default_rewarder(), _sample(solution_str, extra_info))


async def _async_reward(rewarder: Rewarder, sample: Sample) -> float:
    (reward,) = await rewarder.async_rewards([sample])
    assert reward is not None, "the only sample of a call raises when it fails"
    return reward


def _sample(response: str, extra_info: Mapping[str, Any] | None) -> Sample:
    info = extra_info or {}
    _refuse_turns(info.get("num_turns"))
    prompt = info.get("prompt")
    if prompt is None:
        prompt = info.get("raw_prompt")
    if prompt is None:
        raise DataError(
            "verl: extra_info needs `prompt`, and `images` where there are any: add them in the data set, or use "
            "BeholderRewardManager, which takes the data set's own prompt"
        )
    images = info.get("images")
    return chat_sample(prompt, response, [] if images is None else images)


def _refuse_turns(turns: int | None) -> None:
    """A transcript with tool outputs is not the policy's answer."""
    if turns is not None and turns > _ONE_ANSWER:
        raise DataError(f"verl: a response of {turns} turns has tool outputs in it: it is not one answer")
