"""The objective's equations, their limits and their gradients."""

import math
import re
from pathlib import Path

import pytest
import torch

from beholder_training.losses import (
    PAIR_LOSSES,
    WEIGHTINGS,
    GapSettings,
    bradley_terry,
    centring_penalty,
    proxy_balanced_weight,
    sfc_weight,
    smoothed,
)
from beholder_training.objective import Objective, margins
from tests.training.runs import config

MARGINS = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0])
PROXY = torch.tensor([1.0, -2.0, 0.3, 4.0, 0.0])
GAPS = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0])


def test_a_margin_is_the_chosen_reward_less_the_rejected() -> None:
    rewards, pairs = torch.tensor([3.0, 1.0, -2.0]), torch.tensor([[0, 1], [2, 0]])
    assert margins(rewards, pairs).tolist() == [2.0, -5.0]


def test_bradley_terry_is_minus_log_sigmoid() -> None:
    expected = [-math.log(1 / (1 + math.exp(-d))) for d in MARGINS.tolist()]
    assert bradley_terry(MARGINS).tolist() == pytest.approx(expected, rel=1e-5)


def test_bradley_terry_is_finite_at_any_margin() -> None:
    losses = bradley_terry(torch.tensor([-1e4, 1e4]))
    assert losses.tolist() == [1e4, 0.0]


def test_sfc_is_half_where_both_branches_agree_and_where_both_losses_vanish() -> None:
    assert torch.allclose(sfc_weight(MARGINS, MARGINS), torch.full((5,), 0.5))
    assert sfc_weight(torch.tensor([1e4]), torch.tensor([1e4])).item() == pytest.approx(0.5)


def test_sfc_is_high_where_the_proxy_fails_and_low_where_it_succeeds() -> None:
    weights = sfc_weight(torch.tensor([2.0, 2.0]), torch.tensor([-4.0, 8.0]))
    assert weights[0] > 0.95
    assert weights[1] < 0.05


def test_proxy_balanced_cancels_a_cue_that_holds_in_nine_of_ten_pairs() -> None:
    """A calibrated proxy has margin log(9) on the cue: both sides of the cue then carry the same weight."""
    cue = math.log(9)
    weights = proxy_balanced_weight(torch.zeros(10), torch.tensor([cue] * 9 + [-cue]))
    assert weights[:9].sum().item() == pytest.approx(weights[9].item(), rel=1e-5)
    assert weights.mean().item() == pytest.approx(1.0)


def test_exponent_zero_is_standard() -> None:
    for weighting in WEIGHTINGS.values():
        assert torch.allclose(weighting(MARGINS, -MARGINS, 0.0), torch.ones(5))


@pytest.mark.parametrize("algorithm", ["sfc", "proxy_balanced", "sfc_normalised"])
def test_no_gradient_flows_through_the_weight(algorithm: str) -> None:
    """Chosen and rejected are a pair's two rewards: d(w L)/d chosen is -w sigmoid(-d), with w a constant."""
    objective = Objective.from_config(config(Path("base"), Path("out"), algorithm=algorithm))
    rewards = torch.cat([MARGINS, torch.zeros(5)]).requires_grad_()
    proxy_rewards = torch.cat([PROXY, torch.zeros(5)]).requires_grad_()
    pairs = torch.stack([torch.arange(5), torch.arange(5, 10)], dim=1)
    weights = objective.weights(margins(rewards, pairs), margins(proxy_rewards, pairs), torch.arange(5), step=0)
    assert not weights.requires_grad
    assert len(weights.unique()) == 5
    objective.main_terms(rewards, pairs, GAPS, weights).sum().backward()
    expected = -weights * torch.sigmoid(-MARGINS)
    assert rewards.grad is not None
    assert torch.allclose(rewards.grad, torch.cat([expected, -expected]))
    assert proxy_rewards.grad is None


def test_centring_is_added_to_each_pair_as_much_as_it_is_set() -> None:
    rewards, pairs = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([[0, 1], [2, 1]])
    plain, centred = (
        Objective.from_config(config(Path("base"), Path("out"), algorithm="standard", centring=centring))
        for centring in (0.0, 0.1)
    )
    without, terms = (each.main_terms(rewards, pairs, GAPS[:2], torch.ones(2)) for each in (plain, centred))
    assert (terms - without).tolist() == pytest.approx([0.1 * (2 - 1) ** 2, 0.1 * (0.5 - 1) ** 2])


