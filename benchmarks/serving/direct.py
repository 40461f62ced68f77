"""An engine called directly, in a process of its own: its rate without HTTP, decoding and rendering.

    python -m benchmarks.serving.direct CHECKPOINT ENGINE    reads from standard input, answers on standard output

ENGINE is vllm, which is its AsyncLLM with nothing of ours around it, or transformers, whose only engine is ours. Engine
arguments are the service's, prompts are token ids with decoded pictures, made before the clock starts.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from beholder.checkpoint import Checkpoint, read_checkpoint
from beholder.engine import EngineScore
from beholder.engine.vllm_loading import check_head, core_environment, engine_arguments, prepare_environment
from beholder.golden import GoldenResult, score_golden
from beholder.load_test.mix import Mix, items
from beholder.local import running
from beholder.prompts import Prompt, PromptRenderer
from beholder.settings import Settings, load_settings
from benchmarks.serving.samples import prompts_of


class Direct:
    """The process. Its methods ask it and wait; they raise RuntimeError, with the end of its log, when it died."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self._process = process
        self._log = log

    def measure(self, mix: Mix, round_number: int, concurrency: int) -> dict[str, Any]:
        """`samples_per_second`, `computed_tokens`, and the `logits` of the round's samples in order.

        Requests at a time: `concurrency`.
        """
        answer: dict[str, Any] = self._ask([asdict(mix), round_number, concurrency])
        return answer

    def golden(self) -> list[GoldenResult]:
        """The checkpoint's golden samples; to be asked first, while no cache knows them."""
        return [GoldenResult(**result) for result in self._ask("golden")]

    def _ask(self, question: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        if line := self._process.stdout.readline():
            return json.loads(line)
        raise RuntimeError(f"the engine ended:\n{self._log.read_text()[-4000:]}")


@contextmanager
def direct(checkpoint: Path, log: Path, engine: str = "vllm") -> Iterator[Direct]:
    """A started process."""
    command = [sys.executable, "-m", "benchmarks.serving.direct", str(checkpoint), engine]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, text=True)
    try:
        yield Direct(process, log)
    finally:
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.close()
        process.wait(60)


class _Scorer(Protocol):
    """Of `beholder.engine.Engine`."""

    async def score(self, prompt: Prompt, *, fresh: bool = False) -> EngineScore: ...


class _AsyncLLM:
    """vLLM's engine, with nothing around it; has no use for `fresh`."""

    def __init__(self, llm: Any) -> None:
        from vllm import PoolingParams

        self._llm = llm
        self._parameters = PoolingParams(task="classify", use_activation=False)

    async def score(self, prompt: Prompt, *, fresh: bool = False) -> EngineScore:
        request: dict[str, Any] = {"prompt_token_ids": list(prompt.token_ids)}
        if prompt.images:
            request["multi_modal_data"] = {"image": [image.pixels for image in prompt.images]}
            request["multi_modal_uuids"] = {"image": [image.sha256 for image in prompt.images]}
        async for output in self._llm.encode(request, self._parameters, request_id=uuid.uuid4().hex):
            last = output
        return EngineScore(float(last.outputs.data.item()), len(last.prompt_token_ids), last.num_cached_tokens)


@asynccontextmanager
async def _vllm(settings: Settings) -> AsyncIterator[_Scorer]:
    from vllm import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    on_cpu, checkpoint = current_platform.is_cpu(), read_checkpoint(settings.checkpoint)
    arguments = engine_arguments(settings, checkpoint, on_cpu=on_cpu)
    with core_environment(settings, on_cpu=on_cpu):
        llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
    await check_head(llm, checkpoint)
    yield _AsyncLLM(llm)
    llm.shutdown()


@asynccontextmanager
async def _transformers(settings: Settings) -> AsyncIterator[_Scorer]:
    async with running(settings) as (engine, _, _):
        yield engine


ENGINES = {"vllm": _vllm, "transformers": _transformers}


async def _serve_rounds(settings: Settings, answers: Any) -> None:
    checkpoint = read_checkpoint(settings.checkpoint)
    renderer = PromptRenderer.from_folder(checkpoint.folder)
    async with ENGINES[settings.chosen_engine](settings) as engine:
        while line := await asyncio.to_thread(sys.stdin.readline):
            answer = await _answer(json.loads(line), engine, renderer, checkpoint)
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


async def _answer(question: Any, engine: Any, renderer: PromptRenderer, checkpoint: Checkpoint) -> Any:
    if question == "golden":
        results = await score_golden(engine, renderer, checkpoint, checkpoint.manifest.dtype)
        return [asdict(result) for result in results]
    mix, round_number, concurrency = question
    groups = [prompts_of(renderer, item) for item in items(Mix(**mix), round_number)]
    started = time.perf_counter()
    scores = await _score_all(engine, groups, concurrency)
    return {
        "samples_per_second": len(scores) / (time.perf_counter() - started),
        "computed_tokens": sum(score.prompt_tokens - score.cached_tokens for score in scores),
        "logits": [score.logit for score in scores],
    }


async def _score_all(engine: _Scorer, groups: Sequence[list[Prompt]], concurrency: int) -> list[EngineScore]:
    """In order; `concurrency` groups at a time."""
    slots = asyncio.Semaphore(concurrency)

    async def score_group(group: list[Prompt]) -> list[EngineScore]:
        async with slots:
            return await asyncio.gather(*map(engine.score, group))

    return [score for scores in await asyncio.gather(*map(score_group, groups)) for score in scores]


def main() -> None:
    checkpoint, engine = sys.argv[1:]
    settings = load_settings({"checkpoint": checkpoint, "engine": engine})
    prepare_environment(settings)
    # vLLM prints on standard output, which belongs to the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    asyncio.run(_serve_rounds(settings, answers))


if __name__ == "__main__":
    main()
