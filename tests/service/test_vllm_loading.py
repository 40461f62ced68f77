"""What vLLM is started with: arguments, environment and image backend, of settings and checkpoint."""

import dataclasses
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from beholder.checkpoint import Checkpoint
from beholder.engine.vllm_loading import (
    LEAST_STEP_TOKENS,
    ONE_PROCESS,
    WAITING,
    _check_image_backend,
    core_environment,
    engine_arguments,
    prepare_environment,
)
from beholder.errors import (
    ConfigurationError,
)
from beholder.front_watch import FRONT, this_process
from beholder.model_settings import QUANTIZATIONS
from beholder.settings import Settings, load_settings

pytest.importorskip("vllm")
pytestmark = pytest.mark.slow


def test_a_step_on_a_cpu_holds_what_the_caches_do(
    tiny_checkpoint: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    def step(max_model_len: int, on_cpu: bool = True, **text: Any) -> Any:
        config = json.loads((tiny_checkpoint / "config.json").read_text())
        config["text_config"] |= text
        (tmp_path / "config.json").write_text(json.dumps(config))
        settings = load_settings({"checkpoint": tiny_checkpoint, "max_model_len": max_model_len})
        arguments = engine_arguments(settings, dataclasses.replace(checkpoint, folder=tmp_path), on_cpu=on_cpu)
        return arguments["max_num_batched_tokens"]

    assert step(8192) == 8192  # of the narrow model the longest prompt
    assert step(1024, intermediate_size=8192) == 1024
    assert step(8192, intermediate_size=512) == 4096
    assert step(8192, intermediate_size=8192) == LEAST_STEP_TOKENS
    assert step(8192, intermediate_size=None, hidden_size=2048) == LEAST_STEP_TOKENS
    assert step(8192, on_cpu=False, intermediate_size=8192) == 8192


@pytest.mark.parametrize("backend", ["pil", "torchvision"])
def test_the_image_backend_is_the_checkpoints(engine_settings: Settings, checkpoint: Checkpoint, backend: str) -> None:
    manifest = checkpoint.manifest.model_copy(update={"processor": {"backend": backend}})
    pinned = Checkpoint(checkpoint.folder, manifest)
    arguments = engine_arguments(engine_settings, pinned, on_cpu=True)
    assert arguments["mm_processor_kwargs"] == {"use_fast": backend == "torchvision"}
    _check_image_backend(with_backend(backend), pinned)
    with pytest.raises(ConfigurationError, match=f"{backend} image backend"):
        _check_image_backend(with_backend("another"), pinned)


def with_backend(name: str) -> Any:
    processor = SimpleNamespace(image_processor=SimpleNamespace(backend=name))
    info = SimpleNamespace(get_hf_processor=lambda: processor)
    return SimpleNamespace(renderer=SimpleNamespace(get_mm_processor=lambda: SimpleNamespace(info=info)))


def test_engine_args_win_where_they_may(engine_settings: Settings, checkpoint: Checkpoint) -> None:
    settings = engine_settings.model_copy(update={"engine_args": {"block_size": 64}, "max_model_len": 10**9})
    arguments = engine_arguments(settings, checkpoint, on_cpu=True)
    assert arguments["block_size"] == 64
    assert arguments["max_model_len"] < 10**9
    assert "enforce_eager" not in engine_arguments(settings, checkpoint, on_cpu=False)


def test_the_kinds_of_quantization_are_those_that_vllm_makes_while_it_loads() -> None:
    from vllm.config.quantization import _ONLINE_SHORTHANDS

    assert QUANTIZATIONS - {"fp8"} == {name for name, kind in _ONLINE_SHORTHANDS.items() if kind.linear is not None}


def test_a_small_machine_computes_in_one_process(
    engine_settings: Settings, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def executor(cores: int, *, on_cpu: bool = True, **engine_args: Any) -> Any:
        monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(cores)))
        settings = engine_settings.model_copy(update={"engine_args": engine_args})
        return engine_arguments(settings, checkpoint, on_cpu=on_cpu).get("distributed_executor_backend")

    assert executor(2) == ONE_PROCESS
    assert executor(16) is executor(2, on_cpu=False) is executor(2, tensor_parallel_size=2) is None
    assert executor(2, distributed_executor_backend="mp") == "mp"
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0")
    assert executor(2) is None


def test_only_a_core_on_the_cpu_inherits_the_processors(
    engine_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name in WAITING:
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    with core_environment(engine_settings, on_cpu=False):
        assert os.environ == before | {FRONT: this_process()}
    with core_environment(engine_settings, on_cpu=True):
        assert os.environ == before | WAITING | {FRONT: this_process(), "OMP_NUM_THREADS": "2"}
    assert os.environ == before


def test_on_a_card_float32_is_exact_and_nothing_is_forked_unless_somebody_says_it(
    engine_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TRITON_F32_DEFAULT", "NVIDIA_TF32_OVERRIDE", "VLLM_WORKER_MULTIPROC_METHOD"):
        monkeypatch.setenv(name, "")  # so that all are taken out again
        monkeypatch.delenv(name)
    monkeypatch.setenv("TRITON_F32_DEFAULT", "tf32x3")
    prepare_environment(engine_settings)
    assert os.environ["TRITON_F32_DEFAULT"] == "tf32x3"
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"
    assert os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"


def test_how_threads_wait_is_left_to_who_says_it(engine_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    with core_environment(engine_settings, on_cpu=True):
        assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
        assert "GOMP_SPINCOUNT" not in os.environ
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_a_model_takes_its_share_of_the_memory(engine_settings: Settings, checkpoint: Checkpoint) -> None:
    from vllm import EngineArgs

    def memory(name: str, *, on_cpu: bool, share: float | None, **engine_args: float) -> Any:
        settings = engine_settings.model_copy(update={"engine_args": engine_args, "memory_share": share})
        return engine_arguments(settings, checkpoint, on_cpu=on_cpu).get(name)

    gpu, cache = "gpu_memory_utilization", "kv_cache_memory_bytes"
    assert memory(gpu, on_cpu=False, share=None) is None
    assert memory(gpu, on_cpu=False, share=0.25) == pytest.approx(EngineArgs.gpu_memory_utilization / 4)
    assert memory(gpu, on_cpu=False, share=0.25, gpu_memory_utilization=1) == 0.25
    assert memory(cache, on_cpu=False, share=0.25) is None
    assert memory(cache, on_cpu=True, share=None) == 2 * 2**30
    assert memory(cache, on_cpu=True, share=0.25) == 2**29
    assert memory(cache, on_cpu=True, share=0.5, kv_cache_memory_bytes=2**30) == 2**29


def test_the_image_cache_takes_a_gibibyte_for_all_models_unless_somebody_says_it(
    engine_settings: Settings, checkpoint: Checkpoint
) -> None:
    def cache(share: float | None, **engine_args: float) -> Any:
        settings = engine_settings.model_copy(update={"engine_args": engine_args, "memory_share": share})
        return engine_arguments(settings, checkpoint, on_cpu=True)["mm_processor_cache_gb"]

    assert cache(None) == 1
    assert cache(0.25) == 0.25
    assert cache(0.25, mm_processor_cache_gb=3) == 3
