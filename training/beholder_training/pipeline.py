"""A configuration -> a checkpoint: read, check, train, evaluate on held-out records, export."""

import random
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import set_seed

from beholder.checkpoint import Checkpoint
from beholder.errors import CheckpointError, DataError
from beholder_training.branch import Branch
from beholder_training.checking import Checked, Examine, PictureCheck, check_files
from beholder_training.config import TrainingConfig
from beholder_training.data import ImagePlaces, Record, fingerprint, repeat_by_weight
from beholder_training.evaluation import estimate, pair_outcomes, record_of_pair
from beholder_training.export import export
from beholder_training.overlap import overlap
from beholder_training.probe import choose_packing
from beholder_training.runs import latest_checkpoint, remove_checkpoints, train


def run_training(config: TrainingConfig) -> tuple[Checkpoint, Branch]:
    """`train_and_export` in one process. The branch is returned for further evaluation."""
    if (finished := train_and_export(config)) is None:
        raise RuntimeError("run_training is for one process; under torchrun use train_and_export")
    return finished


def train_and_export(config: TrainingConfig) -> tuple[Checkpoint, Branch] | None:
    """Train as `config` says and export to config.output; None on all processes but the first.

    Raises CheckpointError before any work when the output exists or the base cannot be trained, DataError for
    unusable data.
    """
    if config.output.exists():
        raise CheckpointError(f"{config.output} exists already: choose another --output or remove it")
    latest_checkpoint(config)  # refuses another run's before any work
    set_seed(config.seed)
    main, proxy = make_branches(config)
    records, held_out = training_records(config, main), held_out_records(config)
    if shared := overlap(records, held_out):
        print(f"warning: {shared}", file=sys.stderr)
    choose_forward(config, main, proxy, records)
    trainer = train(config, records, main, proxy)
    is_first = trainer.is_world_process_zero()
    leave_process_group()
    if not is_first:
        return None
    main.model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    chosen = random.Random(config.seed).sample(held_out, min(config.calibration_records, len(held_out)))
    accuracy = estimate(pair_outcomes(chosen, main.score(chosen, label="evaluating")), record_of_pair(chosen))
    checkpoint = export(
        main,
        config.output,
        chosen,
        base_model=config.base,
        algorithm=config.algorithm,
        data_fingerprint=fingerprint(config.train),
        dtype=config.export_dtype,
        evaluation={"held_out_accuracy": accuracy.mean, "half_width_95": accuracy.half_width, "pairs": accuracy.count},
        proxy=proxy if config.save_proxy else None,
        history=[line for line in trainer.state.log_history if "learning_rate" in line],
    )
    remove_checkpoints(config)
    return checkpoint, main


def leave_process_group() -> None:
    """Leave together: a process that exits with its group open may abort, and torchrun would end the first's export."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def make_branches(config: TrainingConfig) -> tuple[Branch, Branch | None]:
    """The main branch and, where the weighting needs one, the proxy, on their bases."""
    main = Branch.from_base(config.base, sees_images=not config.text_only, max_length=config.max_length)
    main.encoder.set_image_options(config.image_options)
    if not config.needs_proxy:
        return main, None
    blank = config.proxy_input == "blank_image"
    proxy = Branch.from_base(config.proxy_base or config.base, sees_images=blank, max_length=config.max_length)
    proxy.blank_images = blank
    proxy.encoder.set_image_options({} if config.proxy_base else config.image_options)
    return main, proxy


def training_records(config: TrainingConfig, main: Branch) -> list[Record]:
    """Every usable record, each file's as often as its weight says; prints what was left out.

    Raises DataError for bad records, unless they are to be skipped, and when no record is usable.
    """
    records: list[Record] = []
    weights = config.train_weights or [1.0] * len(config.train)
    for number, (file, weight) in enumerate(zip(config.train, weights, strict=True)):
        checked = check(config, [file], [main.encode])
        records += repeat_by_weight(checked.records, weight, config.seed + number)
    if not records:
        raise DataError(f"no usable record in {', '.join(map(str, config.train))}: see `beholder-train check-data`")
    return records


def check(config: TrainingConfig, files: Sequence[Path], more: Sequence[Examine] = ()) -> Checked:
    """Read `files` whole; bad records end the run or are counted, as configured."""
    examine: list[Examine] = [PictureCheck(), *more] if config.check_images else []
    checked = check_files(files, ImagePlaces(config.image_root, config.image_cache), examine)
    if checked.problems:
        if config.bad_records == "fail":
            checked.require_good()
        print(f"{', '.join(map(str, files))}: {checked}", file=sys.stderr)
    return checked


def held_out_records(config: TrainingConfig) -> list[Record]:
    """Records to evaluate and calibrate on, by the same rule for bad ones."""
    checked = check(config, config.validation)
    if not checked.records:
        raise DataError(
            f"no usable record in {', '.join(map(str, config.validation))}: see `beholder-train check-data`"
        )
    return checked.records


def choose_forward(config: TrainingConfig, main: Branch, proxy: Branch | None, records: Sequence[Record]) -> None:
    """Pack where it is set and gives the rewards of separate sequences; say so where it does not."""
    for name, branch in (("model", main), ("proxy", proxy)):
        if branch is None:
            continue
        branch.packed = config.packed
        if config.packed and not (probe := choose_packing(branch, records)).equal:
            print(
                f"the {name}'s packed rewards differ from separate ones by {probe.error:.2g} (their spread is "
                f"{probe.spread:.2g}): its layers mix tokens other than by attention; using padded batches",
                file=sys.stderr,
            )
