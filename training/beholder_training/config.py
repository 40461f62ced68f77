"""The settings of a training run: dataclasses that check themselves, from YAML and flags."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from beholder.checkpoint import Dtype
from beholder.errors import DataError
from beholder_training.losses import WEIGHTINGS


@dataclass
class TrainingConfig:
    """One training run.

    base: folder or hub name of a vision-language model (`beholder-train make-base` makes tiny ones).
    output: folder of the checkpoint; must not exist yet.
    train: JSONL files of preferences; validation: held-out ones, for calibration, golden samples and accuracy.
    algorithm: how pairs are weighted, a key of losses.WEIGHTINGS.
    steps: optimiser steps of the main branch; 0 trains for `epochs`.
    batch_prompts: prompts in an optimiser step on each process; all pairs of a prompt are loss terms.
    proxy_warmup_steps: steps in which the proxy alone is trained, before the others (proxy-balanced).
    proxy_base: base of the text-only proxy; None takes `base`.
    exponent: of the weight; 0 is standard, 1 the full correction.
    bf16: compute in bfloat16 (autocast); export_dtype: of the exported weights.
    text_only: leave the images out of the main branch too: the text-only baseline.
    freeze_vision: leave the vision tower as it is, in eval mode.
    """

    base: str
    output: Path
    train: list[Path]
    validation: list[Path]
    image_root: Path | None = None
    algorithm: str = "proxy_balanced"
    steps: int = 0
    epochs: float = 1.0
    batch_prompts: int = 32
    accumulation: int = 1
    learning_rate: float = 1e-5
    proxy_learning_rate: float | None = None
    proxy_warmup_steps: int | None = None
    proxy_base: str | None = None
    exponent: float = 1.0
    warmup_ratio: float = 0.1
    weight_decay: float = 0.05
    adam_beta2: float = 0.98
    max_grad_norm: float = 1.0
    max_length: int = 4096
    freeze_vision: bool = True
    text_only: bool = False
    bf16: bool = False
    export_dtype: Dtype = "float32"
    seed: int = 0
    report_to: list[str] = field(default_factory=list)
    calibration_records: int = 500

    def __post_init__(self) -> None:
        if self.algorithm not in WEIGHTINGS:
            raise DataError(f"algorithm {self.algorithm!r} is unknown: use one of {', '.join(WEIGHTINGS)}")
        if self.export_dtype not in get_args(Dtype):
            raise DataError(f"export_dtype must be one of {', '.join(get_args(Dtype))}, not {self.export_dtype!r}")
        positive = ("batch_prompts", "accumulation", "learning_rate", "max_grad_norm", "max_length", "epochs")
        for name in positive:
            if getattr(self, name) <= 0:
                raise DataError(f"{name} must be positive, not {getattr(self, name)}")
        if not self.train or not self.validation:
            raise DataError("give at least one file of preferences to train on and one held out (validation)")

    @property
    def needs_proxy(self) -> bool:
        return self.algorithm != "standard"

    def main_steps(self, records: int) -> int:
        """Optimiser steps of the main branch: as set, or what the epochs over so many records take."""
        return self.steps or max(round(self.epochs * records / (self.batch_prompts * self.accumulation)), 1)

    def proxy_warmup(self, total_steps: int) -> int:
        """Warm-up steps of the proxy: as set, by default a tenth of the run for proxy-balanced, else none."""
        if self.proxy_warmup_steps is not None:
            return self.proxy_warmup_steps if self.needs_proxy else 0
        return max(total_steps // 10, 1) if self.algorithm == "proxy_balanced" else 0


def load_config(path: Path | None, overrides: dict[str, Any]) -> TrainingConfig:
    """The YAML file's settings under the command line's. Raises DataError for an unknown or ill-typed setting."""
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = yaml.safe_load(path.read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise DataError(f"{path}: {error}") from None
        if not isinstance(values, dict):
            raise DataError(f"{path}: a configuration is a mapping of settings")
    values |= overrides
    known = {field.name for field in fields(TrainingConfig)}
    if unknown := sorted(set(values) - known):
        raise DataError(f"unknown setting {', '.join(unknown)}: see `beholder-train train --help`")
    if missing := sorted({"base", "output", "train", "validation"} - set(values)):
        raise DataError(f"missing setting {', '.join(missing)}")
    return TrainingConfig(**{name: _typed(name, value) for name, value in values.items()})


def _typed(name: str, value: Any) -> Any:
    """Paths as Path, one-element lists allowed as a scalar, numbers checked."""
    hint = get_type_hints(TrainingConfig)[name]
    if hint == list[Path]:
        return [Path(item) for item in (value if isinstance(value, list) else [value])]
    kinds = get_args(hint) or (hint,)
    if value is None and type(None) in kinds:
        return None
    if Path in kinds:
        return Path(value)
    if float in kinds and isinstance(value, int | float | str):
        try:
            return float(value)  # YAML reads 1e-5 as text
        except ValueError:
            raise DataError(f"{name} must be a number, not {value!r}") from None
    if hint in (int, bool, str) and type(value) is not hint:
        raise DataError(f"{name} must be {hint.__name__}, not {value!r}")
    return value
