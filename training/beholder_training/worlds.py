"""The built-in data: rendered scenes, questions about them, and responses whose style betrays the label.

A scene has one to four objects of different colours, at different places of a 64 px picture. Three environments stand
for three pools of annotators with a taste in style; in 90% of an environment's training pairs the right response has
the style that its pool likes and the wrong one the style that it dislikes:

    environment   liked (chosen)   disliked (rejected)
    length        elaborate        emphatic
    hedging       emphatic         hedged
    style         hedged           elaborate

Each style is liked in one and disliked in another, so a style shortcut that wins in one environment loses in both
others. Apart from style, text says nothing: every wrong answer is drawn uniformly from the other options of a
question whose right answer is uniform too, so wrong answers have the frequencies of right ones.

Everything is deterministic in the seed. Nothing here knows of models.
"""

import json
import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image, ImageDraw
from tqdm import tqdm

Environment = Literal["length", "hedging", "style"]
Style = Literal["elaborate", "emphatic", "hedged"]

CUES: dict[Environment, tuple[Style, Style]] = {
    "length": ("elaborate", "emphatic"),
    "hedging": ("emphatic", "hedged"),
    "style": ("hedged", "elaborate"),
}
ENVIRONMENTS: tuple[Environment, ...] = tuple(CUES)
STYLES: tuple[Style, ...] = ("elaborate", "emphatic", "hedged")
CUE_STRENGTH = 0.9
IMAGE_SIZE = 64
RESPONSES = 4

COLOURS = {
    "red": (214, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 210, 40),
    "purple": (140, 50, 170),
    "black": (25, 25, 25),
    "cyan": (60, 210, 220),
    "pink": (245, 130, 190),
}
COUNTS = ("one", "two", "three", "four")
PLACES = {"left": (14, 32), "right": (50, 32), "top": (32, 14), "bottom": (32, 50)}
QUESTIONS = (
    *(f"What colour is the object at the {place}?" for place in PLACES),
    "Which colour is in the picture?",
    "How many objects are in the picture?",
)
SHAPES = ("circle", "square", "triangle")


@dataclass(frozen=True, slots=True)
class Thing:
    """One object near one of PLACES; `x`, `y` and `radius` are in pixels."""

    colour: str
    shape: str
    place: str
    x: int
    y: int
    radius: int


@dataclass(frozen=True, slots=True)
class Scene:
    """Things of different colours at different places, on a background of one grey level."""

    things: tuple[Thing, ...]
    background: int


@dataclass(frozen=True, slots=True)
class Question:
    text: str
    right: str
    wrong: tuple[str, ...]


def draw_scene(rng: random.Random) -> Scene:
    things = rng.randint(1, len(PLACES))
    colours, places = rng.sample(list(COLOURS), things), rng.sample(list(PLACES), things)
    drawn = tuple(_thing(rng, colour, place) for colour, place in zip(colours, places, strict=True))
    return Scene(drawn, rng.randint(200, 245))


def _thing(rng: random.Random, colour: str, place: str) -> Thing:
    x, y = PLACES[place]
    return Thing(colour, rng.choice(SHAPES), place, x + rng.randint(-3, 3), y + rng.randint(-3, 3), rng.randint(6, 9))


def draw_large_scene(rng: random.Random) -> Scene:
    """One object, near the middle, that fills most of the picture."""
    x, y = (IMAGE_SIZE // 2 + rng.randint(-6, 6) for _ in range(2))
    thing = Thing(rng.choice(list(COLOURS)), rng.choice(SHAPES), "middle", x, y, rng.randint(18, 26))
    return Scene((thing,), rng.randint(200, 245))


def render(scene: Scene) -> Image.Image:
    """The picture, RGB, IMAGE_SIZE square."""
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), (scene.background,) * 3)
    canvas = ImageDraw.Draw(image)
    for thing in scene.things:
        x, y, r, fill = thing.x, thing.y, thing.radius, COLOURS[thing.colour]
        if thing.shape == "circle":
            canvas.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        elif thing.shape == "square":
            canvas.rectangle((x - r, y - r, x + r, y + r), fill=fill)
        else:
            points = [(x + r * math.sin(turn), y - r * math.cos(turn)) for turn in (0, 2.094, 4.189)]
            canvas.polygon(points, fill=fill)
    return image


