"""A configuration -> a checkpoint: read, check, train, evaluate on held-out records, export."""

import gc
import math
import random
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from transformers import set_seed

from beholder.checkpoint import Checkpoint
from beholder.errors import BeholderError, CheckpointError, DataError, PromptTooLong
from beholder_training.branch import Branch, device
from beholder_training.checking import Checked, Examine, PictureCheck, check_files
from beholder_training.config import TrainingConfig
from beholder_training.data import ImagePlaces, Record, fingerprint, repeat_by_weight, require_files
from beholder_training.evaluation import estimate, pair_outcomes, question_of_pair
from beholder_training.export import export, require_golden_samples
from beholder_training.overlap import overlap
from beholder_training.probe import choose_packing
from beholder_training.runs import latest_checkpoint, remove_checkpoints, scratch_folder, train


def run_training(config: TrainingConfig) -> tuple[Checkpoint, Branch]:
    """`train_and_export` in one process. The branch is returned for further evaluation."""
    if (finished := train_and_export(config)) is None:
        raise RuntimeError("run_training is for one process; under torchrun use train_and_export")
    return finished


def train_and_export(config: TrainingConfig) -> tuple[Checkpoint, Branch] | None:
    """Train as `config` says and export to config.output; None on all processes but the first.

    Raises CheckpointError before any work when the output exists or the base cannot be trained, DataError before the
    first step for data that cannot be trained on, evaluated or exported. Once the last step is taken, whatever fails
    can be mended: the same command goes on from there.
    """
    if config.output.exists():
        raise CheckpointError(f"{config.output} exists already: choose another --output or remove it")
    latest_checkpoint(config)  # refuses another run's before any work
    require_files([*config.train, *config.validation])
    set_seed(config.seed)
    main, proxy = make_branches(config)
    records, held_out = training_records(config, main, proxy), held_out_records(config, main)
    if shared := overlap(records, held_out):
        print(f"warning: {shared}", file=sys.stderr)
    chosen = calibration_records(config, main, held_out)
    choose_forward(config, main, proxy, records)
    is_first, history = fit(config, records, main, proxy)
    leave_process_group()
    if not is_first:
        return None
    free_memory(proxy)
    try:
        return evaluate_and_export(config, main, proxy, chosen, history), main
    except BaseException:
        if latest_checkpoint(config):
            print(f"trained; {scratch_folder(config)} has the last step: the same command exports it", file=sys.stderr)
        raise


def evaluate_and_export(
    config: TrainingConfig,
    main: Branch,
    proxy: Branch | None,
    held_out: Sequence[Record],
    history: list[dict[str, float]],
) -> Checkpoint:
    """The checkpoint of trained branches, within the run's limits of a forward. What the run had saved is removed."""
    main.model.to(device())
    main.batch_prompts, main.token_budget = config.batch_prompts, config.token_budget
    accuracy = estimate(pair_outcomes(held_out, main.score(held_out, label="evaluating")), question_of_pair(held_out))
    half_width = None if math.isnan(accuracy.half_width) else accuracy.half_width
    checkpoint = export(
        main,
        config.output,
        held_out,
        base_model=config.base,
        algorithm=config.algorithm,
        data_fingerprint=fingerprint(config.train),
        dtype=config.export_dtype,
        evaluation={"held_out_accuracy": accuracy.mean, "half_width_95": half_width, "pairs": accuracy.count},
        proxy=proxy if config.save_proxy else None,
        history=history,
    )
    remove_checkpoints(config)
    return checkpoint


def fit(
    config: TrainingConfig, records: Sequence[Record], main: Branch, proxy: Branch | None
) -> tuple[bool, list[dict[str, float]]]:
    """Train, with the last step kept. Whether this is the first process, and the log lines of the training steps."""
    trainer = train(config, records, main, proxy, keep_last=True)
    return trainer.is_world_process_zero(), [line for line in trainer.state.log_history if "learning_rate" in line]


def free_memory(proxy: Branch | None) -> None:
    """What is left of the trainer, the optimiser's state above all; the accelerator is now the main branch's."""
    if proxy is not None:
        proxy.model.to("cpu")
    gc.collect()  # the trainer and its callbacks refer to each other
    torch.cuda.empty_cache()


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


def training_records(config: TrainingConfig, main: Branch, proxy: Branch | None) -> list[Record]:
    """Every record that both branches can read, each file's as often as its weight says; prints what each file has.

    Raises DataError for bad records, unless they are to be skipped, when no record is usable, and when none has an
    image though images are to be seen.
    """
    records: list[Record] = []
    weights = config.train_weights or [1.0] * len(config.train)
    examine: list[Examine] = [main.encode]
    if proxy is not None:
        examine.append(partial(_encode_for_proxy, proxy))
    for number, (file, weight) in enumerate(zip(config.train, weights, strict=True)):
        checked = check(config, file, examine)
        records += repeat_by_weight(checked.records, weight, config.seed + number)
    if records and main.sees_images and not any(record.images for record in records):
        raise DataError(
            f"{', '.join(map(str, config.train))}: no record has an image; "
            "set text_only=true and algorithm=standard to train on text alone"
        )
    return _some(records, config.train)


def _encode_for_proxy(proxy: Branch, record: Record) -> None:
    try:
        proxy.encode(record)
    except BeholderError as error:
        raise error.at("for the proxy") from None


def held_out_records(config: TrainingConfig, main: Branch) -> list[Record]:
    """Records to evaluate and calibrate on, by the same rule for bad ones. Raises DataError like `training_records`."""
    checked = [check(config, file, [main.encode]) for file in config.validation]
    return _some([record for each in checked for record in each.records], config.validation)


def calibration_records(config: TrainingConfig, main: Branch, held_out: Sequence[Record]) -> list[Record]:
    """As many of the held-out records as are set, drawn by the seed, one with an image among them.

    Raises DataError when export could make no golden samples of them.
    """
    chosen = random.Random(config.seed).sample(held_out, min(config.calibration_records, len(held_out)))
    if main.sees_images and not any(record.images for record in chosen):
        chosen[-1:] = [record for record in held_out if record.images][:1] or chosen[-1:]
    try:
        require_golden_samples(main, chosen)
    except BeholderError as error:
        files = ", ".join(map(str, config.validation))
        cure = "; raise max_length" if isinstance(error, PromptTooLong) else ""
        raise DataError(f"{files}: export cannot make golden samples of these records: {error}{cure}") from None
    return chosen


def _some(records: list[Record], files: Sequence[Path]) -> list[Record]:
    if not records:
        raise DataError(f"no usable record in {', '.join(map(str, files))}: see `beholder-train check-data`")
    return records


def check(config: TrainingConfig, file: Path, more: Sequence[Examine] = ()) -> Checked:
    """Read `file` whole and print what it has; bad records end the run or are counted, as configured."""
    examine: list[Examine] = [PictureCheck(), *more] if config.check_images else []
    checked = check_files([file], ImagePlaces(config.image_root, config.image_cache), examine)
    if checked.problems and config.bad_records == "fail":
        checked.require_good()
    print(f"{file}: {checked}", file=sys.stderr)
    if checked.records and not config.text_only and not any(record.images for record in checked.records):
        print(
            f"warning: {file}: none of its {len(checked.records)} records has an image: they are read as text alone; "
            "if they have pictures, name their field image or images",
            file=sys.stderr,
        )
    return checked


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
