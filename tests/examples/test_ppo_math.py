"""PPO's equations against small cases worked by hand."""

import pytest
import torch
from torch import Tensor

from examples.ppo_math import advantages, policy_loss, token_rewards, value_loss, whitened

MASK = torch.tensor([[1.0, 1, 1], [1, 1, 0]])


def test_the_score_is_at_the_last_token_and_the_kl_at_each() -> None:
    logps, reference = torch.full((2, 3), -1.0), torch.full((2, 3), -1.5)
    rewards = token_rewards(torch.tensor([2.0, 3.0]), logps, reference, MASK, kl=0.1)
    assert torch.allclose(rewards, torch.tensor([[-0.05, -0.05, 1.95], [-0.05, 2.95, 0.0]]))


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_advantages_are_the_decayed_sum_of_surprises(decay: float) -> None:
    rewards = torch.tensor([[0.0, 0.0, 1.0], [0.0, 2.0, 9.0]])
    values = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 9.0]])
    found = advantages(rewards * MASK, values * MASK, MASK, decay)
    first = [0.2 - 0.1, 0.3 - 0.2, 1.0 - 0.3]
    second = [0.5 - 0.4, 2.0 - 0.5]
    expected = [
        [first[0] + decay * (first[1] + decay * first[2]), first[1] + decay * first[2], first[2]],
        [second[0] + decay * second[1], second[1], 0.0],
    ]
    assert torch.allclose(found, torch.tensor(expected))


def test_without_decay_of_trust_the_returns_are_the_rewards_to_come() -> None:
    rewards, values = torch.rand(4, 5), torch.rand(4, 5)
    mask = torch.ones(4, 5)
    returns = advantages(rewards, values, mask, decay=1.0) + values
    assert torch.allclose(returns, rewards.flip(1).cumsum(1).flip(1), atol=1e-6)


def test_whitened_tokens_have_mean_0_and_deviation_1() -> None:
    values = whitened(torch.randn(2, 3) * 5 + 3, MASK)
    counted = values[MASK > 0]
    assert abs(float(counted.mean())) < 1e-5
    assert float(counted.std(correction=0)) == pytest.approx(1, abs=1e-4)
    assert float(values[1, 2]) == 0


def gradient(logp: float, gain: float) -> float:
    logps = torch.tensor([[logp]], requires_grad=True)
    policy_loss(logps, torch.zeros(1, 1), torch.tensor([[gain]]), torch.ones(1, 1)).backward()
    assert isinstance(logps.grad, Tensor)
    return float(logps.grad)


def test_the_ratio_is_clipped_only_where_it_has_gone_far_enough() -> None:
    assert gradient(0.0, 1.0) == pytest.approx(-1.0)
    assert gradient(0.5, 1.0) == 0.0
    assert gradient(-0.5, 1.0) < 0.0
    assert gradient(-0.5, -1.0) == 0.0


def test_pads_do_not_count_in_the_value_loss() -> None:
    values = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 100.0]])
    assert float(value_loss(values, torch.zeros(2, 3), MASK)) == pytest.approx(0.5)
