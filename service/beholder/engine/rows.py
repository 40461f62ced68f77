"""Which entries of a queue make the next batch: rows that share a prefix, of like length. Pure.

An entry is a token sequence with a key: what it may share, its images.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, Self

WINDOW: Final = 256
"""Entries that wait longest, of which a batch is made: enough to find rows of one length."""
LEAST_SHARED: Final = 1 / 8
"""The least share of its tokens that an entry must have in common with a row to join it: an image or a question, not
just the chat template.

What is shared is computed once, and its image encoded once, which pays even where responses are long.
"""


class Entry(Protocol):
    """What is queued. Entries of one key whose sequences begin alike can be computed together."""

    @property
    def key(self) -> Hashable: ...

    @property
    def sequence(self) -> list[int]: ...

    @property
    def images_end(self) -> int:
        """Tokens up to the last of its images: fewer cannot be shared, a row has its images in the prefix."""


@dataclass(slots=True)
class _Row:
    """Entries (by index) to be packed: the prefix that all of them share once, then the rest of each, at least a token.

    `shared` is the length of that prefix and `length` the whole row's, as modeling/packing.py makes it.
    """

    first: list[int]
    members: list[int]
    shared: int
    length: int

    @classmethod
    def of(cls, sequence: list[int], index: int) -> Self:
        return cls(sequence, [index], len(sequence) - 1, len(sequence))

    def shared_with(self, sequence: list[int]) -> int:
        return min(self.shared, _common(self.first, sequence), len(sequence) - 1)

    def length_with(self, sequence: list[int], shared: int) -> int:
        """A member that shares less shortens the prefix of all: each has what is lost of it to itself."""
        return self.length + (len(self.members) - 1) * (self.shared - shared) + len(sequence) - shared


def choose(entries: Sequence[Entry], max_tokens: int) -> list[list[int]]:
    """The rows (indices) of the next batch: the oldest entry's, then those that are nearest to it in length.

    Entries stand in one row where they share the key, all their images and a part of their tokens (LEAST_SHARED). The
    padded size (rows times the longest row) stays within `max_tokens`; the oldest entry is taken whatever its size.
    Only the `WINDOW` oldest entries compete, and the oldest always wins: one that is unlike all others waits for at
    most so many batches.
    """
    rows = _rows(entries[:WINDOW], max_tokens)
    if not rows:
        return []
    oldest = next(row for row in rows if 0 in row.members)
    batch, longest = [oldest], oldest.length
    for row in sorted(rows, key=lambda row: (abs(row.length - oldest.length), min(row.members))):
        padded = max(longest, row.length)
        if row is not oldest and padded * (len(batch) + 1) <= max_tokens:
            batch.append(row)
            longest = padded
    return [row.members for row in batch]


def _rows(entries: Sequence[Entry], max_tokens: int) -> list[_Row]:
    """All entries in rows of at most `max_tokens`; in lexical order those that begin alike stand beside each other.

    None joins a row that would grow by more than the entry alone.
    """
    numbers: dict[Hashable, int] = {}
    keys = [numbers.setdefault(entry.key, len(numbers)) for entry in entries]
    rows: dict[int, list[_Row]] = {key: [] for key in keys}
    for index in sorted(range(len(entries)), key=lambda index: (keys[index], entries[index].sequence)):
        sequence, of_key = entries[index].sequence, rows[keys[index]]
        if of_key:
            row = of_key[-1]
            shared = row.shared_with(sequence)
            length = row.length_with(sequence, shared)
            least = max(entries[index].images_end, LEAST_SHARED * len(sequence))
            if shared >= least and length <= min(max_tokens, row.length + len(sequence)):
                row.members.append(index)
                row.shared, row.length = shared, length
                continue
        of_key.append(_Row.of(sequence, index))
    return [row for of_key in rows.values() for row in of_key]


def _common(first: list[int], second: list[int]) -> int:
    """How many tokens both begin with; by halves, since comparing slices is quicker than comparing tokens."""
    known, limit = 0, min(len(first), len(second))
    while known < limit:
        middle = (known + limit + 1) // 2
        if first[known:middle] == second[known:middle]:
            known = middle
        else:
            limit = middle - 1
    return known
