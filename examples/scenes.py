"""Questions about rendered scenes, without end, and whether an answer is true: what the examples train and test on."""

import random
import re
from dataclasses import dataclass
from typing import Any, Final

from PIL.Image import Image

from beholder_training import worlds

ANSWERS: Final = (*worlds.COLOURS, *worlds.COUNTS)
_WORD: Final = re.compile(r"[a-z]+")


@dataclass(frozen=True)
class Item:
    """A question about a picture; any one of `right` answers it."""

    image: Image
    question: str
    right: frozenset[str]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The prompt as a chat, with the place of the picture."""
        return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": self.question}]}]

    def is_true(self, response: str) -> bool:
        """Whether the response names exactly one answer, and a right one."""
        named = set(_WORD.findall(response.lower())) & set(ANSWERS)
        return len(named) == 1 and named <= self.right


def draw(count: int, seed: str) -> list[Item]:
    """`count` items, the same for the same seed."""
    rng = random.Random(seed)
    return [_item(rng) for _ in range(count)]


def answer(item: Item, rng: random.Random) -> str:
    """A right response in a random style."""
    return worlds.phrase(rng.choice(sorted(item.right)), rng.choice(worlds.STYLES))


def style(response: str) -> str | None:
    """The style of a response that is phrased as the world's are."""
    named = next((word for word in ANSWERS if re.search(rf"\b{word}\b", response)), "")
    return next((name for name in worlds.STYLES if worlds.phrase(named, name) == response.strip()), None)


def _item(rng: random.Random) -> Item:
    scene = worlds.draw_scene(rng)
    question = worlds.ask(rng, scene)
    any_colour = question.text == worlds.QUESTIONS[4]
    right = {thing.colour for thing in scene.things} if any_colour else {question.right}
    return Item(worlds.render(scene), question.text, frozenset(right))
