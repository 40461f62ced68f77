"""A configuration -> a checkpoint: read, train, evaluate on held-out records, export."""

import random

import torch
from transformers import set_seed

from beholder.checkpoint import Checkpoint
from beholder.errors import CheckpointError
from beholder_training.branch import Branch
from beholder_training.config import TrainingConfig
from beholder_training.data import fingerprint, read_records, with_pairs
from beholder_training.evaluation import estimate, pair_outcomes
from beholder_training.export import export
from beholder_training.trainer import train


def run_training(config: TrainingConfig) -> tuple[Checkpoint, Branch]:
    """Train as `config` says and export to config.output. The branch is returned for further evaluation.

    Raises CheckpointError before any work when the output exists or the base cannot be trained, DataError for
    unusable data.
    """
    if config.output.exists():
        raise CheckpointError(f"{config.output} exists already: choose another --output or remove it")
    records = with_pairs(read_records(config.train, config.image_root))
    held_out = with_pairs(read_records(config.validation, config.image_root))
    set_seed(config.seed)
    main = Branch.from_base(config.base, sees_images=not config.text_only, max_length=config.max_length)
    proxy = None
    if config.needs_proxy:
        proxy = Branch.from_base(config.proxy_base or config.base, sees_images=False, max_length=config.max_length)
    train(config, records, main, proxy)
    main.model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    chosen = random.Random(config.seed).sample(held_out, min(config.calibration_records, len(held_out)))
    accuracy = estimate(pair_outcomes(chosen, main.score(chosen, label="evaluating")))
    checkpoint = export(
        main,
        config.output,
        chosen,
        base_model=config.base,
        algorithm=config.algorithm,
        data_fingerprint=fingerprint(config.train),
        dtype=config.export_dtype,
        evaluation={"held_out_accuracy": accuracy.mean, "half_width_95": accuracy.half_width, "pairs": accuracy.count},
    )
    return checkpoint, main
