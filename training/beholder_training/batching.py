"""The prompts of one optimiser step -> forwards that fit a budget of tokens.

An item is a prompt with all its responses and pairs, encoded for both branches; a micro-batch is what one forward
takes. How a step is split into micro-batches and processes changes memory and speed, never the loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from beholder.errors import BeholderError
from beholder.modeling.inputs import EncodedGroup
from beholder_training.branch import Branch, padded_tokens
from beholder_training.data import Record

PAIRS_A_PROMPT = 2**20  # more than any prompt has: pair ids are prompt * this + pair


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt of the step. `index` is the record's position in the data; `proxy` is empty without a proxy.

    keys: one for each picture of `main`, in order, for caches.
    """

    index: int
    name: str
    pairs: tuple[tuple[int, int], ...]
    gaps: tuple[float, ...]
    responses: int
    main: list[EncodedGroup]
    proxy: list[EncodedGroup]
    keys: list[str]

    @property
    def sees_pictures(self) -> bool:
        """Whether either branch does."""
        return any(group.pictures for group in (*self.main, *self.proxy))

    @property
    def length(self) -> int:
        """Tokens of the main branch's longest row."""
        return max(len(group.packed.token_ids) for group in self.main)


class Collator:
    """(index, record) pairs of a step -> {"items": [Item]}. Runs in the loader's workers: it decodes and tokenises."""

    def __init__(self, main: Branch, proxy: Branch | None) -> None:
        self.main, self.proxy = main, proxy

    def __call__(self, step: Sequence[tuple[int, Record]]) -> dict[str, list[Item]]:
        return {"items": [self.item(index, record) for index, record in step]}

    def item(self, index: int, record: Record) -> Item:
        """Raises a BeholderError that names the record when it cannot be encoded."""
        try:
            main, proxy = self.main.encode(record), self.proxy.encode(record) if self.proxy else []
        except BeholderError as error:
            raise error.at(record.where) from None
        pairs = record.pairs()
        keys = [str(path) for path in record.images] if self.main.sees_images else []
        return Item(
            index,
            f"{record.id} ({record.where})",
            tuple(pairs),
            tuple(record.qualities[chosen] - record.qualities[rejected] for chosen, rejected in pairs),
            len(record.responses),
            main,
            proxy,
            keys * len(main),
        )


class Indexed(torch.utils.data.Dataset[tuple[int, Record]]):
    """Records with their positions, which name pairs whatever the order of the data."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[int, Record]:
        return index, self._records[index]


def split(items: Sequence[Item], prompts: int, token_budget: int = 0) -> list[list[Item]]:
    """`items` in parts of at most `prompts` items and `token_budget` tokens with padding (0: no limit) of each branch.

    One part keeps their order. In several, those of like length stand together, so that little is padded, and the
    longest come first, so that memory that does not suffice shows at once. An item above the budget is a part of its
    own: nothing is cut off.
    """

    def fits(part: Sequence[Item]) -> bool:
        return len(part) <= prompts and (not token_budget or _tokens(part) <= token_budget)

    if fits(items):
        return [list(items)]
    parts: list[list[Item]] = []
    for item in sorted(items, key=lambda item: item.length, reverse=True):
        if parts and fits([*parts[-1], item]):
            parts[-1].append(item)
        else:
            parts.append([item])
    return parts


def spread(parts: list[list[Item]], count: int) -> list[list[Item]]:
    """The same items in exactly `count` parts, at least as many as given, for processes that must forward alike.

    Where there are fewer items than parts, the last is forwarded again without its pairs.
    """
    parts = list(parts)
    while len(parts) < count:
        widest = max(range(len(parts)), key=lambda index: len(parts[index]))
        part = parts[widest]
        if len(part) == 1:
            parts.append([without_pairs(part[0])])
        else:
            parts[widest : widest + 1] = [part[: len(part) // 2], part[len(part) // 2 :]]
    return parts


def without_pairs(item: Item) -> Item:
    """It is forwarded and adds nothing to the loss."""
    return replace(item, pairs=(), gaps=())


def _tokens(items: Sequence[Item]) -> int:
    """The padded tokens of the branch that has more: a proxy's blank images, or its base, may take more than the
    pictures."""
    branches = [item.main for item in items], [item.proxy for item in items]
    return max(padded_tokens([group for groups in branch for group in groups]) for branch in branches)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward of both branches.

    main, proxy: batches as `RewardModel.forward` takes them. pairs: (pairs, 2) indices of chosen and rejected among the
    responses; gaps: (pairs,) rating differences; ids: (pairs,) one number for each pair of the data; owners: the item
    of each pair.
    """

    items: list[Item]
    main: dict[str, Any]
    proxy: dict[str, Any] | None
    pairs: torch.Tensor
    gaps: torch.Tensor
    ids: torch.Tensor
    owners: list[int]

    @property
    def main_pictures(self) -> tuple[list[str], list[int]]:
        """A key for each picture of `main`, and its rows of pixel_values, in order."""
        return [key for item in self.items for key in item.keys], _pixel_rows([item.main for item in self.items])

    @property
    def proxy_pictures(self) -> tuple[list[str], list[int]]:
        """The same for a proxy whose pictures are all the one blank image."""
        rows = _pixel_rows([item.proxy for item in self.items])
        return ["blank"] * len(rows), rows

    def names(self, wrong: torch.Tensor) -> str:
        """The records whose pairs are marked in `wrong` (pairs,), or all of them when none is."""
        marked = {self.owners[index] for index in wrong.nonzero().flatten().tolist()} or range(len(self.items))
        return ", ".join(self.items[index].name for index in sorted(marked))


def micro_batch(items: list[Item], main: Branch, proxy: Branch | None) -> MicroBatch:
    """The tensors of one forward, on the CPU."""
    pairs, first = [], 0
    for item in items:
        pairs += [(first + chosen, first + rejected) for chosen, rejected in item.pairs]
        first += item.responses
    groups = [group for item in items for group in item.proxy]
    ids = [item.index * PAIRS_A_PROMPT + pair for item in items for pair in range(len(item.pairs))]
    return MicroBatch(
        items,
        main.collate_groups([group for item in items for group in item.main]),
        proxy.collate_groups(groups) if proxy else None,
        torch.tensor(pairs, dtype=torch.long).reshape(-1, 2),
        torch.tensor([gap for item in items for gap in item.gaps], dtype=torch.float32),
        torch.tensor(ids, dtype=torch.long),
        [number for number, item in enumerate(items) for _ in item.pairs],
    )


def _pixel_rows(prompts: Sequence[Sequence[EncodedGroup]]) -> list[int]:
    groups = (group for groups in prompts for group in groups)
    return [len(picture.tensors["pixel_values"]) for group in groups for picture in group.pictures]
