"""What Unsloth, TRL's AsyncGRPO and verl's reward loop pass, in their own shapes."""

import asyncio
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from beholder.errors import ConfigurationError, DataError, InvalidRequest
from beholder.trainers import trl, verl
from beholder.trainers.rewards import RewardSettings
from tests.service.asked import CHAT, MARKED, PICTURE, Recorder, reference

TEMPLATED = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Colour?<|im_end|>\n<|im_start|>assistant\n"
WITHOUT = "<|im_start|>user\nColour?<|im_end|>\n<|im_start|>assistant\n"
FILLED = [{"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "Colour?"}]}]


@pytest.mark.parametrize(
    ("prompt", "columns"),
    [
        (TEMPLATED, {"images": [[PICTURE]]}),
        (TEMPLATED, {"image": [PICTURE]}),
        (TEMPLATED, {}),  # the images were inside of the messages
        (WITHOUT, {"image": [None]}),  # a row without an image, of a batch that has some
        ("Colour?", {"images": [[PICTURE]]}),
    ],
)
def test_unsloths_templated_prompt_is_not_taken_for_the_question(
    service: Recorder, prompt: str, columns: dict[str, Any]
) -> None:
    reward = trl.reward_function(service.settings())
    with pytest.raises(InvalidRequest, match="beholder_prompt"):
        reward([prompt], ["Red."], **columns)
    assert not service.bodies


@pytest.mark.parametrize("asked", [CHAT, "<image>Colour?", MARKED])
def test_a_column_says_what_was_asked(service: Recorder, asked: Any) -> None:
    reward = trl.reward_function(service.settings())
    assert reward([TEMPLATED], ["Red."], image=[PICTURE], beholder_prompt=[asked]) == [4.0]
    assert service.contexts == [(MARKED, [reference(PICTURE)])]


def test_where_the_column_has_no_images_those_of_the_prompt_stay(service: Recorder) -> None:
    reward = trl.reward_function(service.settings())
    rewards = reward([FILLED, FILLED, WITHOUT], ["Red."] * 3, beholder_prompt=["<image>Colour?", None, "Colour?"])
    assert rewards == [4.0] * 3
    assert service.contexts == [(MARKED, [reference(PICTURE)])] * 2 + [("Colour?", [])]
    with pytest.raises(InvalidRequest, match="images of the prompt"):
        reward([TEMPLATED], ["Red."], beholder_prompt=["Colour?"])


@pytest.mark.parametrize("make", [trl.reward_function, trl.async_reward_function])
def test_trls_functions_can_be_pickled_and_keep_name_and_kind(make: Any) -> None:
    from trl.trainer.utils import get_callable_name, is_async_callable

    settings = RewardSettings(("http://one:8000", "http://two:8000"), fingerprint="first", empty=-1.0)
    copy = pickle.loads(pickle.dumps(make(settings, "proxy")))
    assert get_callable_name(copy) == "proxy"
    assert is_async_callable(copy) == (make is trl.async_reward_function)
    assert copy._rewarder.settings == settings


@dataclass
class Proto:
    """verl's DataProto, as far as its reward managers use it: rows of tensors and of numpy arrays."""

    batch: dict[str, torch.Tensor]
    non_tensor_batch: dict[str, Any]

    def __len__(self) -> int:
        return len(self.batch["responses"])

    def __getitem__(self, row: int) -> "Proto":
        return Proto(
            *({name: held[row] for name, held in kind.items()} for kind in (self.batch, self.non_tensor_batch))
        )


class Tokenizer:
    """One token a letter; 0 pads and ends."""

    def decode(self, tokens: torch.Tensor, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join(chr(token) for token in tokens.tolist() if token)


def rollout(prompt: list[dict[str, Any]], response: str, turns: int = 2, sequences: int = 1) -> Proto:
    """As AgentLoopWorker._compute_score makes it: unpadded prompt, the response and its end, padding behind."""
    responses = torch.tensor([[*map(ord, response), 0, 99, 99]] * sequences)
    mask = torch.tensor([[1] * (5 + len(response) + 1) + [0, 0]] * sequences)
    beside = {
        "raw_prompt": np.array([prompt] * sequences),
        "data_source": np.array(["set"] * sequences),
        "__num_turns__": np.array([turns] * sequences),
        "tool_extra_fields": np.array([{}] * sequences, dtype=object),
    }
    return Proto({"prompts": torch.ones(sequences, 5), "responses": responses, "attention_mask": mask}, beside)


def manager(service: Recorder, **arguments: Any) -> verl.BeholderRewardManager:
    """As load_reward_manager calls it."""
    given: dict[str, Any] = {"reward_router_address": None, "reward_model_tokenizer": None, **arguments}
    return verl.BeholderRewardManager(
        config={}, tokenizer=Tokenizer(), compute_score=None, rewarder=service.rewarder(), **given
    )


@pytest.mark.parametrize(("prompt", "context"), [(FILLED, (MARKED, [reference(PICTURE)])), (CHAT, (CHAT, []))])
def test_verls_manager_scores_the_data_sets_own_prompt(service: Recorder, prompt: Any, context: Any) -> None:
    result = asyncio.run(manager(service).run_single(rollout(prompt, "Red.")))
    assert result == {"reward_score": 4.0, "reward_extra_info": {}}
    assert isinstance(result["reward_score"], float)
    assert service.contexts == [context]
    assert service.bodies[0]["response"] == "Red."


@pytest.mark.parametrize(
    ("data", "said"), [(rollout(CHAT, "a", turns=4), "4 turns"), (rollout(CHAT, "a", sequences=2), "2 sequences")]
)
def test_verls_manager_refuses_what_is_no_single_answer(service: Recorder, data: Proto, said: str) -> None:
    with pytest.raises(DataError, match=said):
        asyncio.run(manager(service).run_single(data))


def test_verls_own_reward_model_beside_the_manager_is_refused(service: Recorder) -> None:
    with pytest.raises(ConfigurationError, match="reward_model"):
        manager(service, reward_router_address="host:1")


def test_verl_a_response_of_several_turns_raises(service: Recorder) -> None:
    info = {"prompt": "Colour?", "num_turns": np.int64(4)}
    with pytest.raises(DataError, match="4 turns"):
        verl.compute_score("d", "Red.", None, info, rewarder=service.rewarder())
    for turns in (2, None):
        verl.compute_score("d", "Red.", None, {**info, "num_turns": turns}, rewarder=service.rewarder())


def test_verls_legacy_trainer_passes_its_own_prompt(service: Recorder) -> None:
    rewarder = service.rewarder()
    verl.compute_score("d", "Red.", None, {"raw_prompt": np.array(FILLED, dtype=object)}, rewarder=rewarder)
    verl.compute_score("d", "Red.", None, {"raw_prompt": FILLED, "prompt": "Shape?"}, rewarder=rewarder)
    assert service.contexts == [(MARKED, [reference(PICTURE)]), ("Shape?", [])]
