"""Stock vLLM's own server on a checkpoint, with no code of ours in it: the peer of parity and of speed."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from beholder.checkpoint import Dtype
from beholder_training.demo.serving import free_port

START_S = 240
MAX_TOKENS = 2048


@contextmanager
def stock_server(checkpoint: Path, dtype: Dtype = "float32") -> Iterator[str]:
    """The base URL of `vllm.entrypoints.openai.api_server`, healthy; the model is named "stock"."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)]
    command += ["--served-model-name", "stock", "--host", "127.0.0.1", "--port", str(port), "--dtype", dtype]
    command += ["--runner=pooling", "--enforce-eager", "--block-size=32", "--no-enable-log-requests"]
    command += [f"--max-model-len={MAX_TOKENS}", f"--max-num-batched-tokens={MAX_TOKENS}"]
    command += [f"--kv-cache-memory-bytes={2**28}", "--num-gpu-blocks-override=512"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    cores = sorted(os.sched_getaffinity(0))
    environment.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, cores)))
    with tempfile.NamedTemporaryFile("w+", suffix=".log") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        url = f"http://127.0.0.1:{port}"
        try:
            _wait(process, url, Path(log.name))
            yield url
        finally:
            process.terminate()
            process.wait(60)


def _wait(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    end = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < end:
        try:
            if httpx.get(f"{url}/health").is_success:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.5)
    raise RuntimeError(f"stock vLLM did not start:\n{log.read_text()[-4000:]}")
