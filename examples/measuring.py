"""What the examples report: reward and truth of a policy's answers on held-out questions, before and after."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beholder.client import RewardClient, Sample, Score
from beholder.errors import BeholderError, EmptyResponse
from examples.policies import generate
from examples.scenes import Item, style

TEST_SEED = "held-out"
KINDS = (("true answers", True), ("false answers", False))


@dataclass(frozen=True)
class Answers:
    """One sampled answer to each held-out question: its reward (nan of an empty answer, which has none), whether it is
    true, and its style."""

    rewards: list[float]
    true: list[bool]
    styles: list[str | None]

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.true))

    @property
    def reward(self) -> float:
        return float(np.nanmean(self.rewards))


@dataclass
class Curve:
    """Means over training: `steps[i]` belongs to `rewards[i]`, `accuracies[i]` and `styles[i]` (share of each)."""

    label: str
    steps: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    styles: list[dict[str, float]] = field(default_factory=list)

    def add(self, step: int, answers: Answers) -> None:
        self.steps.append(step)
        self.rewards.append(answers.reward)
        self.accuracies.append(answers.accuracy)
        named = [name or "other" for name in answers.styles]
        self.styles.append({name: named.count(name) / len(named) for name in sorted(set(named))})


def measure(model: Any, processor: Any, items: Sequence[Item], client: RewardClient, max_new_tokens: int) -> Answers:
    """Sample an answer to each item and fetch its reward. Raises BeholderError."""
    responses = generate(model, processor, items, max_new_tokens)
    answered = list(zip(items, responses, strict=True))
    results = client.try_score_many([Sample(item.messages, [item.image], text) for item, text in answered])
    true = [item.is_true(text) for item, text in answered]
    return Answers([reward_of(result) for result in results], true, [style(text) for text in responses])


def report(before: Answers, after: Answers) -> str:
    """Reward and truth before and after, with the gain of the reward in standard errors (paired by question)."""
    count = len(before.rewards)
    gains = np.subtract(after.rewards, before.rewards)
    gains = gains[~np.isnan(gains)]
    error = float(gains.std(ddof=1)) / math.sqrt(len(gains))
    lines = [
        f"{'held-out, ' + str(count) + ' questions':28}  {'before':>17}  {'after':>17}",
        f"{'reward':28}  {mean_and_error(before.rewards):>17}  {mean_and_error(after.rewards):>17}",
        f"{'true answers':28}  {mean_and_error(before.true):>17}  {mean_and_error(after.true):>17}",
        *(f"{'reward of ' + name:28}  {_of(before, kind):>17}  {_of(after, kind):>17}" for name, kind in KINDS),
        f"the reward rose by {gains.mean():+.3f}, {gains.mean() / error:+.1f} standard errors"
        if error
        else "no change",
    ]
    return "\n".join(lines)


def plot(curves: Sequence[Curve], path: Path) -> None:
    """Reward and true answers over the steps, and the same numbers as JSON beside it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for curve in curves:
        axes[0].plot(curve.steps, curve.rewards, marker="o", label=curve.label)
        axes[1].plot(curve.steps, curve.accuracies, marker="o", label=curve.label)
    for axis, title in zip(axes, ("held-out reward (logit)", "true answers, share"), strict=True):
        axis.set(title=title, xlabel="step")
        axis.legend()
    axes[1].set_ylim(0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    path.with_suffix(".json").write_text(json.dumps([asdict(curve) for curve in curves], indent=1) + "\n")


def _of(answers: Answers, kind: bool) -> str:
    """The reward of the true or the false answers: a policy that games the reward raises that of false ones."""
    rewards = [reward for reward, true in zip(answers.rewards, answers.true, strict=True) if true == kind]
    return mean_and_error(rewards) if len(rewards) > 1 else "too few"


def reward_of(result: Score | BeholderError) -> float:
    """nan for an empty response, which has no reward. Raises any other error."""
    if isinstance(result, EmptyResponse):
        return math.nan
    if isinstance(result, BeholderError):
        raise result
    return result.score


def mean_and_error(values: Sequence[float] | NDArray[np.float64]) -> str:
    """Mean and its standard error."""
    numbers = np.asarray(values, float)
    numbers = numbers[~np.isnan(numbers)]
    return f"{numbers.mean():.3f} ± {numbers.std(ddof=1) / math.sqrt(len(numbers)):.3f}"
