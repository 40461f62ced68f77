"""Stock vLLM's own server on a checkpoint, with no code of ours in it: the peer of parity and of speed."""

import base64
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from beholder_training.demo.serving import free_port

START_S = 240
MAX_TOKENS = 2048


@contextmanager
def stock_server(checkpoint: Path, dtype: str = "float32", *, compiled: bool = False) -> Iterator[str]:
    """The base URL of `vllm.entrypoints.openai.api_server`, healthy; the model is named "stock".

    `compiled` is vLLM's default, which takes a C++ compiler and half a minute on a CPU.
    """
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)]
    command += ["--served-model-name", "stock", "--host", "127.0.0.1", "--port", str(port), "--dtype", dtype]
    command += ["--runner=pooling", "--block-size=32", "--no-enable-log-requests"]
    command += [] if compiled else ["--enforce-eager"]
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


def classify_body(prompt: str, pictures: Sequence[bytes], response: str) -> dict[str, Any]:
    """A request to /classify: the raw logit of `response`. `pictures` are PNG files."""
    urls = ["data:image/png;base64," + base64.b64encode(picture).decode() for picture in pictures]
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    content.append({"type": "text", "text": prompt})
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": response}]
    return {"model": "stock", "messages": messages, "use_activation": False, "add_generation_prompt": False}


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
