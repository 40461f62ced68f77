"""The service on one card: golden samples in bf16, `/rank` of 16 against 16 calls, HTTP against the engine alone.

    python -m benchmarks.gpu.serving --engine vllm --sizes tiny 80m        the product's main path
    python -m benchmarks.gpu.serving --engine transformers --sizes 2b      about two billion random weights
    python -m benchmarks.gpu.serving --engine transformers --sizes tiny --prompts 2 --rounds 1 --output out.json

Prompts have a picture of 336 x 252 and 16 responses of 300 tokens. The service and the engine alone (for vLLM its
AsyncLLM, with nothing of ours around it) stay up and take turns; no round repeats a sample of another. Rates are
responses a second, medians over rounds.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from beholder.load_test.mix import Mix
from beholder_training.demo.serving import served
from benchmarks.gpu.card import Row, add_output, device, output_path, print_table, reset_peak, write
from benchmarks.serving.checkpoints import SIZES, make_checkpoint
from benchmarks.serving.contest import Contestants, Rates, Ratio, Scenario, ratio
from benchmarks.serving.direct import Direct, direct
from benchmarks.serving.samples import mix_for

RESPONSES = 16
SHARED_CARD = {"gpu_memory_utilization": 0.45, "kv_cache_memory_bytes": 16 * 2**30}
"""vLLM's by default would be nine tenths of the card, and two engines are up. A fixed KV cache needs no profile of
memory, which another engine that loads at the same time would disturb."""
LOG_END = 4000


def measure(
    size: str, parsed: argparse.Namespace, scratch: Path, details: dict[str, Any]
) -> tuple[Row, dict[str, Ratio]]:
    """The row of a checkpoint, and its ratios; without figures where the engine's golden samples are off."""
    checkpoint = make_checkpoint(scratch, size, device(), "bfloat16")
    gc.collect()
    reset_peak()  # leave the card's memory to the engines
    mix = replace(mix_for(checkpoint), prompts=parsed.prompts, responses=RESPONSES)
    with direct(checkpoint, scratch / f"{size}-engine.log", parsed.engine) as engine:
        row = {"checkpoint": size, **_golden(engine)}
        if row["golden_error"] > row["golden_tolerance"]:
            return row, {}
        log = scratch / f"{size}-service.log"
        with _shown_when_failed(log), served(checkpoint, log) as url:
            rates = play(Contestants(url, "", engine, parsed.concurrency), mix, parsed.rounds)
    details[size] = {name: asdict(found) for name, found in rates.items()}
    rank, score = rates["rank"], rates["score"]
    row |= {f"{name}_{RESPONSES}": statistics.median(found.service) for name, found in rates.items()}
    row |= {f"{name}_{RESPONSES}_engine": statistics.median(found.alone) for name, found in rates.items()}
    row["greatest_difference"] = max(found.greatest_difference for found in rates.values())
    return row, {
        f"{size}_rank_{RESPONSES}_vs_{RESPONSES}_calls": ratio(rank.service, score.service),
        f"{size}_rank_{RESPONSES}_vs_engine": ratio(rank.service, rank.alone),
        f"{size}_{RESPONSES}_calls_vs_engine": ratio(score.service, score.alone),
    }


def play(players: Contestants, mix: Mix, rounds: int) -> dict[str, Rates]:
    """The rates of `/rank` with all responses to a prompt, and of `/score` with one each; the first round warms up."""
    scenarios = [Scenario("rank", replace(mix, route="rank"), False), Scenario("score", mix, False)]
    found: dict[str, Rates] = {}
    for round_number in tqdm(range(rounds + 1), desc="rounds", unit="round"):
        for number, scenario in enumerate(scenarios):
            unseen = replace(scenario, mix=replace(scenario.mix, seed=2 * round_number + number))
            kept = found.setdefault(scenario.name, Rates()) if round_number else Rates()
            players.play(unseen, 0, kept)
    return found


def _golden(engine: Direct) -> Row:
    results = engine.golden()
    return {
        "golden": f"{sum(result.passed for result in results)} of {len(results)}",
        "golden_error": max(abs(result.served - result.trained) for result in results),
        "golden_tolerance": results[0].tolerance,
    }


@contextmanager
def _shown_when_failed(log: Path) -> Iterator[None]:
    """The service's errors name its log, which goes with the folder that it is in."""
    try:
        yield
    except Exception:
        if log.is_file():
            print(f"the end of {log.name}:\n{log.read_text()[-LOG_END:]}", file=sys.stderr)
        raise


def main() -> None:
    parser = _parser()
    parsed = parser.parse_args()
    output = output_path(parser, parsed, f"serving_{parsed.engine}{parsed.suffix}")
    os.environ["BEHOLDER_ENGINE"] = parsed.engine
    os.environ["BEHOLDER_ENGINE_ARGS"] = json.dumps(_engine_args(parsed))
    rows: list[Row] = []
    ratios: dict[str, Ratio] = {}
    details: dict[str, Any] = {}
    for size in parsed.sizes:
        with tempfile.TemporaryDirectory() as scratch:
            row, found = measure(size, parsed, Path(scratch), details)
        rows.append(row)
        ratios |= found
        _write(output, rows, ratios, details, parsed)
    print_table(rows)
    print_table([{"ratio": name, "median (least to greatest)": str(value)} for name, value in ratios.items()])
    print(f"wrote {output}")


def _engine_args(parsed: argparse.Namespace) -> dict[str, Any]:
    shared = SHARED_CARD if parsed.engine == "vllm" and device().type == "cuda" else {}
    return {**shared, **parsed.engine_args}


def _write(
    output: Path,
    rows: Sequence[Row],
    ratios: Mapping[str, Ratio],
    details: Mapping[str, Any],
    parsed: argparse.Namespace,
) -> None:
    medians = {name: found.median for name, found in ratios.items()}
    spread = {name: [found.least, found.greatest] for name, found in ratios.items()}
    command = f"python -m benchmarks.gpu.serving --engine {parsed.engine}"
    write(output, command, rows, parsed, ratios=medians, spread=spread, details=details)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("vllm", "transformers"), required=True)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--prompts", type=int, default=64, help="prompts a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=256, help="responses that are sent at a time")
    parser.add_argument("--engine-args", type=json.loads, default={}, help='JSON, such as {"enforce_eager": true}')
    parser.add_argument("--suffix", default="", help="of the results' name, for a run of some sizes: _2b")
    add_output(parser)
    return parser


if __name__ == "__main__":
    main()
