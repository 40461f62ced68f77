"""Prompts whose images vLLM's core has already: the part up to the last image is expanded once, not for every response.

vLLM looks each image of each prompt up, copies it and puts its tokens in place in Python, under the interpreter's lock,
also where the core has the image: 0.7 ms of the 4 that a sample of a tiny model takes in all.
"""

from dataclasses import dataclass
from typing import Any, Final

from beholder.lru import ByteBoundedCache
from beholder.prompts import Prompt

MAX_BYTES: Final = 32 * 2**20
TOKEN_BYTES: Final = 36
"""What a Python integer and the reference to it take."""
ENTRY_BYTES: Final = 2000
BESIDE: Final = 1
"""Tokens behind the last placeholder that must agree too: a processor may look for more than the placeholder."""

Key = tuple[tuple[str, ...], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class _Expanded:
    """`token_ids` end with the last image's; `hashes` and `placeholders` are vLLM's, one an image."""

    token_ids: tuple[int, ...]
    hashes: tuple[str, ...]
    placeholders: tuple[Any, ...]


class ExpandedPrefixes:
    """`sent` is vLLM's list of the images that its core has; nothing is kept where vLLM has none.

    It is only read: another thread writes it. So an image that is used through here alone counts as unused there, and
    is sent again after a while; one that the core forgot earlier is sent again when the core misses it.
    """

    def __init__(self, image_token_id: int | None, sent: Any) -> None:
        from vllm.multimodal.cache.lru import LruKeyReplicatedSenderCache

        self._image_token_id = image_token_id
        self._sent: Any = sent if isinstance(sent, LruKeyReplicatedSenderCache) else None
        self._entries: ByteBoundedCache[Key, _Expanded] = ByteBoundedCache(MAX_BYTES)

    def key(self, prompt: Prompt) -> Key | None:
        """What prompts have in common that share a prefix with images; None of a prompt that has nothing to share."""
        if self._sent is None or not prompt.images:
            return None
        return tuple(image.sha256 for image in prompt.images), prompt.token_ids[: self._end(prompt) + BESIDE]

    def expand(self, key: Key, prompt: Prompt) -> Any | None:
        """The prompt as vLLM's renderer gives it; None where the prefix is unknown or an image must be sent again."""
        entry = self._entries.get(key)
        if entry is None or not all(map(self._sent.is_cached_item, entry.hashes)):
            return None
        from vllm.inputs.engine import mm_input
        from vllm.multimodal.inputs import MultiModalKwargsItems

        return mm_input(
            prompt_token_ids=[*entry.token_ids, *prompt.token_ids[self._end(prompt) :]],
            mm_kwargs=MultiModalKwargsItems({"image": [None] * len(entry.hashes)}),
            mm_hashes={"image": list(entry.hashes)},
            mm_placeholders={"image": list(entry.placeholders)},
        )

    def keep(self, key: Key, prompt: Prompt, rendered: Any) -> None:
        """Learn from what vLLM's renderer gave, unless it changed anything behind the images."""
        rest = list(prompt.token_ids[self._end(prompt) :])
        token_ids, placeholders = rendered["prompt_token_ids"], rendered["mm_placeholders"]["image"]
        length = len(token_ids) - len(rest)
        if token_ids[length:] != rest or any(each.offset + each.length > length for each in placeholders):
            return
        entry = _Expanded(tuple(token_ids[:length]), tuple(rendered["mm_hashes"]["image"]), tuple(placeholders))
        self._entries.put(key, entry, ENTRY_BYTES + TOKEN_BYTES * (length + len(key[1])))

    def _end(self, prompt: Prompt) -> int:
        """Behind the last placeholder."""
        return len(prompt.token_ids) - prompt.token_ids[::-1].index(self._image_token_id)
