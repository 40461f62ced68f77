"""One training run on disk: where it saves, whether it may go on, and the branch that comes out.

A run that is killed leaves `.NAME.training` beside its output, with Trainer checkpoints and what decided them. The same
command goes on from the latest whole one and gives the losses of a run that was never interrupted.
"""

import resource
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import TrainerState, TrainingArguments, set_seed
from transformers.utils import SAFE_WEIGHTS_NAME

from beholder.errors import CheckpointError
from beholder.modeling.reward_model import RewardModel
from beholder_training.adapters import add_adapters, merge_adapters
from beholder_training.branch import Branch
from beholder_training.config import TrainingConfig
from beholder_training.data import Record
from beholder_training.errors import TrainingInterrupted
from beholder_training.identity import differences, files_identity, identity, settings
from beholder_training.objective import small_step_warning
from beholder_training.trainer import RewardTrainer
from beholder_training.vision_cache import VisionCache

IDENTITY = "run.yaml"
COMPLETE = "trainer_state.json"  # the Trainer writes it last
KEPT = 2  # checkpoints at a time
BLANK_CACHE_BYTES = 2**28


def train(
    config: TrainingConfig,
    records: Sequence[Record],
    main: Branch,
    proxy: Branch | None,
    loop: type[RewardTrainer] | None = None,
    keep_last: bool = False,
) -> RewardTrainer:
    """Train `main` in place (and `proxy` beside it) on `records`, each of which has a pair. `loop` is another trainer
    to do it with. `keep_last` leaves the last step's weights in the scratch folder, until `remove_checkpoints`.

    Raises TrainingInterrupted after SIGTERM, TrainingDiverged when a loss or gradient is not finite, CheckpointError
    when the scratch folder holds a run with other settings, data, images, base or number of processes, DataError for
    settings that this base or machine has not.
    """
    set_seed(config.seed)
    if config.workers:
        allow_open_files()
    for branch in (main, proxy):
        if branch is not None:
            _prepare(branch, config)
    trainer = _trainer(config, records, main, proxy, loop or RewardTrainer)
    ours = identity(config, records, trainer.args.world_size)
    if trainer.is_world_process_zero():
        if warning := small_step_warning(config, records, trainer.args.world_size):
            print(f"warning: {warning}", file=sys.stderr)
        ours |= files_identity(config, records, [branch.folder for branch in (main, proxy) if branch is not None])
    try:
        _take_steps(trainer, config, ours)
        if keep_last and _finished(trainer):
            _keep_last(trainer, config)
    finally:
        trainer.stopper.restore()
        for cache in filter(None, trainer.vision_caches):
            cache.remove()
        _clean(scratch_folder(config), trainer.is_world_process_zero())
    if not _finished(trainer) or (trainer.stopper.received and _is_whole(_last(trainer, config))):
        raise TrainingInterrupted(
            f"stopped by SIGTERM after step {trainer.state.global_step} of {trainer.state.max_steps}; saved in "
            f"{scratch_folder(config)}: the same command goes on from there"
        )
    unwrap(trainer, config, main, proxy)
    return trainer


def _take_steps(trainer: RewardTrainer, config: TrainingConfig, ours: dict[str, Any]) -> None:
    """All that are missing, from where an interrupted run `ours` stopped."""
    resumed = latest_checkpoint(config, ours)
    if resumed is not None and _step(resumed) >= trainer.args.max_steps:
        _restore(trainer, resumed)
        return
    if resumed is None and trainer.is_world_process_zero():
        scratch_folder(config).mkdir(parents=True, exist_ok=True)
        (scratch_folder(config) / IDENTITY).write_text(yaml.safe_dump(ours))
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)


def _restore(trainer: RewardTrainer, checkpoint: Path) -> None:
    """The weights and history of a run that has taken its last step: the Trainer would take one more."""
    weights: Any = trainer.model
    weights.load_state_dict(load_file(checkpoint / SAFE_WEIGHTS_NAME))
    trainer.state = TrainerState.load_from_json(str(checkpoint / COMPLETE))


