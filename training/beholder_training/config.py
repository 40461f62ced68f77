"""The settings of a training run: dataclasses that check themselves, from YAML and flags."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from beholder.checkpoint import Dtype
from beholder.errors import DataError
from beholder_training.domains import require_domains
from beholder_training.losses import PAIR_LOSSES, WEIGHTINGS

BadRecords = Literal["fail", "skip"]
ProxyInput = Literal["text_only", "blank_image"]


@dataclass
class TrainingConfig:
    """One training run.

    base: folder or hub name of a vision-language model (`beholder-train make-base` makes tiny ones).
    output: folder of the checkpoint; must not exist yet. An interrupted run leaves `.NAME.training` beside it, from
        which the same command goes on.
    train: files of preferences (.jsonl, .json, .parquet); validation: held-out ones, for calibration, golden samples
        and accuracy. train_weights: how often each file is seen in an epoch, one number a file; empty is once each.
        0.5 is a half of its records, the same one in every epoch.
    image_root: folder of the images' paths, by default each file's own; image_cache: where embedded images are kept.
    bad_records: what training does about records that `check-data` reports, held out or not: fail at the start, or skip
        them and print the counts.
    check_images: decode every image and measure every sequence before the first step, as `check-data` does.
    algorithm: how pairs are weighted: proxy_balanced, sfc, standard, or a control (constant, sfc_shuffled,
        sfc_normalised); exponent: of the weight; 0 is standard training.
    pair_loss: bradley_terry, margin, scaled_bradley_terry or dynamic_scaling; gap_strength, gap_rate: how much the
        rating gap changes it.
    label_smoothing: probability that a label is wrong; centring: weight of the penalty that keeps rewards near 0.
    steps: optimiser steps of the main branch; 0 trains for `epochs`, each of which ends with the step that has what is
        left of the data.
    batch_prompts: prompts in a forward on each process, and accumulation: forwards in an optimiser step; all pairs of a
        prompt are loss terms, and the loss is a mean over all pairs of the step. proxy_balanced, sfc_normalised and
        sfc_shuffled need steps of 32 pairs or more, over all processes.
    token_budget: tokens of a forward of either branch, padding included; splits it further than batch_prompts does.
        0: no limit. Both also bound the forwards of evaluation and calibration after the last step.
    packed: all responses of a prompt in one sequence. Where the probe at the start finds that the model's rewards
        differ from those of separate sequences, they are padded instead.
    image_options: settings of the base's image processor to change, such as max_patches; the checkpoint keeps them.
    proxy_input: what the proxy sees; blank_image is the published code's white square.
    proxy_base: base of the proxy; None takes `base`. save_proxy: keep it in the checkpoint's proxy/.
    proxy_warmup_steps: steps in which the proxy alone is trained, before the others (proxy-balanced).
    bf16: compute in bfloat16 (autocast); export_dtype: of the exported weights.
    learning_rate: the highest, of the main branch; proxy_learning_rate: of the proxy, by default the same.
        warmup_ratio: the part of the steps in which they rise. weight_decay, adam_beta2: AdamW's. max_grad_norm: each
        branch's gradient is clipped to it.
    gradient_checkpointing: compute activations twice instead of keeping them.
    lora_rank: adapters of this rank on the language model instead of its weights, merged at export; 0: none.
        lora_alpha, lora_dropout: theirs.
    seed: of new weights, the data's order and every other draw.
    text_only: leave the images out of the main branch too: the text-only baseline, without a proxy.
    freeze_vision: leave the vision tower as it is, in eval mode, but for Qwen's projector, which is a part of it;
        vision_cache_gib: keep its features across epochs.
    fsdp: shard both branches over the GPUs of the processes that torchrun or accelerate started (FSDP2); without such,
        training is refused.
    save_steps: also save for resuming after every so many steps; SIGTERM and the last step save in any case.
    logging_steps: steps between log lines; 0: a twentieth of the run. report_to: trackers to log to, such as wandb.
    max_length: the most tokens of a sequence, images included. workers: processes that read data for each process.
    calibration_records: the most held-out records to evaluate and calibrate on, drawn by the seed.
    """

    base: str
    output: Path
    train: list[Path]
    validation: list[Path]
    train_weights: list[float] = field(default_factory=list)
    image_root: Path | None = None
    image_cache: Path | None = None
    bad_records: BadRecords = "fail"
    check_images: bool = True
    algorithm: str = "proxy_balanced"
    exponent: float = 1.0
    pair_loss: str = "bradley_terry"
    gap_strength: float = 1.0
    gap_rate: float = 0.5
    label_smoothing: float = 0.0
    centring: float = 0.0
    steps: int = 0
    epochs: float = 1.0
    batch_prompts: int = 32
    accumulation: int = 1
    token_budget: int = 0
    packed: bool = True
    image_options: dict[str, Any] = field(default_factory=dict)
    learning_rate: float = 1e-5
    proxy_learning_rate: float | None = None
    proxy_warmup_steps: int | None = None
    proxy_base: str | None = None
    proxy_input: ProxyInput = "text_only"
    save_proxy: bool = False
    warmup_ratio: float = 0.1
    weight_decay: float = 0.05
    adam_beta2: float = 0.98
    max_grad_norm: float = 1.0
    max_length: int = 4096
    freeze_vision: bool = True
    vision_cache_gib: float = 0.0
    text_only: bool = False
    bf16: bool = False
    gradient_checkpointing: bool = False
    lora_rank: int = 0
    lora_alpha: int = 16
    lora_dropout: float = 0.0
    fsdp: bool = False
    export_dtype: Dtype = "float32"
    seed: int = 0
    workers: int = 0
    save_steps: int = 0
    logging_steps: int = 0
    report_to: list[str] = field(default_factory=list)
    calibration_records: int = 500

    def __post_init__(self) -> None:
        for name, known in (("algorithm", WEIGHTINGS), ("pair_loss", PAIR_LOSSES)):
            if getattr(self, name) not in known:
                raise DataError(f"{name} {getattr(self, name)!r} is unknown: use one of {', '.join(known)}")
        for name, kind in (("export_dtype", Dtype), ("bad_records", BadRecords), ("proxy_input", ProxyInput)):
            if getattr(self, name) not in get_args(kind):
                raise DataError(f"{name} must be one of {', '.join(get_args(kind))}, not {getattr(self, name)!r}")
        require_domains(asdict(self))
        _require_trackers(self.report_to)
        if not self.train or not self.validation:
            raise DataError("give at least one file of preferences to train on and one held out (validation)")
        if self.train_weights and len(self.train_weights) != len(self.train):
            raise DataError(f"train_weights has {len(self.train_weights)} numbers for {len(self.train)} train files")
        self._check_conflicts()

    def _check_conflicts(self) -> None:
        proxy = f"an algorithm that trains a proxy, which {self.algorithm!r} does not"
        needs = (
            ("vision_cache_gib", self.freeze_vision, "freeze_vision: features of a tower that learns cannot be kept"),
            ("vision_cache_gib", not self.text_only, "images, which text_only leaves out: remove one of the two"),
            ("save_proxy", self.needs_proxy, proxy),
            ("proxy_base", self.needs_proxy, proxy),
            ("proxy_warmup_steps", self.needs_proxy, proxy),
            ("lora_dropout", self.lora_rank, "lora_rank: without adapters there is nothing to drop"),
        )
        for name, fulfilled, what in needs:
            if getattr(self, name) and not fulfilled:
                raise DataError(f"{name} needs {what}")
        if self.text_only and self.needs_proxy:
            raise DataError(
                f"text_only=true is a baseline: set algorithm=standard, as {self.algorithm!r} weights the pairs "
                "against what text alone can learn from them"
            )

    @property
    def needs_proxy(self) -> bool:
        return WEIGHTINGS[self.algorithm].reads_proxy

    @property
    def step_prompts(self) -> int:
        """Prompts in an optimiser step on each process."""
        return self.batch_prompts * self.accumulation

    def main_steps(self, records: int, processes: int = 1) -> int:
        """Optimiser steps of the main branch: as set, or what the epochs over so many records take, rounded up.

        An epoch's last step has what is left of the data; no step has records of two epochs.
        """
        epoch = math.ceil(records / (self.step_prompts * processes))
        return self.steps or math.ceil(round(self.epochs * epoch, 6))  # 1.1 * 10 is a little above 11

    def proxy_warmup(self, total_steps: int) -> int:
        """Warm-up steps of the proxy: as set, by default a tenth of the run for proxy-balanced, else none."""
        if self.proxy_warmup_steps is not None:
            return self.proxy_warmup_steps if self.needs_proxy else 0
        return max(total_steps // 10, 1) if self.algorithm == "proxy_balanced" else 0

    def as_text(self) -> str:
        """Every setting, one a line, as YAML."""
        values = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}
        values |= {name: [str(path) for path in values[name]] for name in ("train", "validation")}
        return yaml.safe_dump(values)


def load_config(path: Path | None, overrides: dict[str, Any]) -> TrainingConfig:
    """The YAML file's settings under the command line's. Raises DataError for an unknown or ill-typed setting."""
    values = (read_settings(path) if path is not None else {}) | overrides
    known = {field.name for field in fields(TrainingConfig)}
    if unknown := sorted(set(values) - known):
        raise DataError(f"unknown setting {', '.join(unknown)}: see `beholder-train train --help`")
    if missing := sorted({"base", "output", "train", "validation"} - set(values)):
        raise DataError(f"missing setting {', '.join(missing)}")
    return TrainingConfig(**{name: _typed(name, value) for name, value in values.items()})


def read_settings(path: Path) -> dict[str, Any]:
    """A YAML mapping of settings. Raises DataError."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: not UTF-8, or a date that does not exist
        raise DataError(f"{path}: {error}") from None
    if not isinstance(values, dict):
        raise DataError(f"{path}: a configuration is a mapping of settings")
    return values


