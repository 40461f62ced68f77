"""Load a checkpoint into vLLM: environment, arguments, and the image backend that training used.

PIL and torchvision resize differently, which moves the reward, so the checkpoint pins one and the loaded engine is
checked for it.
"""

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from beholder.checkpoint import Checkpoint
from beholder.engine import Activity
from beholder.engine.vllm_worker import WorkerExtension
from beholder.errors import ConfigurationError
from beholder.front_watch import FRONT, this_process
from beholder.prompts import read_image_token_id

if TYPE_CHECKING:
    from beholder.settings import Settings

SMALL_MACHINE_CORES: Final = 4
ONE_PROCESS: Final = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
"""Computes in the scheduler's own process. Of the two that vLLM takes on a CPU each spins while it waits for the other,
and a small machine has no core for that. By its path: vLLM takes "uni" for "mp" there."""
PARALLEL: Final = {"tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"}
BINDING: Final = "VLLM_CPU_OMP_THREADS_BIND"
WAITING: Final = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000"}
"""Threads that wait for each other sleep, since rendering and HTTP need the same processors; with torch's own OpenMP
(GNU) after a spin of some 20 microseconds, which bridges the gap between two layers of a model that keeps them busy."""
CPU_DEFAULTS: Final[dict[str, Any]] = {
    "enforce_eager": True,
    "block_size": 32,  # a multiple of 32; vLLM's default of 128 wastes short prompts
    "kv_cache_memory_bytes": 2 * 2**30,  # otherwise nine tenths of the machine's memory
}
IMAGE_CACHE_GB: Final = 1.0
"""GiB of processed images in the core, where vLLM would keep four for each model. The responses to a prompt find their
images here; those of one conversation that are larger together are processed again for each response."""
LEAST_STEP_TOKENS: Final = 2048
"""vLLM's own for a server on a CPU."""
STEP_BYTES: Final = 16 * 2**20
"""Bytes of a layer's widest activations in a step: about what the caches hold. A step has a cost of its own, which only
narrow models notice: with half a million weights, steps of 8,192 tokens scored a third more a second than of 2,048;
with 80M weights, a seventh less."""


EXACT_FLOAT32: Final = {"TRITON_F32_DEFAULT": "ieee", "NVIDIA_TF32_OVERRIDE": "0"}
"""On CUDA neither vLLM's Triton kernels (its attention in float32) nor cuDNN round float32 to TF32's ten bits, which
would move a reward by more than golden samples allow. No other dtype is concerned."""
HEADS: Final = ["score", "*.score"]
"""The reward head's names in vLLM, which has it in the language model of some: what is not quantized."""


def prepare_environment(settings: "Settings") -> None:
    """What vLLM, its processes and transformers read when imported; a variable that is set already stays."""
    defaults = {
        **EXACT_FLOAT32,
        # On CUDA vLLM would fork this process, whose threads may hold locks and whose connections the child would keep.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "INFO" if settings.log_level == "debug" else "WARNING",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def load(settings: "Settings", checkpoint: Checkpoint, activity: Activity, on_step: Callable[[], None]) -> Any:
    """The loaded AsyncLLM, which keeps `activity` up to date and calls `on_step`; blocks while it loads."""
    from vllm import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    on_cpu = current_platform.is_cpu()
    arguments = engine_arguments(settings, checkpoint, on_cpu=on_cpu)
    loggers: list[Any] = [partial(_StepLog, activity, on_step)]
    with core_environment(settings, on_cpu=on_cpu):
        llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments), stat_loggers=loggers)
    try:
        _check_image_backend(llm, checkpoint)
    except BaseException:
        llm.shutdown()
        raise
    return llm


