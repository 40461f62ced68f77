"""Teach a tiny base to see, as a published base has been: reward training on cue-free data, then the head is dropped.

The result is a base folder again. Reward training from it starts where a real run starts: from a model that can look.
"""

from pathlib import Path

from transformers import set_seed

from beholder.checkpoint import atomic_folder
from beholder_training.branch import Branch
from beholder_training.config import TrainingConfig
from beholder_training.data import read_records, with_pairs
from beholder_training.runs import train


def teach_to_see(base: Path, data: Path, output: Path, steps: int, learning_rate: float = 1e-3, seed: int = 0) -> None:
    """Train `base` on `data` (cue-free preferences) and write it, without head, as the base `output`."""
    config = TrainingConfig(
        base=str(base),
        output=output,
        train=[data],
        validation=[data],
        algorithm="standard",
        steps=steps,
        learning_rate=learning_rate,
        freeze_vision=False,
        seed=seed,
    )
    set_seed(seed)  # the head that is dropped afterwards decides what is seen
    branch = Branch.from_base(config.base)
    train(config, with_pairs(read_records(config.train)), branch, None)
    with atomic_folder(output) as folder:
        branch.model.backbone.save_pretrained(folder)
        branch.encoder.save(folder)
