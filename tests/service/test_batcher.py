"""Batches: what shares a row, what fits, and who bears an error."""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

import pytest

from beholder.engine.batcher import Batcher
from beholder.engine.rows import WINDOW, _rows, choose
from beholder.errors import EngineError, EngineUnavailable
from beholder.modeling.packing import PREFIX, pack

pytestmark = pytest.mark.anyio


@dataclass
class Entry:
    key: str
    sequence: list[int] = field(default_factory=lambda: [1, 2, 3, 4])
    images_end: int = 0


def test_entries_of_one_key_and_prefix_share_a_row() -> None:
    entries = [Entry("a"), Entry("b"), Entry("a", [1, 2, 3, 5]), Entry("a", [9, 9, 9])]
    assert choose(entries, 1000) == [[0, 2], [1], [3]]


def test_the_padded_size_stays_within_the_budget() -> None:
    entries = [Entry(str(number)) for number in range(5)]
    assert choose(entries, 12) == [[0], [1], [2]]
    entries[1].sequence = [0] * 6  # a longer row would pad all others
    assert choose(entries, 12) == [[0], [2], [3]]


def test_rows_of_like_length_are_batched() -> None:
    lengths = [50, 10, 45, 200, 52, 11, 60]
    entries = [Entry(str(number), [number] * length) for number, length in enumerate(lengths)]
    assert choose(entries, 60 * 4) == [[0], [4], [2], [6]]


def test_long_responses_share_a_row_for_a_picture_and_not_for_a_template() -> None:
    entries = [Entry("a", [1] * shared + [number] * 300) for shared in (60, 20) for number in (2, 3)]
    assert choose(entries, 5000) == [[0, 1], [2], [3]]


def test_a_row_has_its_images_in_the_prefix() -> None:
    entries = [
        Entry(key, [1, 1, 1, question, 7, 7, 9], images_end)
        for key, images_end in (("before the question", 3), ("behind it", 6))
        for question in (2, 3)
    ]
    assert choose(entries, 1000) == [[0, 1], [2], [3]]


def test_a_row_is_closed_when_it_is_as_long_as_a_batch() -> None:
    entries = [Entry("a", [1, 2, 3, 4, 5, number]) for number in range(9)]
    assert choose(entries, 8) == [[0, 1, 2]]


def grown(random: Random, most: int) -> list[Entry]:
    """Entries whose sequences branch off each other at any depth, as turns, questions and responses do; a few keys, of
    which some have an image early in the sequence."""
    entries: list[Entry] = []
    for _ in range(random.randint(2, most)):
        key = random.choice(["text", "a", "b"])
        kin = [entry.sequence for entry in entries if entry.key == key]
        stem = random.choice(kin)[: random.randint(8, 200)] if kin and random.random() < 0.9 else [1] * 8
        own = [random.randint(2, 4) for _ in range(random.randint(0, 120))]
        entries.append(Entry(key, stem + own, 0 if key == "text" else 6))
    return entries


def test_a_row_is_as_long_as_what_is_packed_and_within_the_budget() -> None:
    random, shared_rows = Random(0), 0
    for _ in range(300):
        entries, budget = grown(random, 40), random.randint(50, 1500)
        for row in _rows(entries, budget):
            members = [entries[index] for index in row.members]
            packed = pack([member.sequence for member in members])
            assert row.length == len(packed.token_ids)
            if len(members) > 1:
                shared_rows += 1
                assert row.length <= min(budget, sum(len(member.sequence) for member in members))
                assert packed.segments.count(PREFIX) >= max(member.images_end for member in members)
    assert shared_rows > 1000


def test_one_that_shares_less_does_not_shorten_the_prefix_of_many() -> None:
    """All share a template of 200 tokens; 16 responses one question more, and one response another."""
    template, question = [1] * 200, [2] * 800
    entries = [Entry("a", template + question + [3, number]) for number in range(16)]
    entries.append(Entry("a", template + [4] * 800 + [5]))
    assert choose(entries, 4096) == [[*range(16)], [16]]


def test_a_row_does_not_end_in_its_images() -> None:
    """Each response keeps its last token to itself, so the prefix would not have the whole image."""
    assert choose([Entry("a", [1, 2, 2, 2], images_end=4) for _ in range(2)], 1000) == [[0], [1]]


def test_one_that_fits_in_no_batch_of_others_is_not_overtaken_for_ever() -> None:
    names = (str(number) for number in range(10**6))
    waiting = [*(Entry(next(names)) for _ in range(100)), Entry("odd", [0] * 7)]
    for _ in range(WINDOW):
        waiting += [Entry(next(names)) for _ in range(16)]  # as many as a batch takes, so that the queue never empties
        taken = {index for row in choose(waiting, 4 * 16) for index in row}
        if "odd" in {waiting[index].key for index in taken}:
            return
        waiting = [entry for index, entry in enumerate(waiting) if index not in taken]
    raise AssertionError(f"it waited for more than {WINDOW} batches")


