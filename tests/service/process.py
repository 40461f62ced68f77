"""`beholder serve` as a process of its own, on a free port."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

START_S = 240
STOP_S = 60
FLAGS = ["--port", "0", "--max-model-len", "1024", "--engine-args", "{num_gpu_blocks_override: 512}"]


class Service:
    """A running `beholder serve`."""

    def __init__(self, checkpoint: Path, log: Path, *flags: str, environment: Mapping[str, str] | None = None) -> None:
        self.log = log
        command = [sys.executable, "-m", "beholder.cli", "serve", str(checkpoint), *FLAGS, *flags]
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command, stderr=file, stdout=file, env={**os.environ, **(environment or {})}
            )
        self.started = time.monotonic()
        self._wait(lambda: "listening on" in log.read_text())
        listening = re.search(r"listening on (\S+)", log.read_text())
        assert listening is not None
        self.url = listening.group(1)

    def wait_ready(self) -> None:
        self._wait(lambda: httpx.get(f"{self.url}/readyz", timeout=START_S).status_code == 200)

    def wait_logged(self, text: str) -> None:
        self._wait(lambda: text in self.log.read_text())

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_S)

    def cores(self) -> list[int]:
        """The process ids of vLLM's EngineCores, in the order in which they were started."""
        children = subprocess.run(
            ["ps", "-o", "pid=,args=", "--ppid", str(self.process.pid)], capture_output=True, text=True, check=True
        )
        return sorted(int(line.split()[0]) for line in children.stdout.splitlines() if "EngineCore" in line)

    def _wait(self, condition: Any) -> None:
        while not condition():
            if self.process.poll() is not None or time.monotonic() > self.started + START_S:
                self.process.kill()
                self.process.wait()
                raise AssertionError(self.log.read_text())
            time.sleep(0.1)