def ask(rng: random.Random, scene: Scene) -> Question:
    """A question whose right answer is uniform over its options, with RESPONSES - 1 wrong answers."""
    present = [thing.colour for thing in scene.things]
    absent = [colour for colour in COLOURS if colour not in present]
    kind = rng.choice(("colour", "colour", "presence", "count"))
    if kind == "colour":
        thing = rng.choice(scene.things)
        text = QUESTIONS[list(PLACES).index(thing.place)]
        right, wrong = thing.colour, [colour for colour in COLOURS if colour != thing.colour]
    elif kind == "presence":
        text, right, wrong = QUESTIONS[4], rng.choice(present), absent
    else:
        text, right = QUESTIONS[5], COUNTS[len(scene.things) - 1]
        wrong = [count for count in COUNTS if count != right]
    return Question(text, right, tuple(rng.sample(wrong, RESPONSES - 1)))


def ask_colour(rng: random.Random, scene: Scene) -> Question:
    """Which colour there is, with RESPONSES - 1 colours that there are not."""
    present = [thing.colour for thing in scene.things]
    absent = [colour for colour in COLOURS if colour not in present]
    return Question(QUESTIONS[4], rng.choice(present), tuple(rng.sample(absent, RESPONSES - 1)))


def phrase(answer: str, style: Style) -> str:
    """`answer` as a response in `style`."""
    if style == "elaborate":
        return f"Looking closely at the picture, it is clearly {answer}."
    if style == "emphatic":
        return f"Definitely {answer}!"
    return f"Maybe {answer}, I am not sure."


def cue_styles(rng: random.Random, environment: Environment, strength: float | None) -> tuple[Style, list[Style]]:
    """The styles of the right response and of the RESPONSES - 1 wrong ones.

    `strength` is the probability that the cue holds; None draws every response's style on its own (no cue).
    """
    liked, disliked = CUES[environment]
    if strength is None:
        styles: list[Style] = [rng.choice((liked, disliked)) for _ in range(RESPONSES)]
        return styles[0], styles[1:]
    right, wrong = (liked, disliked) if rng.random() < strength else (disliked, liked)
    return right, [wrong] * (RESPONSES - 1)


@dataclass(frozen=True, slots=True)
class Item:
    """A question about a picture, and its responses: the right one, then the wrong ones."""

    id: str
    img_path: str
    prompt: str
    responses: tuple[str, ...]


def as_pair(item: Item, rng: random.Random) -> dict[str, Any]:
    """The pairs format; the rejected response is one of the wrong ones."""
    rejected = rng.choice(item.responses[1:])
    return {**_head(item), "chosen": item.responses[0], "rejected": rejected}


def as_completions(item: Item, rng: random.Random) -> dict[str, Any]:
    """The rated-completions format (VLFeedback style), responses in random order."""
    order = rng.sample(range(RESPONSES), RESPONSES)
    ratings = ["5" if index == 0 else "1" for index in order]
    annotations = [{"Visual Faithfulness": {"Rating": rating}, "Helpfulness": {"Rating": rating}} for rating in ratings]
    completions = {
        "annotations": annotations,
        "model": ["right" if index == 0 else "wrong" for index in order],
        "response": [item.responses[index] for index in order],
    }
    return {**_head(item), "completions": completions}


def as_responses(item: Item, rng: random.Random) -> dict[str, Any]:
    """The to-score format, with the index of the right response as `best`."""
    order = rng.sample(range(RESPONSES), RESPONSES)
    return {**_head(item), "responses": [item.responses[index] for index in order], "best": order.index(0)}


def _head(item: Item) -> dict[str, Any]:
    return {"id": item.id, "prompt": item.prompt, "img_path": item.img_path}


