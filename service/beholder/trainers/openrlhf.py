"""OpenRLHF's reward function in a Python file; the service's URL comes from BEHOLDER_URL.

    --reward.remote_url "$(python -c 'import beholder.trainers.openrlhf as file; print(file.__file__)')"
    --data.label_key label

OpenRLHF passes no image and a prompt in the policy's template, so the label says what was asked: an object (or its
JSON) with `prompt`, a string or messages, and `images`, a list of paths. What the policy ends a turn with is cut from
the response: BEHOLDER_END_OF_TURN, by default <|im_end|>.

OpenRLHF logs what a reward function raises and goes on without that sample's reward: look for "Failed to fetch reward".
It takes a number for every sample, so BEHOLDER_FAILED=none is refused.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from beholder.client import Sample
from beholder.errors import ConfigurationError, DataError
from beholder.trainers.conversations import chat_sample, without_end_of_turn
from beholder.trainers.rewards import Rewarder, default_rewarder


def reward_func(
    queries: Sequence[str],
    prompts: Sequence[str],
    labels: Sequence[Any],
    *,
    rewarder: Rewarder | None = None,
    **unused: Any,
) -> dict[str, Any]:
    """`rewards` and `scores` are float tensors of the queries' length. Raises BeholderError."""
    import torch  # OpenRLHF takes tensors

    rewarder = rewarder or default_rewarder()
    if rewarder.settings.failed != "raise":
        raise ConfigurationError("OpenRLHF takes a number for every sample: set BEHOLDER_FAILED=raise, or leave it out")
    samples = [_sample(*row) for row in zip(queries, prompts, labels, strict=True)]
    rewards = torch.tensor(rewarder.rewards(samples))
    return {"rewards": rewards, "scores": rewards, "extra_logs": {}}


def _sample(query: str, prompt: str, label: Any) -> Sample:
    if not query.startswith(prompt):
        raise DataError("OpenRLHF: the query does not begin with its prompt: where the response begins is unknown")
    asked = _asked(label)
    return chat_sample(asked["prompt"], without_end_of_turn(query[len(prompt) :]), asked.get("images") or [])


def _asked(label: Any) -> Mapping[str, Any]:
    try:
        asked = json.loads(label) if isinstance(label, str) else label
    except ValueError:
        asked = None
    if not isinstance(asked, Mapping) or asked.get("prompt") is None:
        raise DataError('OpenRLHF: the label must be {"prompt": .., "images": [..]} or its JSON')
    return asked
