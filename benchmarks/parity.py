"""The served score is the trained score: training's forward against every engine, for every architecture.

    python -m benchmarks.parity                        all architectures, float32 and bfloat16
    python -m benchmarks.parity --architectures llava  one

Rows: architecture and dtype. Columns: the greatest difference from training's float32 forward, over image and
text-only prompts, scored one after another and 32 at a time; and in bfloat16 how often the order of a pair and the
best of a prompt agree with float32 where the float32 margin exceeds the bf16 error that was measured at export.
"""

import argparse
import asyncio
import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch

from beholder.checkpoint import Dtype, read_checkpoint
from beholder.engine.choosing import create_engine
from beholder.images import load_image_file
from beholder.modeling.architectures import ARCHITECTURES
from beholder.prompts import Prompt, PromptRenderer, single_turn
from beholder.settings import load_settings
from beholder_training import worlds
from beholder_training.bases import make_base
from beholder_training.branch import Branch
from beholder_training.data import Record
from beholder_training.export import export
from benchmarks.stock_vllm import classify_body, stock_server

CONCURRENCY = 32
HEAD_STD = 0.5
ENGINES = ("vllm", "transformers")


@dataclass(frozen=True)
class Parity:
    """One engine against training's float32 forward. Agreements are None in float32."""

    architecture: str
    engine: str
    dtype: str
    alone: float
    concurrent: float
    pair_agreement: float | None = None
    top1_agreement: float | None = None


def make_records(folder: Path, prompts: int, responses: int, seed: int = 0) -> list[Record]:
    """Scenes with `responses` answers in mixed styles; every fourth record is text alone."""
    rng = random.Random(seed)
    records = []
    for number in range(prompts):
        scene = worlds.draw_scene(rng)
        path = folder / f"{number}.png"
        image = worlds.render(scene)
        image.resize((image.width + 8 * (number % 5), image.height + 5 * (number % 3))).save(path)
        texts = [worlds.phrase(answer, style) for answer in worlds.COLOURS for style in worlds.STYLES]
        images = () if number % 4 == 3 else (path,)
        chosen = tuple(rng.sample(texts, responses))
        records.append(
            Record(str(number), worlds.ask(rng, scene).text, images, chosen, (0.0,) * responses, str(number))
        )
    return records


def make_checkpoint(folder: Path, architecture: str, records: Sequence[Record], dtype: Dtype = "float32") -> Branch:
    """Export a tiny random model of `architecture` to `folder`; the branch is training's side of it."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        make_base(Path(scratch) / "base", architecture)
        branch = Branch.from_base(str(Path(scratch) / "base"))
    torch.nn.init.normal_(branch.model.score.weight, std=HEAD_STD)
    export(
        branch, folder, records[:16], base_model="tiny", algorithm="standard", data_fingerprint="0" * 64, dtype=dtype
    )
    return branch


async def engine_scores(
    folder: Path, engine_name: str, dtype: Dtype, records: Sequence[Record]
) -> tuple[list[float], list[float]]:
    """Scores of all responses, one after another for a part of them, and CONCURRENCY at a time."""
    checkpoint = read_checkpoint(folder)
    flags: dict[str, Any] = {"checkpoint": folder, "engine": engine_name, "dtype": dtype, "max_model_len": 2048}
    if engine_name == "vllm":
        flags["engine_args"] = {"num_gpu_blocks_override": 512}
    engine = create_engine(load_settings(flags), checkpoint)
    prompts = render(PromptRenderer.from_folder(folder), records)
    await engine.start()
    try:
        alone = [(await engine.score(prompt, fresh=True)).logit for prompt in prompts[: 4 * CONCURRENCY]]
        slots = asyncio.Semaphore(CONCURRENCY)

        async def score(prompt: Prompt) -> float:
            async with slots:
                return (await engine.score(prompt)).logit

        return alone, list(await asyncio.gather(*map(score, prompts)))
    finally:
        await engine.stop()


def stock_scores(folder: Path, dtype: Dtype, records: Sequence[Record]) -> list[float]:
    """The same through stock vLLM's /classify, with no plugin of ours."""
    scores = []
    with stock_server(folder, dtype) as url, httpx.Client(timeout=60) as client:
        for record in records:
            pictures = [path.read_bytes() for path in record.images]
            for response in record.responses:
                answer = (
                    client.post(f"{url}/classify", json=classify_body(record.prompt, pictures, response))
                    .raise_for_status()
                    .json()
                )
                scores.append(float(answer["data"][0]["probs"][0]))
    return scores


