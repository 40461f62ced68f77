"""One training run on disk: where it saves, whether it may go on, and the branch that comes out.

A run that is killed leaves `.NAME.training` beside its output, with Trainer checkpoints and the settings that made
them. The same command goes on from the latest whole one and gives the losses of a run that was never interrupted.
"""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, set_seed

from beholder.errors import CheckpointError, DataError
from beholder.modeling.reward_model import RewardModel
from beholder_training.adapters import add_adapters, merge_adapters
from beholder_training.branch import Branch
from beholder_training.config import TrainingConfig
from beholder_training.data import Record
from beholder_training.errors import TrainingInterrupted
from beholder_training.trainer import RewardTrainer
from beholder_training.vision_cache import VisionCache

SETTINGS = "run.yaml"
COMPLETE = "trainer_state.json"  # the Trainer writes it last
KEPT = 2  # checkpoints at a time
BLANK_CACHE_BYTES = 2**28


def train(
    config: TrainingConfig,
    records: Sequence[Record],
    main: Branch,
    proxy: Branch | None,
    loop: type[RewardTrainer] | None = None,
) -> RewardTrainer:
    """Train `main` in place (and `proxy` beside it) on `records`, each of which has a pair. `loop` is another trainer
    to do it with.

    Raises TrainingInterrupted after SIGTERM, TrainingDiverged when a loss or gradient is not finite, CheckpointError
    when the scratch folder holds a run with other settings, DataError for settings that this base or machine has not.
    """
    set_seed(config.seed)
    for branch in (main, proxy):
        if branch is not None:
            _prepare(branch, config)
    scratch = scratch_folder(config)
    trainer = _trainer(config, records, main, proxy, loop or RewardTrainer)
    try:
        resumed = latest_checkpoint(config)
        if config.save_steps or resumed:
            write_settings(config, trainer.is_world_process_zero())
        trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    finally:
        trainer.stopper.restore()
        for cache in filter(None, trainer.vision_caches):
            cache.remove()
        _remove_if_empty(scratch)
    if trainer.state.global_step < trainer.state.max_steps:
        write_settings(config, trainer.is_world_process_zero())
        raise TrainingInterrupted(
            f"stopped by SIGTERM after step {trainer.state.global_step} of {trainer.state.max_steps}; saved in "
            f"{scratch}: the same command goes on from there"
        )
    unwrap(trainer, config, main, proxy)
    return trainer


def unwrap(trainer: RewardTrainer, config: TrainingConfig, main: Branch, proxy: Branch | None) -> None:
    """Whole, merged weights in the branches again; under FSDP on the first process alone."""
    for branch in (main, proxy):
        if branch is None:
            continue
        if trainer.is_fsdp_enabled and not _gather(branch, config, trainer.is_world_process_zero()):
            continue
        if config.lora_rank:
            merge_adapters(branch.model)


def _gather(branch: Branch, config: TrainingConfig, keeps: bool) -> bool:
    """A fresh model with the sharded weights, on the process that `keeps` them: sharding cannot be taken off."""
    whole = {}
    for key, value in branch.model.state_dict().items():
        full = value.full_tensor() if hasattr(value, "full_tensor") else value  # on every process: it communicates
        if keeps:
            whole[key] = full.cpu()
    if keeps:
        branch.model = RewardModel.from_base(branch.folder)
        if config.lora_rank:
            add_adapters(branch.model, config.lora_rank, config.lora_alpha, config.lora_dropout)
        branch.model.load_state_dict(whole)
    return keeps


def scratch_folder(config: TrainingConfig) -> Path:
    return config.output.parent / f".{config.output.name}.training"


def latest_checkpoint(config: TrainingConfig) -> Path | None:
    """The newest whole Trainer checkpoint of this very run. Raises CheckpointError when there is another run's."""
    scratch = scratch_folder(config)
    whole = [path for path in scratch.glob("checkpoint-*") if (path / COMPLETE).is_file()]
    if not whole:
        return None
    settings = scratch / SETTINGS
    if settings.is_file() and settings.read_text() != _identity(config):
        raise CheckpointError(f"{scratch} holds an interrupted run with other settings: remove it to start anew")
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]))


