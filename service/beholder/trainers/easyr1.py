"""EasyR1's reward function in a Python file; the service's URL comes from BEHOLDER_URL.

    worker.reward.reward_function="$(python -c 'import beholder.trainers.easyr1 as f; print(f.__file__)'):compute_score"
    data.answer_key=label

EasyR1 passes the response and the answer alone, so the answer says what was asked: the JSON of an object with `prompt`,
a string or messages, and `images`, a list of paths. EasyR1 takes a number for every sample, so BEHOLDER_FAILED=none is
refused.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from beholder.trainers.conversations import labelled_sample
from beholder.trainers.rewards import Reward, Rewarder, default_rewarder

REWARD_NAME: Final = "beholder"
REWARD_TYPE: Final = "batch"


def compute_score(
    reward_inputs: Sequence[Mapping[str, Any]], *, rewarder: Rewarder | None = None, **unused: Any
) -> list[dict[str, Reward]]:
    """The reward of each as `overall`. Raises BeholderError."""
    rewarder = rewarder or default_rewarder()
    rewarder.require_numbers("EasyR1")
    samples = [labelled_sample("EasyR1", asked["ground_truth"], asked["response"]) for asked in reward_inputs]
    return [{"overall": reward} for reward in rewarder.rewards(samples)]
