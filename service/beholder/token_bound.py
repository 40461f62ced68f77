"""How few tokens a text can have, known without encoding it: a text that cannot fit need not be encoded.

The bound holds where every character counts in some token: tokenizers that spell what they do not know in bytes, and
whose steps before that drop nothing. All that Beholder trains are such; of others nothing is said.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

_COMPOSED: Final = 4
"""Characters that Unicode composes to one, at most (UAX 15, the largest expansion of a decomposition)."""
_KEEP_LENGTH: Final = {"NFD", "NFKD", "Lowercase", "Prepend", "ByteLevel"}
_COMPOSE: Final = {"NFC", "NFKC"}
_SPLIT: Final = {"ByteLevel", "Digits", "Metaspace", "Split"}


@dataclass(frozen=True, slots=True)
class TokenBound:
    """`longest`: characters of the longest token. `composes`: several characters may become one before they count."""

    longest: int
    composes: bool

    def least_tokens(self, texts: Iterable[str]) -> int:
        """A lower bound on the number of tokens of these texts together."""
        characters = sum(len(text) // (_COMPOSED if self.composes and not text.isascii() else 1) for text in texts)
        return -(-characters // self.longest)

    def most_characters(self, tokens: int) -> int:
        """Texts of more characters have more than `tokens` tokens."""
        return tokens * self.longest * (_COMPOSED if self.composes else 1)


def token_bound(description: dict[str, Any]) -> TokenBound | None:
    """The bound of a tokenizer.json as encoded here, its special tokens as plain text; None where there is none."""
    normalizers = _steps(description.get("normalizer"), "normalizers")
    splitters = _steps(description.get("pre_tokenizer"), "pretokenizers")
    added = [token for token in description["added_tokens"] if not token["special"]]
    if (
        not all(_keeps_length(step) or step["type"] in _COMPOSE for step in normalizers)
        or sum(step["type"] in _COMPOSE for step in normalizers) > 1
        or not all(step["type"] in _SPLIT and step.get("behavior") != "Removed" for step in splitters)
        or any(token["lstrip"] or token["rstrip"] for token in added)  # those take any number of spaces with them
        or not _spells_bytes(description["model"], [*normalizers, *splitters])
    ):
        return None
    tokens = [*description["model"]["vocab"], *(token["content"] for token in added)]
    return TokenBound(max(map(len, tokens)), any(step["type"] in _COMPOSE for step in normalizers))


def _steps(step: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    """A sequence's steps; one step, or none."""
    if step is None:
        return []
    if step["type"] == "Sequence":
        return [each for item in step[inner] for each in _steps(item, inner)]
    return [step]


def _keeps_length(step: dict[str, Any]) -> bool:
    if step["type"] == "Replace":
        pattern = step["pattern"].get("String")
        return pattern is not None and len(pattern) <= len(step["content"])
    return step["type"] in _KEEP_LENGTH


def _spells_bytes(model: dict[str, Any], steps: list[dict[str, Any]]) -> bool:
    """Whether characters that the vocabulary lacks are encoded, each alone."""
    from tokenizers.pre_tokenizers import ByteLevel

    if model["type"] != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return False
    vocabulary: set[str] = set(model["vocab"])
    if any(step["type"] == "ByteLevel" for step in steps):
        return vocabulary.issuperset(ByteLevel.alphabet())
    return bool(model.get("byte_fallback")) and vocabulary.issuperset(f"<0x{byte:02X}>" for byte in range(256))
