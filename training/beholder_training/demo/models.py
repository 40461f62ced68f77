"""The demo's world, its base that sees, and the three reward models with their accuracies."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from beholder_training.bases import make_base
from beholder_training.config import TrainingConfig
from beholder_training.data import Record, read_records, with_pairs
from beholder_training.evaluation import pair_outcomes, question_of_pair
from beholder_training.evaluation.statistics import Groups
from beholder_training.pipeline import run_training
from beholder_training.seeing import teach_to_see
from beholder_training.worlds import ENVIRONMENTS, Environment, WorldSize, make_world

TRAINED_ON: Environment = "length"
ALGORITHMS = ("standard", "sfc", "proxy_balanced")
RECIPE = {"world_seed": 0, "seeing_steps": 2000, "seeing_learning_rate": 1e-3}
STEPS = 400
LEARNING_RATE = 3e-4

Outcomes = NDArray[np.float64]  # one value a test pair: 1 right, 0 wrong


@dataclass(frozen=True)
class TestSets:
    """Records by what they test: the training distribution, no cue, and other distributions.

    ood: the training environment with its cue turned round, and the two other environments, all on the same scenes.
    """

    iid: list[Record]
    cue_free: list[Record]
    ood: list[Record]

    def scenes(self) -> dict[str, Groups]:
        """The number of every pair's scene, by test set."""
        return {each.name: question_of_pair(getattr(self, each.name)) for each in fields(self)}

    @classmethod
    def read(cls, world: Path) -> "TestSets":
        here = world / TRAINED_ON
        others = [world / name / "iid.jsonl" for name in ENVIRONMENTS if name != TRAINED_ON]
        return cls(
            iid=with_pairs(read_records([here / "iid.jsonl"])),
            cue_free=with_pairs(read_records([here / "cue_free.jsonl"])),
            ood=with_pairs(read_records([here / "cue_flipped.jsonl", *others])),
        )


def prepare(folder: Path) -> tuple[Path, Path]:
    """The world and the base that sees, under `folder`; both are kept for the next run of the same recipe."""
    world, base, marker = folder / "world", folder / "base", folder / "recipe.json"
    recipe = json.dumps(RECIPE, sort_keys=True)
    if not (marker.is_file() and marker.read_text() == recipe):
        shutil.rmtree(folder, ignore_errors=True)
        make_world(world, WorldSize(), int(RECIPE["world_seed"]))
        make_base(folder / "blind-base")
        steps, rate = int(RECIPE["seeing_steps"]), RECIPE["seeing_learning_rate"]
        teach_to_see(folder / "blind-base", world / "seeing.jsonl", base, steps, rate)
        marker.write_text(recipe)
    return world, base


def train_and_evaluate(world: Path, base: Path, output: Path, algorithm: str, tests: TestSets) -> dict[str, Outcomes]:
    """Train one model into `output` and test it: outcomes by test set."""
    shutil.rmtree(output, ignore_errors=True)
    here = world / TRAINED_ON
    config = TrainingConfig(
        base=str(base),
        output=output,
        train=[here / "train.jsonl"],
        validation=[here / "responses.jsonl"],
        algorithm=algorithm,
        steps=STEPS,
        learning_rate=LEARNING_RATE,
        proxy_learning_rate=1e-3,
        freeze_vision=False,
        calibration_records=300,
    )
    _, branch = run_training(config)
    sets: dict[str, Sequence[Record]] = {"iid": tests.iid, "cue_free": tests.cue_free, "ood": tests.ood}
    return {
        name: pair_outcomes(records, branch.score(records, batch_prompts=64, label=f"testing {algorithm} {name}"))
        for name, records in sets.items()
    }
