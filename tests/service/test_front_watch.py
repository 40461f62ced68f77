"""A process ends with the one that its environment names; with vLLM: test_serve_process.py."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from beholder.front_watch import FRONT, began

WATCHING = "import time, beholder.front_watch; time.sleep(60)"
SOON_S = 10


@pytest.fixture
def front() -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def watcher(named: str | None) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, **({FRONT: named} if named else {})}
    return subprocess.Popen([sys.executable, "-c", WATCHING], env=environment)


def lives(process: "subprocess.Popen[bytes]") -> bool:
    time.sleep(2)
    return process.poll() is None


@pytest.mark.parametrize("waited_for", [True, False])
def test_it_ends_soon_after_the_other_was_killed(front: "subprocess.Popen[bytes]", waited_for: bool) -> None:
    """Also while the other is a zombie."""
    with watcher(f"{front.pid} {began(front.pid)}") as watching:
        assert lives(watching)
        front.kill()
        if waited_for:
            front.wait()
        assert watching.wait(SOON_S) == 1


def test_another_process_of_the_same_id_is_not_the_one(front: "subprocess.Popen[bytes]") -> None:
    with watcher(f"{front.pid} 1") as watching:
        assert watching.wait(SOON_S) == 1


def test_without_the_variable_nothing_is_watched() -> None:
    with watcher(None) as process:
        assert lives(process)
        process.kill()