def write_settings(config: TrainingConfig, writes: bool) -> None:
    """The settings that a resumed run must have, beside its checkpoints."""
    if writes:
        scratch_folder(config).mkdir(parents=True, exist_ok=True)
        (scratch_folder(config) / SETTINGS).write_text(_identity(config))


def remove_checkpoints(config: TrainingConfig) -> None:
    """Once the model is exported. Logs stay."""
    scratch = scratch_folder(config)
    for path in scratch.glob("checkpoint-*"):
        shutil.rmtree(path)
    (scratch / SETTINGS).unlink(missing_ok=True)
    _remove_if_empty(scratch)


def _remove_if_empty(scratch: Path) -> None:
    """The Trainer makes its folder whether it writes there or not."""
    if scratch.is_dir() and not any(scratch.iterdir()):
        with suppress(OSError):  # another process of the run was first
            scratch.rmdir()


def _identity(config: TrainingConfig) -> str:
    """What two runs share that may continue each other; how often they save and log is their own affair."""
    free = ("save_steps:", "logging_steps:", "report_to:", "workers:")
    return "".join(line for line in config.as_text().splitlines(keepends=True) if not line.startswith(free))


def _prepare(branch: Branch, config: TrainingConfig) -> None:
    if config.lora_rank:
        add_adapters(branch.model, config.lora_rank, config.lora_alpha, config.lora_dropout)
    if config.gradient_checkpointing:
        branch.model.backbone.gradient_checkpointing_enable({"use_reentrant": False})


def _trainer(
    config: TrainingConfig, records: Sequence[Record], main: Branch, proxy: Branch | None, loop: type[RewardTrainer]
) -> RewardTrainer:
    arguments = _arguments(config, scratch_folder(config))
    steps = config.main_steps(len(records), arguments.world_size)
    warmup = config.proxy_warmup(steps) if proxy else 0
    arguments.max_steps = warmup + steps
    arguments.logging_steps = config.logging_steps or max(arguments.max_steps // 20, 1)
    caches = _vision_caches(config, main, proxy)
    return loop(config, main, proxy, warmup, arguments, list(records), caches)


def _vision_caches(
    config: TrainingConfig, main: Branch, proxy: Branch | None
) -> tuple[VisionCache | None, VisionCache | None]:
    """The main branch's on request; a blank-image proxy's whenever its tower is frozen: it only ever sees one image.

    Raises DataError when features are to be kept of a tower that does not stay as it is.
    """
    kept = blank = None
    if config.vision_cache_gib and main.sees_images:
        if not _keeps_features(main, config):
            raise DataError(
                f"vision_cache_gib: the projector of a {main.model.architecture.model_type} is a part of its tower, "
                "and trains: set freeze_projector=true, or leave the cache out"
            )
        kept = VisionCache(main.model.vision, int(config.vision_cache_gib * 2**30))
    if proxy is not None and proxy.blank_images and _keeps_features(proxy, config):
        blank = VisionCache(proxy.model.vision, BLANK_CACHE_BYTES)
    return kept, blank


def _keeps_features(branch: Branch, config: TrainingConfig) -> bool:
    """Whether the tower gives a picture the same features all through the run."""
    return config.freeze_vision and (config.freeze_projector or not branch.model.architecture.projects_in_tower)


def _arguments(config: TrainingConfig, scratch: Path) -> TrainingArguments:
    saving: dict[str, Any] = {"save_strategy": "no"}
    if config.save_steps:
        saving = {"save_strategy": "steps", "save_steps": config.save_steps, "save_total_limit": KEPT}
    sharding: dict[str, Any] = {"fsdp": True} if config.fsdp else {}  # FSDP2, full state dicts in checkpoints
    return TrainingArguments(
        output_dir=str(scratch),
        max_steps=1,  # set once the number of processes is known
        per_device_train_batch_size=config.step_prompts,  # a step is split in RewardTrainer.training_step
        learning_rate=config.learning_rate,
        max_grad_norm=0.0,  # ClipEachBranch
        disable_tqdm=True,  # ProgressBar
        bf16=config.bf16,
        seed=config.seed,
        report_to=config.report_to or "none",
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        dataloader_num_workers=config.workers,
        dataloader_pin_memory=False,  # items are lists
        **sharding,
        **saving,
    )
