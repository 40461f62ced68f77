"""Settings of each of several models: what engines take as arguments, and how memory is divided."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from beholder.checkpoint import Dtype

VLLM_ARGS: Final = frozenset(
    {
        "async_scheduling",
        "attention_backend",
        "block_size",
        "compilation_config",
        "cpu_offload_gb",
        "disable_custom_all_reduce",
        "distributed_executor_backend",
        "enable_chunked_prefill",
        "enable_prefix_caching",
        "enforce_eager",
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
        "max_num_batched_tokens",
        "max_num_seqs",
        "mm_encoder_tp_mode",
        "mm_processor_cache_gb",
        "num_gpu_blocks_override",
        "pipeline_parallel_size",
        "quantization",
        "safetensors_load_strategy",
        "skip_mm_profiling",
        "tensor_parallel_size",
    }
)
"""vLLM's arguments that may be set. All others decide what is scored (runner, tokenizer, hf_overrides, ...) or belong
to the service. Quantization does move scores; the golden samples bound by how much."""
ENGINE_ARGS: Final[dict[str, frozenset[str]]] = {
    "vllm": VLLM_ARGS,
    "transformers": frozenset({"image_cache_bytes", "max_batch_tokens", "patience_s"}),
    "fake": frozenset({"delay_s", "jitter_s", "failure_rate", "die_after", "concurrency"}),
}
"""What engine_args may hold, by engine; "auto" takes those of the engine that it chooses."""
QUANTIZATIONS: Final = frozenset({"fp8", "fp8_per_block", "fp8_per_channel", "fp8_per_tensor", "mxfp4", "mxfp8"})
"""What vLLM makes of a checkpoint's weights while it loads them, all but the reward head's. Its other kinds are for
weights that were stored so, which no checkpoint has."""
MEMORY_ARGS: Final = ("gpu_memory_utilization", "kv_cache_memory_bytes")
"""What memory_share divides among several models."""
ROUNDING: Final = 1e-6
"""How far a sum of shares may exceed what there is, through rounding."""

MemoryShare = Annotated[float | None, Field(gt=0, le=1)]


class ModelSettings(BaseModel):
    """A model that is served beside the first."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    checkpoint: Path
    dtype: Dtype | None = None
    """None takes the service's."""
    engine_args: dict[str, Any] = Field(default_factory=dict)
    """Win over the service's engine_args."""
    memory_share: MemoryShare = None
    """As the service's memory_share."""


def check_engine_args(place: str, arguments: Mapping[str, Any], engine: str) -> None:
    """Raises ValueError, which names the `place` of the arguments, where `engine` does not take one, or its value."""
    allowed = ENGINE_ARGS[engine]
    if refused := sorted(arguments.keys() - allowed):
        raise ValueError(
            f"{place}: {', '.join(refused)} cannot be set for {engine}; allowed are {', '.join(sorted(allowed))}"
        )
    if (kind := arguments.get("quantization")) not in (None, *QUANTIZATIONS):
        raise ValueError(f"{place}: quantization is {kind!r}; allowed are {', '.join(sorted(QUANTIZATIONS))}")


def check_own_engine_args(name: str, model: ModelSettings, engine: str) -> None:
    """`check_engine_args` for a model that shares the memory with others."""
    place = f"models.{name}.engine_args"
    check_engine_args(place, model.engine_args, engine)
    if divided := sorted(model.engine_args.keys() & set(MEMORY_ARGS)):
        raise ValueError(
            f"{place}: {', '.join(divided)} is divided among the models: set it in the service's engine_args, and "
            "memory_share here"
        )


def divide(shares: Mapping[str, float | None]) -> dict[str, float]:
    """The part of each model, by name: None becomes equal parts of what the others leave.

    Raises ValueError where the shares are more than 1 together, or nothing is left.
    """
    given = sum(share for share in shares.values() if share is not None)
    without = sum(share is None for share in shares.values())
    if given > 1 + ROUNDING or (without and given > 1 - ROUNDING):
        told = ", ".join(f"{name} {'none' if share is None else share}" for name, share in shares.items())
        raise ValueError(
            f"memory_share: the models' shares add up to {given:g} ({told}): lower them, such that they add up to at "
            "most 1 and leave something for a model without one"
        )
    return {name: (1 - given) / without if share is None else share for name, share in shares.items()}