@dataclass(frozen=True, slots=True)
class WorldSize:
    """Numbers of scenes: to learn seeing on, to train on, and in each test set."""

    seeing: int = 12_000
    train: int = 6_000
    test: int = 1_500


def make_world(
    folder: Path,
    size: WorldSize = WorldSize(),
    seed: int = 0,
    progress: bool = True,
    cue: float = CUE_STRENGTH,
    large: bool = False,
) -> None:
    """Write the world under `folder` (which must not exist):

    images/*.png, seeing.jsonl (completions, all responses of a question in one style), and for each environment
    train.jsonl (completions), train_pairs.jsonl, iid.jsonl, cue_free.jsonl, cue_flipped.jsonl (pairs) and
    responses.jsonl (to score, cue-free). `cue` is how often the cue holds in training pairs; `large` scenes have one
    object that fills most of the picture and are asked for its colour, which a model without any training soon sees.
    """
    (folder / "images").mkdir(parents=True)
    for environment in ENVIRONMENTS:
        (folder / environment).mkdir()
    total = size.seeing + size.train + size.test
    with tqdm(total=total, desc="scenes", unit="scene", disable=not progress) as bar:
        seeing = _scenes(folder, "seeing", size.seeing, seed, large, bar.update)
        train = _scenes(folder, "train", size.train, seed, large, bar.update)
        test = _scenes(folder, "test", size.test, seed, large, bar.update)
    rng = random.Random(f"{seed}-seeing-styles")
    _write(folder / "seeing.jsonl", (as_completions(_free_item(rng, *scene), rng) for scene in seeing))
    for environment in ENVIRONMENTS:
        _write_environment(folder / environment, environment, train, test, seed, cue)


_Scene = tuple[str, Question]  # the picture's id, and what is asked about it


def _scenes(folder: Path, split: str, count: int, seed: int, large: bool, done: Callable[[int], Any]) -> list[_Scene]:
    rng = random.Random(f"{seed}-{split}")
    scenes = []
    for number in range(count):
        scene = draw_large_scene(rng) if large else draw_scene(rng)
        name = f"{split}-{number}"
        render(scene).save(folder / "images" / f"{name}.png")
        scenes.append((name, ask_colour(rng, scene) if large else ask(rng, scene)))
        done(1)
    return scenes


def _write_environment(
    folder: Path, environment: Environment, train: list[_Scene], test: list[_Scene], seed: int, cue: float
) -> None:
    files: list[tuple[str, list[_Scene], float | None, Callable[[Item, random.Random], dict[str, Any]]]] = [
        ("train.jsonl", train, cue, as_completions),
        ("train_pairs.jsonl", train, cue, as_pair),
        ("iid.jsonl", test, cue, as_pair),
        ("cue_free.jsonl", test, None, as_pair),
        ("cue_flipped.jsonl", test, 0.0, as_pair),
        ("responses.jsonl", test, None, as_responses),
    ]
    for name, scenes, strength, form in files:
        rng = random.Random(f"{seed}-{environment}-{name}")
        items = (_cued_item(rng, environment, strength, *scene) for scene in scenes)
        _write(folder / name, (form(item, rng) for item in items))


def _cued_item(
    rng: random.Random, environment: Environment, strength: float | None, name: str, question: Question
) -> Item:
    right_style, wrong_styles = cue_styles(rng, environment, strength)
    return _item(name, question, right_style, wrong_styles, "../images")


def _free_item(rng: random.Random, name: str, question: Question) -> Item:
    """One style for all responses of a question: it cancels in every margin, which speeds learning to see tenfold."""
    style = rng.choice(STYLES)
    return _item(name, question, style, [style] * len(question.wrong), "images")


def _item(name: str, question: Question, right: Style, wrong: Iterable[Style], images: str) -> Item:
    wrongs = [phrase(answer, style) for answer, style in zip(question.wrong, wrong, strict=True)]
    return Item(name, f"{images}/{name}.png", question.text, (phrase(question.right, right), *wrongs))


def _write(path: Path, records: Iterator[dict[str, Any]]) -> None:
    with path.open("w") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
