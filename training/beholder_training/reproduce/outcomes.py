"""Finished cells: one JSON file each, written whole or not at all.

Outcomes are kept as text, a digit a pair in the test set's order: 0 wrong, 1 a tie, 2 right.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from beholder_training.evaluation.statistics import Values
from beholder_training.reproduce.cells import Cell


@dataclass(frozen=True)
class Finished:
    """A cell, the outcomes of its tests by name (0, 0.5 or 1 a pair), what training logged, and how long it took."""

    cell: Cell
    outcomes: Mapping[str, Values]
    history: Sequence[Mapping[str, float]]
    seconds: float


def result_path(root: Path, cell: Cell) -> Path:
    return root / "cells" / f"{cell.name}.json"


def write_finished(root: Path, finished: Finished) -> None:
    """The cell's file; a kill at any time leaves none, or the whole."""
    content = {
        "cell": asdict(finished.cell),
        "seconds": round(finished.seconds, 1),
        "accuracy": {name: round(float(values.mean()), 4) for name, values in finished.outcomes.items()},
        "outcomes": {name: "".join(str(int(2 * value)) for value in each) for name, each in finished.outcomes.items()},
        "history": list(finished.history),
    }
    write_text(result_path(root, finished.cell), json.dumps(content, indent=1) + "\n")


def write_text(path: Path, content: str) -> None:
    """Write, flush to the disk, then rename into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_finished(root: Path, cell: Cell) -> Finished | None:
    """None where the cell has not been run."""
    path = result_path(root, cell)
    if not path.is_file():
        return None
    content = json.loads(path.read_text())
    outcomes = {name: _values(digits) for name, digits in content["outcomes"].items()}
    return Finished(cell, outcomes, content["history"], content["seconds"])


def read_all(root: Path, cells: Iterable[Cell]) -> list[Finished]:
    """Those of `cells` that have been run."""
    return [finished for cell in cells if (finished := read_finished(root, cell)) is not None]


def _values(digits: str) -> Values:
    return (np.frombuffer(digits.encode(), dtype=np.uint8) - ord("0")).astype(np.float64) / 2
