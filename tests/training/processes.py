"""Training in processes of its own, for what only they can show: a kill, a signal, two ranks."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.training.runs import steps

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Driven:
    """How a process ended, and the losses of the steps that it took."""

    status: int
    losses: list[dict[str, float]]
    error: str


@dataclass(frozen=True)
class Drive:
    """Runs `beholder-train train` on the built-in world in a folder of the test's."""

    base: Path
    world: Path
    folder: Path

    def __call__(self, name: str, *settings: str, end: tuple[str, int] = ("TERM", 0), ranks: int = 0) -> Driven:
        """Train into folder/name. `end` is a signal and the step at which it comes; `ranks` 0 is without torchrun."""
        log = self.folder / f"{name}.jsonl"
        log.unlink(missing_ok=True)
        launcher = [sys.executable, "-m"]
        if ranks:
            launcher += ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
        here = self.world / "length"
        files = ["--train", str(here / "train.jsonl"), "--validation", str(here / "responses.jsonl")]
        given = ["--base", str(self.base), "--output", str(self.folder / name)]
        defaults = ["learning_rate=1e-3", "logging_steps=1", "freeze_vision=false", "proxy_warmup_steps=1"]
        command = [*launcher, "tests.training.drive", str(log), end[0], str(end[1]), "train", *files, *given]
        command += ["--set", *defaults, *settings]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
        lines = log.read_text().splitlines() if log.is_file() else []
        return Driven(done.returncode, steps([json.loads(line) for line in lines]), done.stderr)
