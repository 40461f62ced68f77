"""GRPO with TRL: a vision-language policy trained by a reward model that is asked over HTTP.

    python -m examples.grpo_trl                                        tiny models, minutes on a CPU
    python -m examples.grpo_trl --url http://HOST:8000 --policy Qwen/Qwen3-VL-2B-Instruct

Prints reward and true answers on held-out questions before and after, and plots both over the steps. With
--compare standard=FOLDER --compare sfc=FOLDER each of the reward models trains the same policy: which one is gamed?
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from beholder.client import RewardClient
from beholder.trainers.rewards import RewardSettings
from beholder.trainers.trl import async_reward_function
from examples.measuring import TEST_SEED, Answers, Curve, measure, plot, report
from examples.options import finish, parser, policy, service
from examples.policies import load_policy
from examples.scenes import draw


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=60)
    options.add_argument("--prompts", type=int, default=16, help="per step (%(default)s)")
    options.add_argument("--generations", type=int, default=8, help="per prompt (%(default)s)")
    options.add_argument("--learning-rate", type=float, default=3e-4)
    options.add_argument("--kl", type=float, default=0.02, help="weight of the KL to the warm start (%(default)s)")
    options.add_argument("--measure-every", type=int, default=15, help="steps (%(default)s)")
    options.add_argument("--compare", action="append", default=[], metavar="LABEL=CHECKPOINT")
    return finish(run, options.parse_args())


def run(options: argparse.Namespace) -> None:
    name = policy(options)
    runs = [entry.partition("=")[::2] for entry in options.compare] or [("reward model", str(options.checkpoint))]
    curves = []
    path = options.output / "grpo_trl.png"
    for label, checkpoint in runs:
        chosen = argparse.Namespace(**{**vars(options), "checkpoint": Path(checkpoint)})
        with service(chosen) as url:
            curves.append(train(name, url, label, chosen))
        plot(curves, path)
    print(f"plotted in {path}")


def train(name: str, url: str, label: str, options: argparse.Namespace) -> Curve:
    """One run of the policy `name` against the service at `url`: what was measured along the way."""
    model, processor = load_policy(name)  # from disk, where TRL finds the reference of the KL too
    test = draw(options.test, TEST_SEED)
    curve = Curve(label)
    with RewardClient(url, fingerprint="first") as client:
        before = measure(model, processor, test, client, options.max_new_tokens)
        curve.add(0, before)
        measured = [before]

        def watch(step: int) -> None:
            measured.append(measure(model, processor, test, client, options.max_new_tokens))
            curve.add(step, measured[-1])

        trainer = make_trainer(model, processor, url, watch, options)
        trainer.train()
    print(f"{label}\n{report(before, measured[-1])}\nstyles {_styles(before)} -> {_styles(measured[-1])}")
    return curve


def make_trainer(model: Any, processor: Any, url: str, watch: Any, options: argparse.Namespace) -> Any:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer  # type: ignore[attr-defined]

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.global_step % options.measure_every == 0 or state.global_step == options.steps:
                watch(state.global_step)

    config = GRPOConfig(
        output_dir=str(options.output / "grpo"),
        max_steps=options.steps,
        per_device_train_batch_size=options.prompts * options.generations,
        num_generations=options.generations,
        max_completion_length=options.max_new_tokens,
        learning_rate=options.learning_rate,
        lr_scheduler_type="constant",
        beta=options.kl,
        temperature=1.0,
        seed=options.seed,
        logging_steps=options.measure_every,
        save_strategy="no",
        report_to="none",
        use_cpu=model.device.type == "cpu",
        bf16=model.dtype == torch.bfloat16,
        gradient_checkpointing=False,
    )
    # An empty response has no reward; TRL leaves it out where there is no other reward function.
    rewards = async_reward_function(RewardSettings((url,), fingerprint="first", failed="none"))
    items = draw(options.steps * options.prompts, f"{options.seed}-grpo")
    rows = [{"prompt": item.messages, "image": item.image} for item in items]
    return GRPOTrainer(
        model=model,
        processing_class=processor,
        reward_funcs=rewards,  # type: ignore[arg-type]
        train_dataset=Dataset.from_list(rows),
        args=config,
        callbacks=[Watch()],
    )


def _styles(answers: Answers) -> dict[str, float]:
    curve = Curve("")
    curve.add(0, answers)
    return {name: round(share, 2) for name, share in curve.styles[0].items()}


if __name__ == "__main__":
    sys.exit(main())
