"""The built-in data proves what it is made for: text alone wins where the cue holds, and is worth nothing elsewhere."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from beholder_training.data import Record, read_records
from beholder_training.worlds import COLOURS, COUNTS, ENVIRONMENTS, WorldSize, make_world

ANSWERS = {*COLOURS, *COUNTS}


@pytest.fixture(scope="module")
def large_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "large"
    make_world(folder, WorldSize(seeing=10, train=3000, test=3000), progress=False)
    return folder


def words(record: Record) -> tuple[Counter[str], Counter[str]]:
    chosen, rejected = record.responses
    return Counter(f"{record.prompt[:5]}|{w}" for w in chosen.split()), Counter(
        f"{record.prompt[:5]}|{w}" for w in rejected.split()
    )


class TextOnly:
    """Bradley-Terry on bags of words beside the question, with length: as strong as text gets in this world."""

    def __init__(self, records: list[Record]) -> None:
        vocabulary = {word for record in records for bag in words(record) for word in bag}
        self.index = {word: number for number, word in enumerate(sorted(vocabulary))}
        self.weights = np.zeros(len(self.index) + 1)
        features = self.features(records)
        for _ in range(300):
            wrong = 1 / (1 + np.exp(features @ self.weights))
            self.weights += 0.5 * (wrong @ features / len(records) - 1e-4 * self.weights)

    def features(self, records: list[Record]) -> NDArray[np.float64]:
        rows = np.zeros((len(records), len(self.weights)))
        for row, record in zip(rows, records, strict=True):
            for sign, bag, text in zip((1, -1), words(record), record.responses, strict=True):
                for word, count in bag.items():
                    if word in self.index:
                        row[self.index[word]] += sign * count
                row[-1] += sign * len(text) / 50
        return rows

    def accuracy(self, records: list[Record]) -> float:
        margins = self.features(records) @ self.weights
        return float(((np.sign(margins) + 1) / 2).mean())


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_text_alone_wins_iid_and_is_chance_without_the_cue(large_world: Path, environment: str) -> None:
    folder = large_world / environment
    model = TextOnly(read_records([folder / "train_pairs.jsonl"]))
    assert model.accuracy(read_records([folder / "iid.jsonl"])) >= 0.85
    assert 0.45 <= model.accuracy(read_records([folder / "cue_free.jsonl"])) <= 0.55
    assert model.accuracy(read_records([folder / "cue_flipped.jsonl"])) <= 0.1
    for other in set(ENVIRONMENTS) - {environment}:
        assert model.accuracy(read_records([large_world / other / "iid.jsonl"])) <= 0.5


def test_wrong_answers_have_the_frequencies_of_right_ones(large_world: Path) -> None:
    right: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    for line in (large_world / "length" / "train.jsonl").read_text().splitlines():
        completions = json.loads(line)["completions"]
        for kind, response in zip(completions["model"], completions["response"], strict=True):
            (answer,) = ANSWERS & set(re.findall(r"\w+", response))
            (right if kind == "right" else wrong)[answer] += 1
    assert right.keys() == wrong.keys() == ANSWERS
    for answer, count in right.items():
        assert wrong[answer] / 3 == pytest.approx(count, abs=5 * count**0.5)


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    size = WorldSize(seeing=5, train=5, test=5)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_world(tmp_path / name, size, seed, progress=False)

    def contents(name: str) -> dict[str, bytes]:
        root = tmp_path / name
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    assert contents("a") == contents("b")
    assert contents("a").keys() == contents("c").keys()
    assert contents("a") != contents("c")
