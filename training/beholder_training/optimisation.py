"""AdamW with one parameter group a branch, and each group's own warm-up and cosine."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from beholder_training.branches import NAMES, branch_parameters
from beholder_training.config import TrainingConfig


def make_optimiser(config: TrainingConfig, model: Any) -> torch.optim.AdamW:
    """`model` is a TwoBranches, wrapped or not."""
    rates = {"main": config.learning_rate, "proxy": config.proxy_learning_rate or config.learning_rate}
    groups = [
        {"params": parameters, "lr": rates[branch], "name": branch}
        for branch in NAMES
        if (parameters := branch_parameters(model, branch))
    ]
    return torch.optim.AdamW(groups, betas=(0.9, config.adam_beta2), weight_decay=config.weight_decay)


def fill_state(optimiser: Any) -> None:
    """Give every parameter that has had no gradient yet the state of an AdamW that has taken no step.

    AdamW itself makes a state at a parameter's first gradient, and a sharded checkpoint that lacks one, such as the
    main branch's while the proxy warms up, cannot be loaded.
    """
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            if not optimiser.state.get(parameter):
                zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                optimiser.state[parameter] = {"step": torch.tensor(0.0), **zeros}


def make_schedule(optimiser: Any, warmup_ratio: float, main_starts: int, steps: int) -> LambdaLR:
    """The main branch starts at step `main_starts`, the proxy at once; both end at `steps`."""
    starts = {"main": main_starts, "proxy": 0}
    return LambdaLR(optimiser, [cosine(starts[group["name"]], steps, warmup_ratio) for group in optimiser.param_groups])


def cosine(start: int, end: int, warmup_ratio: float) -> Callable[[int], float]:
    """Step -> factor of the learning rate: 0 before `start`, linear warm-up, half a cosine to 0 at `end`."""
    warmup = max(warmup_ratio * (end - start), 1)

    def factor(step: int) -> float:
        done = step - start
        if done < 0:
            return 0.0
        if done < warmup:
            return min((done + 1) / warmup, 1.0)  # a warm-up need not be a whole number of steps
        return 0.5 * (1 + math.cos(math.pi * min((done - warmup) / max(end - start - warmup, 1), 1)))

    return factor
