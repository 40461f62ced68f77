"""The built-in worlds with a larger model: 20M weights, 50,000 training scenes, one environment, two seeds.

    python -m benchmarks.gpu.reproduction                                  the same command goes on where it was stopped
    python -m benchmarks.gpu.reproduction --size tiny --scenes 64 --seeing-steps 2 --output out.json

The reproduction's own cells (`make reproduce`), side by side on one card: a base that is taught to see for each seed,
then every weighting on all scenes once. o.o.d. is the mean over the cue turned round and the two other environments;
intervals are 95%, over seeds and scenes. Everything that is finished stays in --folder: worlds, bases, cells.
"""

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from beholder_training.base_architectures import BaseSize
from beholder_training.bases import TINY, make_base
from beholder_training.config import TrainingConfig
from beholder_training.reproduce.cells import Base, Cell, Data, without_seeing
from beholder_training.reproduce.families import ALGORITHMS, CONTROLLED, WARMUP
from beholder_training.reproduce.outcomes import read_all
from beholder_training.reproduce.places import Places, prepare
from beholder_training.reproduce.running import run_cells
from beholder_training.reproduce.summary import Results, Variant, difference, row
from beholder_training.seeing import teach_to_see
from beholder_training.worlds import WorldSize
from benchmarks.gpu.card import Row, add_output, output_path, print_table, write

SIZES = {
    "20m": BaseSize(hidden=384, layers=6, heads=6, vision_hidden=256, vision_layers=4, vision_heads=4),
    "tiny": TINY,
}
BATCH = TrainingConfig.batch_prompts
TESTED = 1500


def cells_of(parsed: argparse.Namespace) -> list[Cell]:
    """Every weighting on every seed, all training scenes once."""
    steps = max(parsed.scenes // BATCH, 1)
    return [
        Cell(
            Data(CONTROLLED),
            Base(seed, parsed.seeing_steps),
            algorithm,
            seed,
            steps,
            parsed.learning_rate,
            warmup=max(int(WARMUP * steps), 1) if algorithm == "proxy_balanced" else 0,
        )
        for seed in range(parsed.seeds)
        for algorithm in ALGORITHMS
    ]


def make_seeing(places: Places, base: Base, size: BaseSize, learning_rate: float) -> None:
    """The base in the reproduction's place for it, larger than the reproduction would make it."""
    blind = places.base(without_seeing(base))
    if not blind.is_dir():
        partial = blind.with_name(f".{blind.name}.{os.getpid()}")
        make_base(partial, size=size, seed=base.seed)
        partial.rename(blind)
    teach_to_see(blind, places.seeing_file(base.source), places.base(base), base.steps, learning_rate, base.seed)


def run(cells: Sequence[Cell], places: Places, parsed: argparse.Namespace) -> None:
    """What is missing, side by side."""
    bases = list(dict.fromkeys(cell.base for cell in cells))
    prepare(places, [*bases, *cells])
    missing = [base for base in bases if not places.base(base).is_dir()]
    with ProcessPoolExecutor(max(len(missing), 1), get_context("spawn")) as pool:
        made = [pool.submit(make_seeing, places, base, SIZES[parsed.size], parsed.seeing_rate) for base in missing]
        for each in made:
            each.result()
    run_cells(cells, places, parsed.workers)


def summarise(cells: Sequence[Cell], places: Places) -> tuple[list[Row], list[Row]]:
    """Accuracies of each weighting, and its differences from standard training; of what two seeds are finished of."""
    finished = read_all(places.root, cells)
    results = Results(finished)
    variants = results.variants("sees")
    minutes = {Variant.of(each.cell): each.seconds / 60 for each in finished}
    accuracies: list[Row] = []
    for variant in variants:
        found = row(results, variant, [CONTROLLED])
        names = ("iid", "cue_free", "cue_flipped", "ood")
        accuracies.append(
            {
                "weighting": variant.label,
                **{name: str(getattr(found, name)) for name in names},
                "minutes": minutes[variant],
            }
        )
    standard = [variant for variant in variants if variant.algorithm == "standard"]
    differences: list[Row] = []
    for variant in variants if standard else ():
        if variant.algorithm != "standard":
            gain = difference(results, variant, standard[0], [CONTROLLED])
            cost = difference(results, variant, standard[0], [CONTROLLED], ["iid"])
            parts = {"ood": gain.mean, "ood ±": gain.half_width, "iid": cost.mean, "iid ±": cost.half_width}
            points = {name: 100 * value for name, value in parts.items()}
            differences.append({"points, less standard": variant.label, **points})
    return accuracies, differences


def main() -> None:
    parser = _parser()
    parsed = parser.parse_args()
    output = output_path(parser, parsed, "reproduction")
    size = WorldSize(seeing=parsed.seeing_steps * BATCH, train=parsed.scenes, test=min(TESTED, parsed.scenes))
    recipe = (
        f"{parsed.size}-{size.train}-scenes-{size.seeing}-seeing-{parsed.seeing_rate:g}"  # what cells' names leave out
    )
    places, cells = Places(parsed.folder / recipe, size=size), cells_of(parsed)
    run(cells, places, parsed)
    accuracies, differences = summarise(cells, places)
    write(output, "python -m benchmarks.gpu.reproduction", accuracies, parsed, details={"differences": differences})
    print_table(accuracies)
    print_table(differences)
    print(f"wrote {output}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="20m")
    parser.add_argument("--scenes", type=int, default=50_000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--seeing-steps", type=int, default=1200)
    parser.add_argument("--seeing-rate", type=float, default=3e-4)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--workers", type=int, default=6, help="cells side by side on the card")
    parser.add_argument("--folder", type=Path, default=Path("build/gpu-reproduction"), help="kept between calls")
    add_output(parser)
    return parser


if __name__ == "__main__":
    main()
