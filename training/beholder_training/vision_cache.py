"""Features of a frozen vision tower, kept across epochs within a bound of bytes.

Wraps the tower's forward: whatever tensors it returns, picture by picture along their first dimension, are kept on the
CPU and joined again. Qwen's towers end in projectors, which train: there what goes into these is kept.

A tower that pads pictures against each other or attends across them would break this; the probe at the start of
training compares the rewards. Sharded processes may differ in what they find: a tower is gathered whether it is called
or not (branches.py).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from beholder.lru import ByteBoundedCache

Tree = Any  # tensors in lists, tuples and Hugging Face's ModelOutputs

_GIVES: Final = {"merger": "pooler_output", "deepstack_merger_list": "deepstack_features"}
"""Projectors inside a tower, or lists of them, and the fields of its output that they give."""


class VisionCache:
    """Installed over `tower`, which must be in eval mode and frozen, but for projectors inside it.

    `hits` and `misses` count pictures.
    """

    def __init__(self, tower: nn.Module, max_bytes: int) -> None:
        self._kept: ByteBoundedCache[str, Tree] = ByteBoundedCache(max_bytes)
        self._tower = tower
        self._original: Callable[..., Tree] = tower.forward
        self._projectors = {field: getattr(tower, name) for name, field in _GIVES.items() if hasattr(tower, name)}
        self._expected: tuple[Sequence[str], Sequence[int]] | None = None
        self.hits = self.misses = 0
        tower.forward = self._forward

    def expect(self, keys: Sequence[str], rows: Sequence[int]) -> None:
        """What the next forward holds: a key for each picture, and its rows of pixel_values."""
        self._expected = (keys, rows) if keys else None  # without pictures the tower is not called

    def remove(self) -> None:
        """Give the tower its own forward back."""
        self._tower.__dict__.pop("forward", None)

    def _forward(self, *inputs: Any, **options: Any) -> Tree:
        expected, self._expected = self._expected, None
        if expected is None:
            return self._original(*inputs, **options)
        return self._project(self._features(*expected, inputs, options))

    def _project(self, features: Tree) -> Tree:
        """What the tower gives, of what goes into its projectors."""
        config: Any = self._tower.config
        width = config.hidden_size
        for field, projector in self._projectors.items():
            if isinstance(projector, nn.ModuleList):
                features[field] = [
                    each(kept.view(-1, width)) for each, kept in zip(projector, features[field], strict=True)
                ]
            else:
                features[field] = projector(features[field].view(-1, width))
        return features

    @torch.no_grad()
    def _features(self, keys: Sequence[str], rows: Sequence[int], inputs: Any, options: Any) -> Tree:
        """The features of all pictures, joined."""
        pixels, grid = _pixels(inputs, options), options.get("grid_thw")
        found = {key: self._kept.get(key) for key in dict.fromkeys(keys)}
        missing = [key for key, kept in found.items() if kept is None]
        self.hits, self.misses = self.hits + len(keys) - len(missing), self.misses + len(missing)
        if missing:
            found |= self._encode(missing, keys, rows, pixels, grid, inputs, options)
        return _join([found[key] for key in keys], pixels.device)

    def _encode(
        self, missing: list[str], keys: Sequence[str], rows: Sequence[int], pixels: Tensor, grid: Any, inputs: Any,
        options: Any,
    ) -> dict[str, Tree]:  # fmt: skip
        """Features of the missing pictures, in one forward of the tower."""
        chunks = torch.split(pixels, list(rows))
        places = [list(keys).index(key) for key in missing]
        kept_rows = [rows[place] for place in places]
        chosen = torch.cat([chunks[place] for place in places])
        options = options | ({"grid_thw": grid[places]} if grid is not None else {})
        with self._unprojected():
            if inputs:
                output = self._original(chosen, *inputs[1:], **options)
            else:
                output = self._original(**(options | {"pixel_values": chosen}))
        if self._projectors:  # nobody reads the other fields
            output = type(output)(**{field: output[field] for field in self._projectors})
        features = _separate(output, kept_rows)
        for key, feature in zip(missing, features, strict=True):
            self._kept.put(key, feature, _bytes(feature))
        return dict(zip(missing, features, strict=True))

    @contextmanager
    def _unprojected(self) -> Iterator[None]:
        """Inside, projectors give what goes into them, a row for each token that they would make."""
        projectors: list[Any] = [
            each
            for module in self._projectors.values()
            for each in (module if isinstance(module, nn.ModuleList) else [module])
        ]
        for projector in projectors:
            projector.forward = partial(_by_token, size=projector.hidden_size)
        try:
            yield
        finally:
            for projector in projectors:
                del projector.forward


def _by_token(patches: Tensor, size: int) -> Tensor:
    return patches.reshape(-1, size)


def _pixels(inputs: Any, options: Any) -> Tensor:
    pixels: Tensor = inputs[0] if inputs else options["pixel_values"]
    return pixels


def _separate(tree: Tree, rows: Sequence[int]) -> list[Tree]:
    """One tree a picture: every tensor's first dimension is divided as the pixel rows are."""
    return [_map(tree, partial(_share, rows=rows, number=number)) for number in range(len(rows))]


def _share(tensor: Tensor, rows: Sequence[int], number: int) -> Tensor:
    total = sum(rows)
    start, stop = (len(tensor) * sum(rows[:end]) // total for end in (number, number + 1))
    return tensor[start:stop].detach().to("cpu", copy=True)


def _join(trees: list[Tree], device: torch.device) -> Tree:
    flat = [_leaves(tree) for tree in trees]
    joined = iter([torch.cat([leaves[index].to(device) for leaves in flat]) for index in range(len(flat[0]))])
    return _map(trees[0], lambda tensor: next(joined))


def _map(tree: Tree, function: Callable[[Tensor], Tensor]) -> Tree:
    """A tree of the same containers."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):  # ModelOutput is one
        return type(tree)(**{name: _map(value, function) for name, value in tree.items()})
    if isinstance(tree, list | tuple):
        return type(tree)(_map(value, function) for value in tree)
    return tree


def _leaves(tree: Tree) -> list[Tensor]:
    """In the order in which `_map` meets them."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    _map(tree, keep)
    return found


def _bytes(tree: Tree) -> int:
    return sum(tensor.nbytes for tensor in _leaves(tree))