def render(renderer: PromptRenderer, records: Sequence[Record]) -> list[Prompt]:
    prompts = []
    for record in records:
        images = [load_image_file(path) for path in record.images]
        conversation = single_turn(record.prompt, len(images))
        prompts += [renderer.render(conversation, response, images) for response in record.responses]
    return prompts


def compare(
    name: tuple[str, str, Dtype], expected: Any, served: tuple[list[float], list[float]], error: float
) -> Parity:
    """`name` is architecture, engine and dtype; `served` the scores alone and concurrent, each the first of all."""
    alone, concurrent = (float(np.abs(expected.ravel()[: len(scores)] - scores).max()) for scores in served)
    if name[2] == "float32":
        return Parity(*name, alone, concurrent)
    return Parity(*name, alone, concurrent, *agreement(expected, np.asarray(served[1]).reshape(expected.shape), error))


def agreement(expected: Any, served: Any, error: float) -> tuple[float, float]:
    """Shares of pairs, and of prompts, whose order agrees, among those with a float32 margin above `error`."""
    margins = expected[:, :, None] - expected[:, None, :]
    clear = margins > error
    pairs = float(((served[:, :, None] - served[:, None, :]) > 0)[clear].mean())
    top = np.sort(expected, axis=1)
    decided = top[:, -1] - top[:, -2] > error
    best = float((expected.argmax(axis=1) == served.argmax(axis=1))[decided].mean()) if decided.any() else 1.0
    return pairs, best


def measure(
    architecture: str, dtypes: Sequence[Dtype], prompts: int, responses: int, stock_prompts: int
) -> list[Parity]:
    """All engines on one architecture. Stock vLLM is asked one request at a time, in float32."""
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        images = Path(scratch) / "images"
        images.mkdir()
        records = make_records(images, prompts, responses)
        folder = Path(scratch) / "checkpoint"
        expected = np.asarray(make_checkpoint(folder, architecture, records).score(records))
        error = read_checkpoint(folder).manifest.bf16_error or 0.0
        for dtype in dtypes:
            for engine in ENGINES:
                served = asyncio.run(engine_scores(folder, engine, dtype, records))
                results.append(compare((architecture, engine, dtype), expected, served, error))
        if stock_prompts:
            scores = stock_scores(folder, "float32", records[:stock_prompts])
            results.append(compare((architecture, "stock vLLM", "float32"), expected, (scores, scores), error))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES), choices=list(ARCHITECTURES))
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--responses", type=int, default=8)
    parser.add_argument("--stock-prompts", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/parity.json"))
    parsed = parser.parse_args()
    print(f"{'architecture':12} {'engine':13} {'dtype':9} {'alone':>10} {'32 at once':>10} {'pairs':>7} {'top-1':>7}")
    results = []
    for architecture in parsed.architectures:
        found = measure(architecture, ("float32", "bfloat16"), parsed.prompts, parsed.responses, parsed.stock_prompts)
        results += found
        for row in found:
            shares = [
                f"{share:7.1%}" if share is not None else " " * 7 for share in (row.pair_agreement, row.top1_agreement)
            ]
            print(f"{row.architecture:12} {row.engine:13} {row.dtype:9} {row.alone:10.1e} {row.concurrent:10.1e} "
                  + " ".join(shares), flush=True)  # fmt: skip
    parsed.output.parent.mkdir(parents=True, exist_ok=True)
    parsed.output.write_text(json.dumps([asdict(row) for row in results], indent=2) + "\n")


if __name__ == "__main__":
    main()
