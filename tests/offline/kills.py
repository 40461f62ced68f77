"""Score a file, killed with SIGKILL at random moments and taken up again each time.

    python -m tests.offline.kills CHECKPOINT DATA OUTPUT KILLS [ENGINE]

Everything is imported once; each run is a forked process. Every result is compared with that of an uninterrupted run:
the same rows, and scores within 1e-5 (the fake engine's are exactly the same). Prints as JSON how many kills there
were, and after how many of them the journal had records.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from beholder.offline.backends import EngineBackend
from beholder.offline.scoring import Job, score_file
from beholder.prompts import PromptRenderer
from beholder.settings import load_settings


def begin(job: Job, backend: EngineBackend) -> int:
    """The process that scores."""
    if process := os.fork():
        return process
    try:
        score_file(job, backend)
    finally:
        os._exit(0 if job.output.exists() else 1)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def take(path: Path) -> list[dict[str, Any]]:
    """What is in the file, which is removed."""
    found = rows(path)
    path.unlink()
    return found


def require_same(found: list[dict[str, Any]], whole: list[dict[str, Any]]) -> None:
    numbers = ("score", "normalized")
    for one, other in zip(found, whole, strict=True):
        assert {**one, **dict.fromkeys(numbers)} == {**other, **dict.fromkeys(numbers)}
        assert all(abs(one[name] - other[name]) <= 1e-5 for name in numbers)


def main(checkpoint: str, data: str, output: str, kills: str, engine: str = "fake") -> None:
    options = {"delay_s": 0.02} if engine == "fake" else {}
    PromptRenderer.from_folder(Path(checkpoint))  # what it imports, the forks have
    settings = load_settings({"checkpoint": Path(checkpoint), "engine": engine, "engine_args": options})
    job, backend = Job(Path(data), Path(output), in_flight=32, progress=False), EngineBackend(settings)
    journal = job.output.with_name(f"{job.output.name}.partial")
    rng = random.Random(0)
    started = time.monotonic()
    os.waitpid(begin(job, backend), 0)
    duration = time.monotonic() - started
    whole = take(job.output)
    done = progressed = 0
    while done < int(kills):
        process = begin(job, backend)
        time.sleep(rng.uniform(0, duration))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        if os.WIFSIGNALED(status):
            done += 1
            progressed += journal.exists() and journal.read_bytes().count(b"\n") > 1
        if job.output.exists() and not journal.exists():
            require_same(take(job.output), whole)
    os.waitpid(begin(job, backend), 0)
    require_same(rows(job.output), whole)
    print(json.dumps({"kills": done, "kills_with_progress": progressed}))


if __name__ == "__main__":
    main(*sys.argv[1:])
