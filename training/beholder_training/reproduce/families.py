"""Families: the cells that answer one question, and their recipe, which is the same for every weighting.

From scratch, scenes are large: on small ones no weighting finds the image within the time of a reproduction.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from beholder_training.reproduce.cells import TEXT_ONLY, Base, Cell, Data, Start
from beholder_training.worlds import ENVIRONMENTS

SEEDS = (0, 1, 2)
ALGORITHMS = ("standard", "sfc", "proxy_balanced")
CONTROLS = ("constant", "sfc_shuffled", "sfc_normalised")
CONTROLLED = "length"  # the environment of the map, and of the controls from a base that sees
CONTROLLED_ON: dict[Start, Sequence[str]] = {"sees": (CONTROLLED,), "scratch": ENVIRONMENTS}
"""From scratch a run finds the image or stays on the cue: three seeds on one environment say nothing."""
RECOMMENDED = 0.5  # the exponent that docs/method.md recommends where i.i.d. accuracy counts as well
SEEING_STEPS = 1200
STEPS: dict[Start, int] = {"sees": 400, "scratch": 500}
RATES: dict[Start, float] = {"sees": 3e-4, "scratch": 1e-3}
WARMUP = 0.1  # of the steps: the proxy alone
TEXT_STEPS = 300
NOISE = 0.1  # share of prompts with turned labels
GROCERY_SEEING_STEPS = 1200


@dataclass(frozen=True)
class Axis:
    """A setting of the map: what it is called, where training starts, and what is moved from the recipe."""

    name: str
    moves: tuple[dict[str, float], ...]
    start: Start = "sees"


MAP = (
    Axis("steps of teaching the base to see", tuple({"seeing": steps} for steps in (600, SEEING_STEPS, 2400))),
    Axis("share of pairs with the cue", tuple({"cue": cue} for cue in (0.8, 0.9, 0.95))),
    Axis("exponent of the weight", tuple({"exponent": exponent} for exponent in (0.25, 0.5, 0.75, 1.0))),
    Axis("training steps", tuple({"steps": steps} for steps in (200, 400, 800))),
    Axis("proxy warm-up steps", tuple({"warmup": steps} for steps in (0, 40, 160))),
    Axis("training steps, from scratch", tuple({"steps": steps} for steps in (250, 500, 1000)), "scratch"),
)


def cell(environment: str, algorithm: str, start: Start, seed: int, exponent: float = 1.0) -> Cell:
    """The recipe."""
    sees = start == "sees"
    data = Data(environment, "world" if sees else "large")
    base = Base(seed, SEEING_STEPS if sees else 0, data.source)
    warmup = int(WARMUP * STEPS[start]) if algorithm == "proxy_balanced" else 0
    return Cell(data, base, algorithm, seed, STEPS[start], RATES[start], exponent, warmup)


def text_only(environment: str, start: Start, seed: int) -> Cell:
    """The baseline that splits pairs for SFD."""
    whole = cell(environment, TEXT_ONLY, start, seed)
    return replace(whole, steps=TEXT_STEPS, learning_rate=1e-3)


def main_family() -> list[Cell]:
    """Three weightings on three environments from both starts, the recommended exponent, and the controls."""
    starts: tuple[Start, ...] = ("sees", "scratch")
    cells = []
    for seed in SEEDS:
        for start in starts:
            for environment in ENVIRONMENTS:
                cells += [cell(environment, algorithm, start, seed) for algorithm in ALGORITHMS]
                cells += [cell(environment, "proxy_balanced", start, seed, RECOMMENDED)]
                cells += [text_only(environment, start, seed)]
            cells += [cell(where, control, start, seed) for where in CONTROLLED_ON[start] for control in CONTROLS]
    return cells


def map_family() -> list[Cell]:
    """One environment: each setting of MAP alone is moved from the recipe. All of one setting before the next, since a
    setting is shown once it is whole."""
    moves = [(axis, move) for axis in MAP for move in axis.moves]
    cells = [at(axis, move, algorithm, seed) for axis, move in moves for seed in SEEDS for algorithm in ALGORITHMS]
    return list(dict.fromkeys(cells))


def at(axis: Axis, move: dict[str, float], algorithm: str, seed: int) -> Cell:
    """The recipe's cell with `move`; an exponent or a warm-up leaves all but proxy-balanced training as they are."""
    centre = cell(CONTROLLED, algorithm, axis.start, seed)
    seeing, cue, steps = (move.get(name) for name in ("seeing", "cue", "steps"))
    moved = replace(centre, data=replace(centre.data, cue=cue)) if cue else centre
    moved = replace(moved, base=replace(centre.base, steps=int(seeing))) if seeing else moved
    moved = replace(moved, steps=int(steps)) if steps else moved
    if algorithm != "proxy_balanced":
        return moved
    return replace(moved, exponent=move.get("exponent", 1.0), warmup=int(move.get("warmup", centre.warmup)))


def noise_family() -> list[Cell]:
    """One environment from a base that sees, with some of the training labels turned round."""
    cells = []
    for seed in SEEDS:
        those = [cell(CONTROLLED, algorithm, "sees", seed) for algorithm in ALGORITHMS]
        those += [cell(CONTROLLED, "proxy_balanced", "sees", seed, RECOMMENDED)]
        cells += [replace(each, data=replace(each.data, flipped=NOISE)) for each in those]
    return cells


def grocery_family() -> list[Cell]:
    """Real photos, from a base that was taught on the plain preferences: each cue is the other's o.o.d. test."""
    cells = []
    for seed in SEEDS:
        for environment in ("verbose", "hedged"):
            those = [cell(environment, algorithm, "sees", seed) for algorithm in ALGORITHMS]
            those += [cell(environment, "proxy_balanced", "sees", seed, RECOMMENDED)]
            base, data = Base(seed, GROCERY_SEEING_STEPS, "grocery"), Data(environment, "grocery")
            cells += [replace(each, data=data, base=base) for each in those]
    return cells


FAMILIES: dict[str, Callable[[], list[Cell]]] = {
    "main": main_family,
    "map": map_family,
    "noise": noise_family,
    "grocery": grocery_family,
}
