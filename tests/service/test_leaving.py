"""A thread cannot be interrupted: the service ends without those that still work."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from beholder.app import create_app
from beholder.checkpoint import Checkpoint, read_checkpoint, seal
from beholder.models import Model
from beholder.prompts import PromptRenderer
from beholder.server import bind, make_server
from beholder.settings import Settings
from tests.service.process import START_S, Service
from tests.service.stand_in import StandInEngine
from tests.service.test_server import wait_until

DRAINED_S = 15


def test_the_server_does_not_wait_for_a_thread_that_works(
    settings: Settings,
    engine: StandInEngine,
    checkpoint: Checkpoint,
    renderer: PromptRenderer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    working, over = threading.Event(), threading.Event()

    def work() -> None:
        working.set()
        over.wait()

    async def start() -> None:
        await asyncio.to_thread(work)

    monkeypatch.setattr(engine, "start", start)
    server = make_server(create_app(settings, [Model(settings, engine, checkpoint, renderer)]), settings)
    serving = threading.Thread(target=server.run, args=([bind("127.0.0.1", 0)],))
    serving.start()
    try:
        assert working.wait(10)
        wait_until(lambda: server.started)
        server.handle_exit(signal.SIGTERM, None)
        serving.join(10)
        assert not serving.is_alive()
    finally:
        over.set()
        serving.join()


@pytest.fixture
def endless_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """One with a file so large that its verification takes minutes; it takes no room on the disk."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for path in tiny_checkpoint.iterdir():
        if path.name != "reward.json":
            (folder / path.name).symlink_to(path)
    manifest = read_checkpoint(tiny_checkpoint).manifest
    larger = json.loads(manifest.model_dump_json()) | {"files": {"large": "0" * 64} | manifest.files}
    (folder / "reward.json").write_text(json.dumps(larger | {"fingerprint": seal(larger)}))
    (folder / "large").touch()
    os.truncate(folder / "large", 2**38)
    return folder


def test_sigterm_while_files_are_verified_ends_the_process(endless_checkpoint: Path, tmp_path: Path) -> None:
    service = Service(endless_checkpoint, tmp_path / "log", "--engine", "fake", "--engine-args", "{}")
    try:
        unready = httpx.get(f"{service.url}/readyz", timeout=START_S)
        assert "are being verified" in unready.json()["detail"]
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(DRAINED_S) == 0, service.log.read_text()
    finally:
        service.process.kill()
        service.process.wait()


def test_a_process_leaves_with_its_status_and_what_it_printed() -> None:
    program = """
import threading
from beholder.cli import _leave_within
threading.Thread(target=threading.Event().wait).start()
print("printed")
_leave_within(0.1, 3)
"""
    ended = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (3, b"printed\n")