def read_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE texts, values as in YAML; of one name the last counts. Raises DataError."""
    values = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        try:
            values[name] = yaml.safe_load(value)
        except (ValueError, yaml.YAMLError) as error:
            raise DataError(f"{name} cannot be read from {value!r}: {error}") from None
        if not equals:
            raise DataError(f"a setting is given as NAME=VALUE, not {assignment!r}")
    return values


def _require_trackers(names: Sequence[str]) -> None:
    if list(names) in ([], ["none"], ["all"]):
        return
    from transformers.integrations.integration_utils import get_available_reporting_integrations

    known = get_available_reporting_integrations()
    for name in names:
        if name not in known:
            installed = f"use {', '.join(known)}" if known else "none that is known is installed"
            raise DataError(f"report_to {name!r} is unknown or not installed: {installed}")


def _typed(name: str, value: Any) -> Any:
    """Paths as Path, one-element lists allowed as a scalar, numbers checked."""
    hint = get_type_hints(TrainingConfig)[name]
    if get_origin(hint) is list:
        return [_as(get_args(hint)[0], name, item) for item in _each(value)]
    if get_origin(hint) is dict:
        return _as(dict, name, value)
    kinds = get_args(hint) or (hint,)
    if value is None and type(None) in kinds:
        return None
    for kind in (Path, float):
        if kind in kinds:
            return _as(kind, name, value)
    for exact in (int, bool, str):
        if exact in kinds and type(value) is not exact:
            raise DataError(f"{name} must be {exact.__name__}, not {value!r}")
    return value


def _each(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _as(kind: Any, name: str, value: Any) -> Any:
    try:
        if kind in (float, str) and isinstance(value, bool | None):  # they would be numbers, and any text
            raise TypeError
        return kind(value)  # YAML reads 1e-5 as text
    except (TypeError, ValueError):
        wanted = {float: "a number", dict: "a mapping", str: "a text"}.get(kind, f"a {kind.__name__}")
        raise DataError(f"{name} must be {wanted}, not {value!r}") from None
