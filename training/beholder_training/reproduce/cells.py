"""Cells: one training run and its tests each, named by what it is and a hash of its whole recipe."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Literal

from beholder_training.worlds import CUE_STRENGTH

TEXT_ONLY = "text_only"  # standard training without images: how far text alone goes, and the split of SFD
RECIPE_VERSION = 1  # raise it when code changes what a cell's settings mean: finished cells then no longer count
GROCERY_CUES = ("verbose", "hedged", "plain")

Start = Literal["sees", "scratch"]
Source = Literal["world", "large", "grocery"]


@dataclass(frozen=True, slots=True)
class Base:
    """A tiny base with random weights of `seed`, taught to see for so many `steps` on `source` (0: from scratch)."""

    seed: int
    steps: int = 0
    source: Source = "world"


def without_seeing(base: Base) -> Base:
    """What it was before it was taught."""
    return replace(base, steps=0)


@dataclass(frozen=True, slots=True)
class Data:
    """What a cell is trained on.

    environment: of the built-in worlds, or a cue of the grocery photos. cue: how often it holds in training pairs.
    flipped: share of training prompts whose labels are turned round.
    """

    environment: str
    source: Source = "world"
    cue: float = CUE_STRENGTH
    flipped: float = 0.0


@dataclass(frozen=True, slots=True)
class Cell:
    """One training run. `exponent` is of the weight; for `warmup` steps, before the `steps`, the proxy trains alone."""

    data: Data
    base: Base
    algorithm: str
    seed: int
    steps: int
    learning_rate: float
    exponent: float = 1.0
    warmup: int = 0

    @property
    def start(self) -> Start:
        return "sees" if self.base.steps else "scratch"

    @property
    def name(self) -> str:
        """A file's name: readable, and another for every other recipe."""
        recipe = json.dumps({"version": RECIPE_VERSION, **asdict(self)}, sort_keys=True)
        digest = hashlib.sha256(recipe.encode()).hexdigest()[:10]
        return f"{self.data.environment}-{self.start}-{self.algorithm}-{self.seed}-{digest}"
