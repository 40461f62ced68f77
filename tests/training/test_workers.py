"""Processes that read data for a run: what they keep and how many files they open."""

import resource
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from beholder.modeling.inputs import EncodedGroup
from beholder_training.batching import Collator, Indexed, Item
from beholder_training.branch import Branch
from beholder_training.data import Record, read_records, with_pairs
from tests.training.runs import config, losses


@pytest.fixture
def records(world: Path) -> list[Record]:
    return with_pairs(read_records([world / "length" / "train_pairs.jsonl"]))


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class Watched(Collator):
    """Says too how many files its process has open."""

    def count(self, step: Sequence[tuple[int, Record]]) -> tuple[int, list[Item]]:
        return open_files(), self(step)["items"]


def test_a_worker_holds_no_descriptor_of_what_it_has_sent(tiny_base: Path, records: list[Record]) -> None:
    """The check at the start has encoded every record before the worker is forked."""
    main = Branch.from_base(str(tiny_base))
    for record in records:
        main.encode(record)
    loader = DataLoader(Indexed(records), batch_size=4, collate_fn=Watched(main, None).count, num_workers=1)
    counts = [count for count, _ in loader]
    assert len(counts) == 16
    assert max(counts) - counts[0] < 3 * 4 * 4  # two tensors a picture, of the few steps that are under way


@pytest.fixture
def few_files() -> Iterator[int]:
    """The usual soft limit is little above what is open. Gives the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files() + 40, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_run_with_workers_may_open_what_its_pictures_need(
    few_files: int, tiny_base: Path, tmp_path: Path, records: list[Record]
) -> None:
    run = config(tiny_base, tmp_path / "out", algorithm="standard", workers=1, batch_prompts=32, steps=2)
    with_workers = losses(run, records)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == few_files
    alone = losses(config(tiny_base, tmp_path / "alone", algorithm="standard", batch_prompts=32, steps=2), records)
    assert with_workers == alone


def test_the_bytes_of_an_encoded_group_are_those_that_python_takes(tiny_base: Path, records: list[Record]) -> None:
    (group,) = Branch.from_base(str(tiny_base)).encode(replace(records[0], prompt="What is it? " * 500))
    lists = group.packed.token_ids, group.packed.segments, group.packed.offsets
    numbers = {id(number): number for each in lists for number in each if number > 256}  # the others are Python's own
    held = sum(map(sys.getsizeof, lists)) + sum(map(sys.getsizeof, numbers.values()))
    assert held <= EncodedGroup(group.packed, []).bytes <= 2 * held
