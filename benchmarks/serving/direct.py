"""AsyncLLM called directly, in a process of its own: the engine's rate without HTTP, decoding and rendering.

    python -m benchmarks.serving.direct CHECKPOINT        reads rounds from standard input, answers on standard output

Its engine arguments are the service's, its prompts are token ids with decoded pictures, made before the clock starts.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from beholder.checkpoint import read_checkpoint
from beholder.engine.vllm_loading import engine_arguments, prepare_environment
from beholder.load_test.mix import Mix, items
from beholder.prompts import Prompt, PromptRenderer
from beholder.settings import load_settings
from benchmarks.serving.samples import prompts_of


class Direct:
    """The process. `measure` sends it a round and waits."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def measure(self, mix: Mix, round_number: int, concurrency: int) -> dict[str, Any]:
        """`samples_per_second`, and the `logits` of the round's samples in order; requests at a time: `concurrency`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([asdict(mix), round_number, concurrency]) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


@contextmanager
def direct(checkpoint: Path, log: Path) -> Iterator[Direct]:
    """A started process."""
    command = [sys.executable, "-m", "benchmarks.serving.direct", str(checkpoint)]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, text=True)
    try:
        yield Direct(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)


async def _serve_rounds(checkpoint: Path, answers: Any) -> None:
    from vllm import AsyncEngineArgs, PoolingParams
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    settings = load_settings({"checkpoint": checkpoint, "engine": "vllm"})
    loaded = read_checkpoint(checkpoint)
    arguments = engine_arguments(settings, loaded, on_cpu=current_platform.is_cpu())
    llm: Any = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
    renderer = PromptRenderer.from_folder(checkpoint)
    parameters = PoolingParams(task="classify", use_activation=False)

    async def score(prompt: Prompt) -> float:
        request = {
            "prompt_token_ids": list(prompt.token_ids),
            "multi_modal_data": {"image": [image.pixels for image in prompt.images]},
            "multi_modal_uuids": {"image": [image.sha256 for image in prompt.images]},
        }
        async for output in llm.encode(request, parameters, request_id=uuid.uuid4().hex):
            last = output
        return float(last.outputs.data.item())

    async def score_all(groups: Sequence[list[Prompt]], concurrency: int) -> list[float]:
        slots = asyncio.Semaphore(concurrency)

        async def score_group(group: list[Prompt]) -> list[float]:
            async with slots:
                return list(await asyncio.gather(*map(score, group)))

        return [logit for logits in await asyncio.gather(*map(score_group, groups)) for logit in logits]

    while line := await asyncio.to_thread(sys.stdin.readline):
        mix, round_number, concurrency = json.loads(line)
        groups = [prompts_of(renderer, item) for item in items(Mix(**mix), round_number)]
        started = time.perf_counter()
        logits = await score_all(groups, concurrency)
        rate = len(logits) / (time.perf_counter() - started)
        answers.write(json.dumps({"samples_per_second": rate, "logits": logits}) + "\n")
        answers.flush()
    llm.shutdown()


def main() -> None:
    checkpoint = Path(sys.argv[1])
    prepare_environment(load_settings({"checkpoint": checkpoint, "engine": "vllm"}))
    # vLLM prints on standard output, which belongs to the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    asyncio.run(_serve_rounds(checkpoint, answers))


if __name__ == "__main__":
    main()
