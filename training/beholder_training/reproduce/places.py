"""Where a reproduction keeps its worlds, bases and cells, and the files that a cell trains and is tested on."""

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from beholder.checkpoint import atomic_folder
from beholder.errors import DataError
from beholder_training.reproduce.cells import GROCERY_CUES, Base, Cell, Data, Source
from beholder_training.reproduce.outcomes import write_text
from beholder_training.worlds import CUE_STRENGTH, ENVIRONMENTS, WorldSize, make_world

FULL = WorldSize()
OWN_TESTS = ("iid", "cue_free", "cue_flipped")


@dataclass(frozen=True)
class Places:
    """`root` is the reproduction's folder; `photos` the grocery data, where they are to be had; `size` of a world."""

    root: Path
    photos: Path | None = None
    size: WorldSize = FULL

    def base(self, base: Base) -> Path:
        return self.root / "bases" / f"{base.source}-seed-{base.seed}-steps-{base.steps}"

    def seeing_file(self, source: Source) -> Path:
        """Preferences without a cue."""
        return self.grocery("plain_train") if source == "grocery" else self.world(source) / "seeing.jsonl"

    def train_file(self, data: Data) -> Path:
        if data.source == "grocery":
            return self.grocery(f"{data.environment}_train")
        here = self.world(data.source, data.cue) / data.environment
        return here / (f"train-{data.flipped:g}-flipped.jsonl" if data.flipped else "train.jsonl")

    def tests(self, data: Data) -> dict[str, Path]:
        """Test sets by name: the training distribution ("iid"), the other environments, what was done to the cue."""
        if data.source == "grocery":
            names = {name: "iid" if name == data.environment else name for name in GROCERY_CUES}
            return {test: self.grocery(f"{name}_test") for name, test in names.items()}
        here = self.world(data.source, data.cue) / data.environment
        others = {name: self.world(data.source) / name / "iid.jsonl" for name in ENVIRONMENTS}
        del others[data.environment]  # type: ignore[arg-type]
        return {name: here / f"{name}.jsonl" for name in OWN_TESTS} | others

    def world(self, source: Source, cue: float = CUE_STRENGTH) -> Path:
        return self.root / "worlds" / f"{source}-cue-{cue:g}"

    def grocery(self, name: str) -> Path:
        """Raises DataError where there are no photos."""
        if self.photos is None or not (file := self.photos / f"{name}.jsonl").is_file():
            raise DataError(f"{self.photos or 'no folder'} has no {name}.jsonl: give the photos' folder with --photos")
        return file


def prepare(places: Places, tasks: Iterable[Base | Cell]) -> None:
    """Make the worlds and training files that are missing. Raises DataError."""
    worlds, flipped = set(), set()
    for task in tasks:
        if isinstance(task, Base):
            worlds |= {(task.source, CUE_STRENGTH)} if task.steps else set()
        else:
            worlds |= {(task.data.source, task.data.cue), (task.data.source, CUE_STRENGTH)}
            flipped |= {task.data} if task.data.flipped else set()
    for source, cue in sorted(worlds):
        if source != "grocery" and not (folder := places.world(source, cue)).is_dir():
            with atomic_folder(folder) as scratch:
                make_world(scratch, places.size, cue=cue, large=source == "large")
    for data in flipped:
        if not (file := places.train_file(data)).is_file():
            write_flipped(file.with_name("train.jsonl"), file, data.flipped)


def write_flipped(source: Path, target: Path, share: float, seed: int = 0) -> None:
    """Rated completions, with every rating r turned into 6 - r in a random `share` of prompts: all their pairs flip."""
    rng, lines = random.Random(seed), []
    for line in source.read_bytes().splitlines():  # a text would also be cut at U+2028, inside a record
        record = json.loads(line)
        if rng.random() < share:
            for annotation in record["completions"]["annotations"]:
                for aspect in annotation.values():
                    aspect["Rating"] = str(6 - int(aspect["Rating"]))
        lines.append(json.dumps(record) + "\n")
    write_text(target, "".join(lines))
