"""Stock vLLM loads the checkpoint with no plugin of ours and gives the same rewards."""

import base64
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from beholder.checkpoint import Checkpoint, GoldenSample

pytest.importorskip("vllm")
pytestmark = pytest.mark.slow

START_S = 150
FLAGS = ["--runner=pooling", "--enforce-eager", "--block-size=32", "--max-model-len=1024", "--no-enable-log-requests"]
FLAGS += ["--max-num-batched-tokens=1024", f"--kv-cache-memory-bytes={2**28}", "--num-gpu-blocks-override=512"]


@pytest.fixture(scope="module")
def url(tiny_checkpoint: Path, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    use_fast = str(checkpoint.manifest.processor.get("backend") == "torchvision").lower()
    log = tmp_path_factory.mktemp("stock") / "log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(tiny_checkpoint), *FLAGS]
    command += ["--host", "127.0.0.1", "--port", port, "--dtype", checkpoint.manifest.dtype]
    command += ["--served-model-name", "tiny", "--mm-processor-kwargs", f'{{"use_fast": {use_fast}}}']
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url, process, log)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_S
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)


def _classify(url: str, checkpoint: Checkpoint, sample: GoldenSample) -> float:
    content: list[dict[str, object]] = []
    for name in sample.images:
        data = base64.b64encode((checkpoint.folder / "golden" / name).read_bytes()).decode()
        content.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}})
    content.append({"type": "text", "text": sample.prompt})
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": sample.response}]
    body = {"model": "tiny", "messages": messages, "use_activation": False, "add_generation_prompt": False}
    response = httpx.post(f"{url}/classify", json=body, timeout=60)
    assert response.status_code == 200, response.text
    (logit,) = response.json()["data"][0]["probs"]
    return float(logit)


def test_stock_vllm_gives_the_trained_rewards(url: str, checkpoint: Checkpoint) -> None:
    # Stock vLLM reads a special token in a response as one; that sample is ours alone.
    samples = [sample for sample in checkpoint.golden() if "<|" not in sample.response]
    assert any(sample.images for sample in samples)
    for sample in samples:
        assert _classify(url, checkpoint, sample) == pytest.approx(sample.score, abs=1e-3), sample.id
