"""OpenRLHF's reward function in a Python file; the service's URL comes from BEHOLDER_URL.

    --reward.remote_url "$(python -c 'import beholder.trainers.openrlhf as file; print(file.__file__)')"
    --data.label_key label

OpenRLHF passes no image and a prompt in the policy's template, so the label says what was asked: an object (or its
JSON) with `prompt`, a string or messages, and `images`, a list of paths. What the policy ends a turn with is cut from
the response: BEHOLDER_END_OF_TURN.

OpenRLHF logs what a reward function raises at INFO and goes on without a reward, and the run ends later with another
message: look for the error that this module logs. It takes a number for every sample, so BEHOLDER_FAILED=none is
refused.
"""

import logging
from collections.abc import Sequence
from typing import Any

from beholder.client import Sample
from beholder.errors import BeholderError
from beholder.trainers.conversations import labelled_sample
from beholder.trainers.rewards import Rewarder, default_rewarder
from beholder.trainers.templates import after_prompt

_log = logging.getLogger("beholder.trainers.openrlhf")  # OpenRLHF runs the file under another name


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

    try:
        rewarder = rewarder or default_rewarder()
        rewarder.require_numbers("OpenRLHF")
        samples = [_sample(*row) for row in zip(queries, prompts, labels, strict=True)]
        rewards = torch.tensor(rewarder.rewards(samples))
    except BeholderError as error:
        _log.error("no reward: %s", error)
        raise
    return {"rewards": rewards, "scores": rewards, "extra_logs": {}}


def _sample(query: str, prompt: str, label: Any) -> Sample:
    return labelled_sample("OpenRLHF", label, after_prompt(query, prompt))
