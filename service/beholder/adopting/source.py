"""The folder to adopt, as data. Nothing in it is executed: no remote code, and pickles are read as tensors alone."""

import json
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from beholder.error_lines import first_line
from beholder.errors import CheckpointError

Weights = Mapping[str, Tensor]
HEAD_FILES = ("value_head.safetensors", "value_head.bin")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_PATTERNS = ("*.safetensors", "pytorch_model*.bin")
_ADAPTER = "adapter_config.json"
_FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class Source:
    """config.json and the weight files. `head_file` holds the head where it is apart from the model.

    Raises CheckpointError for a folder without config or weights, with an unmerged adapter, or quantized.
    """

    def __init__(self, folder: Path, head_file: Path | None = None) -> None:
        self.folder = folder
        self.config = _read_config(folder)
        self.explicit_head = head_file is not None
        self.head_file = head_file or next((folder / name for name in HEAD_FILES if (folder / name).is_file()), None)
        if self.config.get("quantization_config"):
            raise CheckpointError(f"{folder} is quantized: adopt the full-precision model, vLLM can quantize it")
        self.files = self._find_files()

    def _find_files(self) -> list[Path]:
        names = _indexed_files(self.folder) or _globbed_files(self.folder)
        apart = {self.head_file.name} if self.head_file else set()
        files = [self.folder / name for name in sorted(names) if name not in apart]
        if not files:
            adapter = (self.folder / _ADAPTER).is_file()
            remedy = "merge its adapter into the base model first" if adapter else "nothing to adopt"
            raise CheckpointError(f"{self.folder} has no model weights (*.safetensors, pytorch_model*.bin): {remedy}")
        return files


def read_weights(file: Path, names: Collection[str] | None = None) -> Weights:
    """The tensors of a file, or those of `names`. Raises CheckpointError for a damaged file or more than tensors."""
    try:
        if file.suffix != ".safetensors":
            return {name: tensor for name, tensor in _unpickle(file).items() if names is None or name in names}
        with safe_open(file, framework="pt") as weights:
            return {name: weights.get_tensor(name) for name in (weights.keys() if names is None else names)}
    except CheckpointError:
        raise
    except Exception as error:
        raise _unreadable(file, error) from None


def read_shapes(file: Path) -> dict[str, Tensor]:
    """All tensors of a file, on the meta device: shapes and types. Raises CheckpointError as `read_weights`."""
    if file.suffix != ".safetensors":
        return {name: torch.empty_like(tensor, device="meta") for name, tensor in _unpickle(file).items()}
    try:
        with safe_open(file, framework="pt") as weights:
            slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118 (not a mapping)
            return {
                name: torch.empty(part.get_shape(), dtype=_FLOATS.get(part.get_dtype(), torch.uint8), device="meta")
                for name, part in slices.items()
            }
    except Exception as error:
        raise _unreadable(file, error) from None


def _unpickle(file: Path) -> Weights:
    try:
        state: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:
        raise _unreadable(file, error) from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{file} holds more than tensors by name: save the state dict as safetensors")
    return state


def _unreadable(file: Path, error: Exception) -> CheckpointError:
    """Both formats raise many types on a damaged or hostile file."""
    return CheckpointError(f"{file}: {first_line(error)}: not readable as plain tensors, use safetensors")


def listed(names: Iterable[str], limit: int = 5) -> str:
    """The first few names, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - limit} more" if len(ordered) > limit else ""
    return ", ".join(ordered[:limit]) + more


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder: download the model first, then give its folder")
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {first_line(error)}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder / 'config.json'} is not a map")
    return config


def _indexed_files(folder: Path) -> set[str]:
    """The files that the index names; each a plain name inside the folder."""
    for index in _INDEXES:
        if not (folder / index).is_file():
            continue
        try:
            names = set(json.loads((folder / index).read_text())["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError):
            raise CheckpointError(f"{folder / index} is not an index of weights") from None
        for name in names:
            if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
                raise CheckpointError(f"{folder / index} names {name!r}, which is not a file of the folder")
        return names
    return set()


def _globbed_files(folder: Path) -> set[str]:
    for pattern in _PATTERNS:
        found = {path.name for path in folder.glob(pattern)} - set(HEAD_FILES)
        if found := {name for name in found if not name.startswith("adapter_")}:
            return found
    return set()
