"""A process that vLLM starts for an engine ends with the one that started the engine.

By itself vLLM's core outlives a process that was killed, with all the memory that it holds. What core and workers
inherit is a variable; they import this early: with `beholder.cli`, the main module of the process that spawns them, at
their very beginning, and else with vllm_worker.py, before weights are loaded.
"""

import os
import threading
import time
from pathlib import Path
from typing import Final

FRONT: Final = "BEHOLDER_FRONT_PROCESS"
"""The variable that names the process to end with, as `this_process` does; without it nothing is watched."""
INTERVAL_S: Final = 0.5


def this_process() -> str:
    """Its id and when it began, since ids are used again."""
    return f"{os.getpid()} {began(os.getpid())}"


def began(pid: int) -> str | None:
    """In the kernel's clock ticks; None where no such process runs."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].decode().split()
    except OSError:
        return None
    return None if state in "ZX" else fields[18]


def _end_with(process: str) -> None:
    pid = int(process.split()[0])
    while f"{pid} {began(pid)}" == process:
        time.sleep(INTERVAL_S)
    os._exit(1)


if FRONT in os.environ:
    threading.Thread(target=_end_with, args=(os.environ[FRONT],), name="front-watch", daemon=True).start()
