"""What is reused of a prompt that vLLM has rendered, and where nothing may be."""

from typing import Any

import pytest

from beholder.images import LoadedImage, load_image
from beholder.prompts import Prompt
from tests.pictures import png

pytest.importorskip("vllm")

from vllm.multimodal.cache.lru import LruKeyReplicatedSenderCache
from vllm.multimodal.inputs import PlaceholderRange

from beholder.engine.expanded_prefixes import ExpandedPrefixes

IMAGE_TOKEN = 9


class Sent(LruKeyReplicatedSenderCache):
    """vLLM's list of sent images, with these hashes."""

    def __init__(self, *hashes: str) -> None:
        self._cache: Any = dict.fromkeys(hashes)


@pytest.fixture
def image() -> LoadedImage:
    return load_image(png(4, 4))


def rendered(*token_ids: int, length: int = 3) -> dict[str, Any]:
    placeholder = PlaceholderRange(offset=1, length=length)
    return {
        "prompt_token_ids": list(token_ids),
        "mm_hashes": {"image": ["hash"]},
        "mm_placeholders": {"image": [placeholder]},
    }


def expanded(sent: object, image: LoadedImage, learned: dict[str, Any], *token_ids: int) -> list[int] | None:
    """The tokens of another prompt after `learned` was kept of the prompt 1, image, 2, 3; None where it is unknown."""
    prefixes = ExpandedPrefixes(IMAGE_TOKEN, sent)
    first, second = Prompt((1, IMAGE_TOKEN, 2, 3), (image,)), Prompt(token_ids, (image,))
    key, other = prefixes.key(first), prefixes.key(second)
    if key is None or other is None:
        return None
    prefixes.keep(key, first, learned)
    found = prefixes.expand(other, second)
    return None if found is None else list(found["prompt_token_ids"])


def test_what_is_behind_the_image_is_the_prompts_own(image: LoadedImage) -> None:
    learned = rendered(1, 9, 9, 9, 2, 3)
    assert expanded(Sent("hash"), image, learned, 1, IMAGE_TOKEN, 2, 7, 8) == [1, 9, 9, 9, 2, 7, 8]
    assert expanded(Sent("hash"), image, learned, 1, IMAGE_TOKEN, 2) == [1, 9, 9, 9, 2]


@pytest.mark.parametrize(
    "token_ids", [(0, IMAGE_TOKEN, 2, 3), (1, IMAGE_TOKEN, 4, 3), (1, 1, IMAGE_TOKEN, 2, 3)], ids=str
)
def test_another_prefix_is_unknown(image: LoadedImage, token_ids: tuple[int, ...]) -> None:
    """So is one with another token right behind the image."""
    assert expanded(Sent("hash"), image, rendered(1, 9, 9, 9, 2, 3), *token_ids) is None


@pytest.mark.parametrize(
    "learned",
    [rendered(1, 9, 9, 9, 5, 3), rendered(1, 9, 9, 9, 2, 3, 3), rendered(1, 9, 9, 9, 2, 3, length=4)],
    ids=["another token", "one more", "a placeholder that reaches further"],
)
def test_nothing_is_kept_where_vllm_changed_what_is_behind(image: LoadedImage, learned: dict[str, Any]) -> None:
    assert expanded(Sent("hash"), image, learned, 1, IMAGE_TOKEN, 2, 3) is None


def test_an_image_that_is_not_sent_is_processed(image: LoadedImage) -> None:
    assert expanded(Sent(), image, rendered(1, 9, 9, 9, 2, 3), 1, IMAGE_TOKEN, 2, 3) is None


@pytest.mark.parametrize("sent", [None, object()])
def test_without_vllms_list_nothing_is_reused(image: LoadedImage, sent: object) -> None:
    assert ExpandedPrefixes(IMAGE_TOKEN, sent).key(Prompt((1, IMAGE_TOKEN, 2), (image,))) is None
    assert ExpandedPrefixes(IMAGE_TOKEN, Sent()).key(Prompt((1, 2), ())) is None