def test_each_step_and_seed_shuffles_otherwise() -> None:
    def weights(seed: int, step: int) -> list[float]:
        objective = Objective.from_config(config(Path("base"), Path("out"), algorithm="sfc_shuffled", seed=seed))
        found: list[float] = objective.weights(MARGINS, PROXY, torch.arange(5), step).tolist()
        return found

    assert weights(0, 1) == weights(0, 1)
    assert len({tuple(weights(seed, step)) for seed in range(4) for step in range(4)}) > 8


def log_sigmoid(values: torch.Tensor) -> torch.Tensor:
    return torch.tensor([math.log(1 / (1 + math.exp(-value))) for value in values.tolist()])


@pytest.mark.parametrize("name", [*WEIGHTINGS, *PAIR_LOSSES])
def test_every_entry_states_its_equation_and_source(name: str) -> None:
    """A paper by number or by authors and year, or the page that derives it: docs/training.md promises both."""
    function = WEIGHTINGS[name].function if name in WEIGHTINGS else PAIR_LOSSES[name]
    documentation = function.__doc__ or ""
    assert re.match(r"w = |.*-log sigmoid\(", documentation), documentation
    assert re.search(r"arXiv \d{4}\.\d{5}|\(docs/method\.md\)|\(\w+ and \w+, \d{4}", documentation), documentation


def test_constant_is_half() -> None:
    assert WEIGHTINGS["constant"](MARGINS, PROXY).tolist() == [0.5] * 5


def test_shuffled_sfc_has_the_same_weights_elsewhere() -> None:
    plain, shuffled = sfc_weight(MARGINS, PROXY), WEIGHTINGS["sfc_shuffled"](MARGINS, PROXY, seed=1)
    assert torch.equal(plain.sort().values, shuffled.sort().values)
    assert not torch.equal(plain, shuffled)
    assert torch.equal(shuffled, WEIGHTINGS["sfc_shuffled"](MARGINS, PROXY, seed=1))
    assert not torch.equal(shuffled, WEIGHTINGS["sfc_shuffled"](MARGINS, PROXY, seed=2))


def test_normalised_sfc_is_proportional_with_mean_one() -> None:
    weights = WEIGHTINGS["sfc_normalised"](MARGINS, PROXY)
    assert weights.mean().item() == pytest.approx(1.0)
    ratio = weights / sfc_weight(MARGINS, PROXY)
    assert torch.allclose(ratio, ratio[0].expand(5))


def test_margin_loss_asks_for_the_gap() -> None:
    expected = -log_sigmoid(MARGINS - 0.5 * GAPS)
    assert torch.allclose(PAIR_LOSSES["margin"](MARGINS, GAPS, GapSettings(strength=0.5)), expected, atol=1e-6)


def test_scaled_bradley_terry_multiplies_by_the_gap() -> None:
    expected = -GAPS * log_sigmoid(MARGINS)
    assert torch.allclose(PAIR_LOSSES["scaled_bradley_terry"](MARGINS, GAPS, GapSettings()), expected, atol=1e-6)


def test_dynamic_scaling_steepens_clear_preferences() -> None:
    scale = 1 + 0.8 * (1 - torch.exp(-0.5 * GAPS))
    loss = PAIR_LOSSES["dynamic_scaling"](MARGINS, GAPS, GapSettings(strength=0.8, rate=0.5))
    assert torch.allclose(loss, -log_sigmoid(scale * MARGINS), atol=1e-6)


def test_without_a_gap_every_loss_is_bradley_terry_or_nothing() -> None:
    none = torch.zeros(5)
    for name, loss in PAIR_LOSSES.items():
        expected = none if name == "scaled_bradley_terry" else -log_sigmoid(MARGINS)
        assert torch.allclose(loss(MARGINS, none, GapSettings()), expected, atol=1e-6), name


def test_smoothing_is_least_at_the_smoothed_odds() -> None:
    best = math.log(0.9 / 0.1)
    around = smoothed(torch.tensor([best - 0.1, best, best + 0.1]), 0.1)
    assert around.argmin().item() == 1
    assert torch.allclose(smoothed(MARGINS, 0.0), -log_sigmoid(MARGINS), atol=1e-6)


def test_centring_is_zero_where_rewards_cancel() -> None:
    assert centring_penalty(torch.tensor([2.0, 2.0]), torch.tensor([-2.0, 1.0])).tolist() == [0.0, 9.0]
