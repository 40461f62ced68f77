"""The objective's equations, their limits and their gradients."""

import math

import pytest
import torch

from beholder_training.losses import (
    WEIGHTINGS,
    bradley_terry,
    proxy_balanced_weight,
    sfc_weight,
    weighted_loss,
)

MARGINS = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0])


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


def test_no_gradient_flows_through_the_weight() -> None:
    margin = MARGINS.clone().requires_grad_()
    proxy = (-MARGINS).requires_grad_()
    weight = sfc_weight(margin, proxy)
    weighted_loss(margin, weight, 5).backward()
    expected = -weight.detach() * torch.sigmoid(-MARGINS) / 5
    assert margin.grad is not None
    assert torch.allclose(margin.grad, expected)
    assert proxy.grad is None