@contextmanager
def core_environment(settings: "Settings", *, on_cpu: bool) -> Iterator[None]:
    """What a core that starts in this block inherits: whom to end with and, on the CPU, to compute on all processors.

    Not this process, where vLLM would process pictures on as many threads.
    """
    added = {FRONT: this_process()} | (_core_variables() if on_cpu and computes_in_one_process(settings) else {})
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _core_variables() -> dict[str, str]:
    """Those that nobody has set; how threads wait is left alone where either variable says it."""
    threads = {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    waiting = {} if WAITING.keys() & os.environ.keys() else WAITING
    return {name: value for name, value in (threads | waiting).items() if name not in os.environ}


class _StepLog:
    """What vLLM calls after each step of its scheduler (vllm.v1.metrics.loggers.StatLoggerBase, without its import)."""

    def __init__(
        self, activity: Activity, on_step: Callable[[], None], vllm_config: Any, engine_index: int = 0
    ) -> None:
        self._activity = activity
        self._on_step = on_step

    def record(self, scheduler_stats: Any, iteration_stats: Any, *others: Any, **more: Any) -> None:
        if scheduler_stats is not None:
            self._on_step()
            self._activity.running = scheduler_stats.num_running_reqs
            self._activity.waiting = scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs
        if iteration_stats is not None and iteration_stats.finished_requests:
            self._activity.on_batch(len(iteration_stats.finished_requests))

    def log(self) -> None:
        pass

    def log_engine_initialized(self) -> None:
        pass

    def record_sleep_state(self, is_awake: int, level: int) -> None:
        pass


def engine_arguments(settings: "Settings", checkpoint: Checkpoint, *, on_cpu: bool) -> dict[str, Any]:
    """The keyword arguments of AsyncEngineArgs."""
    max_tokens = min(settings.max_model_len, _built_for(checkpoint.folder))
    dtype = settings.dtype or checkpoint.manifest.dtype
    chosen = {
        "max_num_batched_tokens": _step_tokens(checkpoint.folder, dtype, max_tokens) if on_cpu else max_tokens,
        "enable_prefix_caching": True,
        "mm_processor_cache_gb": IMAGE_CACHE_GB * (settings.memory_share or 1),
        **(_cpu_defaults(settings) if on_cpu else {}),
        **settings.engine_args,
    }
    return {
        **chosen,
        **_memory(chosen, settings.memory_share),
        "model": str(checkpoint.folder),
        "served_model_name": settings.names[0],
        "runner": "pooling",
        "dtype": dtype,
        "max_model_len": max_tokens,
        **({"quantization_config": {"ignore": HEADS}} if chosen.get("quantization") else {}),
        **(_image_arguments(settings, checkpoint) if read_image_token_id(checkpoint.folder) is not None else {}),
        "worker_extension_cls": f"{WorkerExtension.__module__}.{WorkerExtension.__qualname__}",
        "trust_remote_code": False,
        "disable_log_stats": False,
        "use_tqdm_on_load": False,
        "shutdown_timeout": math.ceil(settings.drain_timeout_s),
    }


def computes_in_one_process(settings: "Settings") -> bool:
    """On a small machine, unless somebody has said how vLLM shall use its processors."""
    small = len(os.sched_getaffinity(0)) <= SMALL_MACHINE_CORES
    return small and BINDING not in os.environ and not settings.engine_args.keys() & PARALLEL


def _cpu_defaults(settings: "Settings") -> dict[str, Any]:
    executor = {"distributed_executor_backend": ONE_PROCESS} if computes_in_one_process(settings) else {}
    return CPU_DEFAULTS | executor


def _memory(chosen: dict[str, Any], share: float | None) -> dict[str, Any]:
    """The memory arguments for a `share` of what `chosen` or vLLM's defaults give to one model alone."""
    if share is None:
        return {}
    from vllm import EngineArgs

    whole = chosen.get("gpu_memory_utilization", EngineArgs.gpu_memory_utilization)
    memory: dict[str, Any] = {"gpu_memory_utilization": share * whole}
    if size := chosen.get("kv_cache_memory_bytes"):
        memory["kv_cache_memory_bytes"] = int(share * size)
    return memory


def _image_arguments(settings: "Settings", checkpoint: Checkpoint) -> dict[str, Any]:
    """vLLM refuses these for a model that reads text alone."""
    backend = checkpoint.manifest.processor.get("backend")
    return {
        "limit_mm_per_prompt": {"image": settings.max_images, "video": 0},
        # `backend` would say it better, but transformers 5.19 hands it to the video processor too, which has no PIL.
        "mm_processor_kwargs": {"use_fast": backend == "torchvision"} if backend else None,
    }


def _step_tokens(folder: Path, dtype: str, longest: int) -> int:
    """How many tokens a step on a CPU computes, whose prompts have at most `longest`; a prompt may take several."""
    config = _text_config(folder)
    width: int = 2 * (config.get("intermediate_size") or 4 * config["hidden_size"])  # of a gated MLP
    fitting = STEP_BYTES // (width * (4 if dtype == "float32" else 2))
    return min(longest, max(LEAST_STEP_TOKENS, fitting))


def _built_for(folder: Path) -> int:
    return int(_text_config(folder).get("max_position_embeddings") or 2**31)


def _text_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config.get("text_config") or config


def _check_image_backend(llm: Any, checkpoint: Checkpoint) -> None:
    """transformers falls back on the other backend without an error."""
    pinned = checkpoint.manifest.processor.get("backend")
    if pinned is None:
        return
    found = getattr(llm.renderer.get_mm_processor().info.get_hf_processor().image_processor, "backend", None)
    if found != pinned:
        raise ConfigurationError(
            f"{checkpoint.folder} was trained with the {pinned} image backend, this installation gives {found}: "
            "install torchvision as `beholder[vllm]` has it"
        )


async def check_head(llm: Any, checkpoint: Checkpoint) -> None:
    """vLLM would quantize the reward head too, which moves every reward. Raises ConfigurationError."""
    methods = {name for names in await llm.collective_rpc("reward_head_methods") for name in names}
    if methods != {"UnquantizedLinearMethod"}:
        raise ConfigurationError(
            f"vLLM keeps the reward head of {checkpoint.folder} otherwise than it is stored "
            f"({', '.join(methods) or 'it has none'}): serve without the engine argument quantization"
        )