def _keep_last(trainer: RewardTrainer, config: TrainingConfig) -> None:
    """Save what evaluation and export need, should they fail: the weights, without the optimiser."""
    if config.save_steps or _is_whole(_last(trainer, config)):  # the Trainer has saved it, or this run began there
        return
    try:
        trainer.save_model(str(_last(trainer, config)))
        if trainer.is_world_process_zero():
            trainer.state.save_to_json(str(_last(trainer, config) / COMPLETE))
    except (OSError, SafetensorError) as error:  # no room for it need not mean no room for the model
        shutil.rmtree(_last(trainer, config), ignore_errors=True)
        print(f"{_last(trainer, config)} could not be saved ({error}): going on to export", file=sys.stderr)


def _finished(trainer: RewardTrainer) -> bool:
    return trainer.state.global_step >= trainer.state.max_steps


def _last(trainer: RewardTrainer, config: TrainingConfig) -> Path:
    return scratch_folder(config) / f"checkpoint-{trainer.state.global_step}"


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


def latest_checkpoint(config: TrainingConfig, ours: Mapping[str, Any] | None = None) -> Path | None:
    """The newest whole Trainer checkpoint of this very run. `ours` is its identity, by default the settings alone.

    Raises CheckpointError, which says what differs, when there is another run's.
    """
    scratch = scratch_folder(config)
    whole = list(filter(_is_whole, scratch.glob("checkpoint-*")))
    if not whole:
        return None
    if not (scratch / IDENTITY).is_file():
        raise CheckpointError(f"{scratch} holds checkpoints without their {IDENTITY}: remove it to start anew")
    if found := differences(yaml.safe_load((scratch / IDENTITY).read_text()), ours or settings(config)):
        raise CheckpointError(
            f"{scratch} holds an interrupted run with other settings: {', '.join(found)}; "
            "give its own to go on, or remove it to start anew"
        )
    return max(whole, key=_step)


def _is_whole(checkpoint: Path) -> bool:
    return (checkpoint / COMPLETE).is_file()


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def remove_checkpoints(config: TrainingConfig) -> None:
    """Once the model is exported. Logs stay."""
    scratch = scratch_folder(config)
    for path in scratch.glob("checkpoint-*"):
        shutil.rmtree(path)
    _clean(scratch, is_first=True)


def _clean(scratch: Path, is_first: bool) -> None:
    """Leave no identity without a checkpoint, and no empty folder: the Trainer makes one whether it saves or not."""
    if is_first and not any(scratch.glob("checkpoint-*")):
        (scratch / IDENTITY).unlink(missing_ok=True)
    if scratch.is_dir() and not any(scratch.iterdir()):
        with suppress(OSError):  # another process of the run was first
            scratch.rmdir()


def allow_open_files() -> None:
    """As many as this process may have. Each tensor that a loader's worker has sent is an open file until it is used.

    torch's other way, files by name in shared memory, needs no more of them, but leaves them behind after a kill.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _prepare(branch: Branch, config: TrainingConfig) -> None:
    if config.lora_rank:
        add_adapters(branch.model, config.lora_rank, config.lora_alpha, config.lora_dropout)
    if config.gradient_checkpointing:
        backbone = branch.model.backbone
        name = "activation_checkpointing_enable"  # before transformers 5.24 it had the other name alone
        enable = getattr(backbone, name if hasattr(backbone, name) else "gradient_checkpointing_enable")
        enable({"use_reentrant": False})


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
    """The main branch's on request; a blank-image proxy's whenever its tower is frozen: it only ever sees one image."""
    kept = blank = None
    if config.vision_cache_gib and main.sees_images:
        kept = VisionCache(main.model.vision, int(config.vision_cache_gib * 2**30))
    if config.freeze_vision and proxy is not None and proxy.blank_images:
        blank = VisionCache(proxy.model.vision, BLANK_CACHE_BYTES)
    return kept, blank


def _arguments(config: TrainingConfig, scratch: Path) -> TrainingArguments:
    saving: dict[str, Any] = {"save_strategy": "no"}
    if config.save_steps:
        saving = {"save_strategy": "steps", "save_steps": config.save_steps, "save_total_limit": KEPT}
    sharding: dict[str, Any] = {"fsdp": True} if config.fsdp else {}  # FSDP2, full state dicts in checkpoints
    arguments = TrainingArguments(
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
    # One process takes one GPU of several: DataParallel would cut a packed batch apart.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
