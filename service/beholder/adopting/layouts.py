"""How the backbone of a folder is laid out: which of our weights each stored one becomes, its config, its processor.

Names of the result are those of the Hugging Face base model (`AutoModel`); modeling/architectures.py has the names of
the checkpoint.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from beholder.adopting.source import Source
from beholder.error_lines import first_line
from beholder.errors import CheckpointError
from beholder.modeling.architectures import architecture_of


def whole(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True, slots=True)
class Move:
    """One stored weight, or the part of it that `take` cuts out, becomes the backbone's weight `target`."""

    target: str
    take: Callable[[Tensor], Tensor] = whole


class Layout(Protocol):
    """One way to store a backbone."""

    def read_config(self, source: Source) -> Any:
        """The Hugging Face config of the native model. Raises CheckpointError."""

    def moves(self, name: str, expected: Mapping[str, Tensor]) -> list[Move]:
        """What the stored weight `name` becomes; empty where it has no place among the `expected` weights."""

    def read_processor(self, source: Source, config: Any) -> Any:
        """The processor, or the tokenizer of a text-only model. Raises CheckpointError."""


class HuggingFace:
    """A folder that transformers knows by its model type; keys as transformers or vLLM, now or earlier, name them."""

    def read_config(self, source: Source) -> Any:
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(source.folder, trust_remote_code=False, local_files_only=True)
        except Exception as error:
            # A config of the folder's own class, or a damaged one: transformers raises what it likes.
            raise CheckpointError(f"{source.folder / 'config.json'}: {first_line(error)}") from None
        architecture_of(config)
        return config

    def moves(self, name: str, expected: Mapping[str, Tensor]) -> list[Move]:
        return [Move(candidate) for candidate in _spellings(name) if candidate in expected][:1]

    def read_processor(self, source: Source, config: Any) -> Any:
        from transformers import AutoProcessor, AutoTokenizer

        loader: Any = AutoProcessor if architecture_of(config).reads_images else AutoTokenizer
        try:
            return loader.from_pretrained(source.folder, trust_remote_code=False, local_files_only=True)
        except Exception as error:
            # Missing or damaged files, or classes of the folder's own.
            raise CheckpointError(
                f"{source.folder} has no tokenizer and processor that transformers loads: {first_line(error)}; "
                "copy them from the base model"
            ) from None


def _spellings(name: str) -> Iterator[str]:
    """What the backbone may call the weight `name`, likeliest first."""
    bare = name
    for wrapper in ("module.", "pretrained_model."):  # DataParallel's and TRL's
        bare = bare.removeprefix(wrapper)
    for stem in (bare.removeprefix("model."), bare):
        for old, new in (
            ("", ""),
            ("language_model.model.", "language_model."),  # vLLM, and transformers before 4.52
            ("vision_tower.vision_model.", "vision_tower."),
            ("model.", "language_model."),  # Qwen-VL before 4.52
        ):
            if stem.startswith(old):
                yield new + stem.removeprefix(old)
    yield "language_model." + bare.removeprefix("model.")
