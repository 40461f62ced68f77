"""A compact PPO: value head, KL to the warm start, rewards fetched over HTTP while the next batch is generated.

    python -m examples.ppo                                             tiny models, minutes on a CPU
    python -m examples.ppo --url http://HOST:8000 --policy Qwen/Qwen3-VL-2B-Instruct

Since a batch is generated while the one before is being scored, it comes from the policy before that one's update: the
ratio of PPO accounts for it. Prints reward and true answers on held-out questions before and after, and plots both.
"""

import argparse
import copy
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from beholder.client import RewardClient, Sample
from examples.measuring import TEST_SEED, Curve, measure, plot, report, reward_of
from examples.options import finish, parser, policy, service
from examples.policies import encode, joined, load_policy, sample
from examples.ppo_math import advantages, policy_loss, token_rewards, value_loss, whitened
from examples.scenes import Item, draw

VALUE_WEIGHT = 0.5
MAX_NORM = 1.0


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=80)
    options.add_argument("--batch", type=int, default=64, help="questions per step (%(default)s)")
    options.add_argument("--epochs", type=int, default=2, help="over each batch (%(default)s)")
    options.add_argument("--learning-rate", type=float, default=6e-4)
    options.add_argument("--kl", type=float, default=0.05, help="weight of the KL to the warm start (%(default)s)")
    options.add_argument("--measure-every", type=int, default=20, help="steps (%(default)s)")
    return finish(run, options.parse_args())


def run(options: argparse.Namespace) -> None:
    model, processor = load_policy(policy(options))
    test = draw(options.test, TEST_SEED)
    curve = Curve("PPO")
    with service(options) as url, RewardClient(url, fingerprint="first") as client:
        learner = Learner(model, processor, options)
        before = after = measure(model, processor, test, client, options.max_new_tokens)
        curve.add(0, before)
        for step in learner.train(client):
            if step % options.measure_every == 0 or step == options.steps:
                after = measure(model, processor, test, client, options.max_new_tokens)
                curve.add(step, after)
    print(report(before, after))
    path = options.output / "ppo.png"
    plot([curve], path)
    print(f"plotted in {path}")


@dataclass
class Rollout:
    """Responses (B, R) to a batch of questions, with what the policy thought of them when it wrote them."""

    inputs: dict[str, Tensor]
    responses: Tensor
    mask: Tensor
    logps: Tensor
    values: Tensor
    reference_logps: Tensor


class Learner:
    """The policy, its value head on the last hidden states, and the frozen reference."""

    def __init__(self, model: Any, processor: Any, options: argparse.Namespace) -> None:
        torch.manual_seed(options.seed)
        self._model = model
        self._processor = processor
        self._options = options
        self._reference = copy.deepcopy(model).eval().requires_grad_(False)
        self._value = nn.Linear(model.config.get_text_config().hidden_size, 1).to(model.device)
        nn.init.zeros_(self._value.weight)
        parameters = [*model.parameters(), *self._value.parameters()]
        self._optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=0.0)
        self._parameters = parameters

    def train(self, client: RewardClient) -> Any:
        """Yields the number of each step when it is done."""
        options = self._options
        with ThreadPoolExecutor(1) as pool:
            waiting = self._start(pool, client, 0)
            for step in tqdm(range(1, options.steps + 1), desc="PPO", unit="step"):
                following = self._start(pool, client, step) if step < options.steps else None
                rollout, scores = waiting[0], waiting[1].result()
                self._update(rollout, torch.tensor(scores, device=self._model.device))
                yield step
                if following:
                    waiting = following

    def _start(
        self, pool: ThreadPoolExecutor, client: RewardClient, step: int
    ) -> "tuple[Rollout, Future[list[float]]]":
        """Generate a batch and send it off to be scored."""
        items = draw(self._options.batch, f"{self._options.seed}-ppo-{step}")
        rollout, texts = self._roll_out(items)
        return rollout, pool.submit(_rewards, client, items, texts)

    @torch.no_grad()
    def _roll_out(self, items: Sequence[Item]) -> tuple[Rollout, list[str]]:
        self._model.eval()
        inputs = encode(self._processor, items, self._model.device)
        responses = sample(self._model, inputs, self._options.max_new_tokens)
        mask = _until_end(responses, self._processor.tokenizer.eos_token_id)
        logps, values = self._evaluate(self._model, inputs, responses, mask)
        reference_logps, _ = self._evaluate(self._reference, inputs, responses, mask)
        texts = self._processor.batch_decode(responses, skip_special_tokens=True)
        return Rollout(inputs, responses, mask, logps, values, reference_logps), texts

    def _update(self, rollout: Rollout, scores: Tensor) -> None:
        """A few passes over one batch; responses without a reward are left out."""
        mask = rollout.mask * (~scores.isnan()).unsqueeze(1)
        rewards = token_rewards(
            scores.nan_to_num(), rollout.logps, rollout.reference_logps, rollout.mask, self._options.kl
        )
        gains = advantages(rewards, rollout.values, rollout.mask)
        returns = gains + rollout.values
        gains = whitened(gains, mask)
        for _ in range(self._options.epochs):
            logps, values = self._evaluate(self._model, rollout.inputs, rollout.responses, rollout.mask)
            loss = policy_loss(logps, rollout.logps, gains, mask) + VALUE_WEIGHT * value_loss(values, returns, mask)
            self._optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._parameters, MAX_NORM)
            self._optimizer.step()

    def _evaluate(
        self, model: Any, inputs: dict[str, Tensor], responses: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Log-probability of each token of the responses, and the value before it; 0 where `mask` is."""
        output = model(**joined(inputs, responses, mask), output_hidden_states=True)
        before = slice(-responses.shape[1] - 1, -1)
        logps = output.logits[:, before].float().log_softmax(-1).gather(-1, responses.unsqueeze(-1)).squeeze(-1)
        values = self._value(output.hidden_states[-1][:, before].float()).squeeze(-1)
        return logps * mask, values * mask


def _until_end(responses: Tensor, end: int) -> Tensor:
    """1 for each token up to and with the first `end`, 0 after it."""
    ended = (responses == end).long().cumsum(1) - (responses == end).long()
    return (ended == 0).long()


def _rewards(client: RewardClient, items: Sequence[Item], texts: Sequence[str]) -> list[float]:
    """nan for an empty response. Raises BeholderError."""
    samples = [Sample(item.messages, [item.image], text) for item, text in zip(items, texts, strict=True)]
    return [reward_of(result) for result in client.try_score_many(samples)]


if __name__ == "__main__":
    sys.exit(main())
