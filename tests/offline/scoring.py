"""Short ways to score a file in a test, and to read what came out."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from beholder.offline.backends import EngineBackend
from beholder.offline.scoring import Job, Position, Summary, score_file
from beholder.offline.tasks import Outcome, Scored
from beholder.settings import Settings


def score(settings: Settings, data: Path, output: Path, **options: Any) -> Summary:
    return score_file(Job(data, output, progress=False, **options), EngineBackend(settings))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@dataclass
class CountingBackend:
    """Scores a response by its length, at once, and remembers which lines it was asked for."""

    fingerprint: str = "a" * 64
    lines: list[int] = field(default_factory=list)
    stop_after: int | None = None

    @property
    def about(self) -> dict[str, Any]:
        return {"fingerprint": self.fingerprint, "engine": "counting", "dtype": "float32"}

    def run(self, job: Job, position: Position, accept: Callable[[Scored], None]) -> None:
        for task in job.tasks(position):
            if self.stop_after is not None and len(self.lines) == self.stop_after:
                raise KeyboardInterrupt
            self.lines.append(task.line)
            outcomes = (task.problem,) if task.problem else tuple(Outcome(len(text) / 7) for text in task.responses)
            accept(Scored.of(task, outcomes))
