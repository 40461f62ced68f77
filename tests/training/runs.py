"""Short training runs for tests: their losses step by step."""

import json
from pathlib import Path
from typing import Any

from transformers import set_seed

from beholder_training.branch import Branch
from beholder_training.config import TrainingConfig
from beholder_training.data import Record
from beholder_training.pipeline import make_branches
from beholder_training.runs import train

SHOWN = ("loss", "main_loss", "proxy_loss", "weight")


def config(base: Path, output: Path, **settings: Any) -> TrainingConfig:
    """Four steps of four prompts, every loss logged."""
    data = [Path("unused.jsonl")]
    defaults: dict[str, Any] = {"steps": 4, "batch_prompts": 4, "learning_rate": 1e-3, "logging_steps": 1}
    defaults["freeze_vision"] = False
    return TrainingConfig(base=str(base), output=output, train=data, validation=data, **(defaults | settings))


def run(run_config: TrainingConfig, records: list[Record]) -> tuple[list[dict[str, float]], Branch, Branch | None]:
    """The logged losses of every step, and the trained branches."""
    set_seed(run_config.seed)
    main, proxy = make_branches(run_config)
    main.packed = run_config.packed
    if proxy is not None:
        proxy.packed = run_config.packed
    trainer = train(run_config, records, main, proxy)
    return steps(trainer.state.log_history), main, proxy


def steps(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """The losses among a Trainer's log lines."""
    return [{name: line[name] for name in SHOWN if name in line} for line in history if "learning_rate" in line]


def losses(run_config: TrainingConfig, records: list[Record]) -> list[dict[str, float]]:
    return run(run_config, records)[0]


def store_tiling(base: Path, tiling: dict[str, bool]) -> None:
    """Let InternVL's base have `tiling` stored, {"crop_to_patches": ...} or nothing."""
    file = base / "processor_config.json"
    settings = json.loads(file.read_text())
    settings["image_processor"].pop("crop_to_patches")
    settings["image_processor"] |= tiling
    file.write_text(json.dumps(settings))