def test_the_oldest_is_taken_whatever_its_size() -> None:
    assert choose([Entry("a", [0] * 100)], 10) == [[0]]
    assert choose([], 10) == []


def test_sharing_entries_go_before_older_ones() -> None:
    entries = [Entry("a"), Entry("b"), Entry("a", [1, 2, 3, 5])]
    assert choose(entries, 6) == [[0, 2]]


class Recorder:
    """Scores an entry by its sequence's sum, and remembers the batches."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.fail_on: str | None = None
        self.refused: str | None = None
        self.short = False

    def __call__(self, rows: list[list[Entry]]) -> list[int | Exception]:
        entries = [entry for row in rows for entry in row]
        self.batches.append([entry.key for entry in entries])
        if self.fail_on in self.batches[-1]:
            raise ValueError(f"cannot score {self.fail_on}")
        results = [self._score(entry) for entry in entries]
        return results[: -1 if self.short else None]

    def _score(self, entry: Entry) -> int | Exception:
        return ValueError() if entry.key == self.refused else sum(entry.sequence)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def batcher(recorder: Recorder) -> Iterator[Batcher[Entry, int]]:  # type: ignore[misc]
    batcher: Batcher[Entry, int] = Batcher(recorder, max_tokens=8)
    batcher.start()
    yield batcher
    await batcher.stop()


async def test_everyone_gets_their_own_result(batcher: Batcher[Entry, int]) -> None:
    entries = [Entry(str(number), [number] * 3) for number in range(20)]
    results = await asyncio.gather(*map(batcher.submit, entries))
    assert results == [3 * number for number in range(20)]


async def test_an_exception_fails_its_batch_alone(batcher: Batcher[Entry, int], recorder: Recorder) -> None:
    recorder.fail_on = "bad"
    entries = [Entry("bad"), Entry("a"), Entry("b"), Entry("c")]
    results = await asyncio.gather(*map(batcher.submit, entries), return_exceptions=True)
    assert [isinstance(result, RuntimeError) for result in results] == [True, True, False, False]
    first, second = results[:2]
    assert isinstance(first, RuntimeError)
    assert isinstance(second, RuntimeError)
    assert first is not second, "what one raises collects frames that are no others'"
    assert isinstance(first.__cause__, ValueError)
    assert first.__cause__ is second.__cause__
    assert await batcher.submit(Entry("later")) == 10


async def test_an_exception_for_one_entry_is_its_own(batcher: Batcher[Entry, int], recorder: Recorder) -> None:
    recorder.refused = "bad"
    results = await asyncio.gather(*map(batcher.submit, [Entry("bad"), Entry("a")]), return_exceptions=True)
    assert recorder.batches == [["bad", "a"]]
    assert isinstance(results[0], ValueError)
    assert results[1] == 10


async def test_a_wrong_number_of_results_is_an_error(batcher: Batcher[Entry, int], recorder: Recorder) -> None:
    recorder.short = True
    with pytest.raises(EngineError, match="0 results for a batch of 1"):
        await batcher.submit(Entry("a"))


async def test_who_has_gone_is_not_computed(batcher: Batcher[Entry, int], recorder: Recorder) -> None:
    tasks = [asyncio.create_task(batcher.submit(Entry(key))) for key in ("a", "gone", "b")]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert "gone" not in [key for batch in recorder.batches for key in batch]


async def test_a_stopped_batcher_answers_everyone(recorder: Recorder) -> None:
    batcher: Batcher[Entry, int] = Batcher(recorder, max_tokens=8, patience_s=60)
    batcher.start()
    waiting = asyncio.create_task(batcher.submit(Entry("a")))
    await asyncio.sleep(0.01)
    await batcher.stop()
    with pytest.raises(EngineUnavailable):
        await waiting
    with pytest.raises(EngineUnavailable):
        await batcher.submit(Entry("b"))


async def test_a_batch_waits_for_no_other_work_in_threads(batcher: Batcher[Entry, int]) -> None:
    """As many images are decoded as the event loop's own threads bear, and more wait for these."""
    decoded = threading.Event()
    decoding = [asyncio.ensure_future(asyncio.to_thread(decoded.wait, 30)) for _ in range(100)]
    try:
        await asyncio.sleep(0)
        assert await asyncio.wait_for(batcher.submit(Entry("a")), 5) == 10
    finally:
        decoded.set()
        await asyncio.gather(*decoding)


async def test_its_thread_ends_with_it(recorder: Recorder) -> None:
    before = set(threading.enumerate())
    batcher: Batcher[Entry, int] = Batcher(recorder, max_tokens=8)
    batcher.start()
    await batcher.submit(Entry("a"))
    (thread,) = set(threading.enumerate()) - before
    await batcher.stop()
    thread.join(5)
    assert not thread.is_alive()
