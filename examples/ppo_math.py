"""The equations of PPO on responses, all of shape (B, R): tensors in, tensors out."""

import torch
from torch import Tensor


def token_rewards(scores: Tensor, logps: Tensor, reference_logps: Tensor, mask: Tensor, kl: float) -> Tensor:
    """-kl (log pi - log pi_ref) at every token, and the score (B,) on top at the last one."""
    rewards = -kl * (logps - reference_logps) * mask
    last = mask.sum(1).long() - 1
    rewards[torch.arange(len(scores), device=last.device), last] += scores
    return rewards


def advantages(rewards: Tensor, values: Tensor, mask: Tensor, decay: float = 0.95) -> Tensor:
    """Generalised advantage estimates without discount (Schulman et al. 2016); 0 where `mask` is."""
    result = torch.zeros_like(rewards)
    running = rewards.new_zeros(len(rewards))
    following = rewards.new_zeros(len(rewards))
    for step in reversed(range(rewards.shape[1])):
        surprise = rewards[:, step] + following - values[:, step]
        running = torch.where(mask[:, step] > 0, surprise + decay * running, torch.zeros_like(running))
        following = torch.where(mask[:, step] > 0, values[:, step], torch.zeros_like(following))
        result[:, step] = running
    return result


def whitened(values: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and deviation 1 over the tokens that count."""
    count = mask.sum()
    mean = (values * mask).sum() / count
    variance = ((values - mean) ** 2 * mask).sum() / count
    return (values - mean) * mask / (variance.sqrt() + 1e-6)


def policy_loss(logps: Tensor, old_logps: Tensor, gains: Tensor, mask: Tensor, clip: float = 0.2) -> Tensor:
    """The clipped surrogate (Schulman et al. 2017), mean over tokens."""
    ratio = ((logps - old_logps) * mask).exp()
    surrogate = torch.minimum(ratio * gains, ratio.clamp(1 - clip, 1 + clip) * gains)
    return -(surrogate * mask).sum() / mask.sum()


def value_loss(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """Half the squared error, mean over tokens."""
    return 0.5 * ((values - returns) ** 2 * mask).sum() / mask.sum()
