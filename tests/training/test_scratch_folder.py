"""A checkpoint appears whole; what a killed writer left goes with the next one, what a living one writes stays."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from beholder.checkpoint import atomic_folder
from beholder.errors import CheckpointError

KILLED = """
import os, pathlib, signal, sys
from beholder.checkpoint import atomic_folder
with atomic_folder(pathlib.Path(sys.argv[1])) as folder:
    (folder / "weights").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def write(target: Path, meanwhile: Callable[[], None] | None = None) -> None:
    with atomic_folder(target) as folder:
        (folder / "weights").write_text("late" if meanwhile else "whole")
        if meanwhile:
            meanwhile()
            assert (folder / "weights").is_file()


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    target = tmp_path / "rm"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False)
    assert killed.returncode == -9
    assert len(list(tmp_path.iterdir())) == 1
    write(target)
    assert list(tmp_path.iterdir()) == [target]


def test_a_leftover_under_the_process_id_is_no_obstacle(tmp_path: Path) -> None:
    """In a container the next process may have the number of the last."""
    leftover = tmp_path / f".rm.{os.getpid()}.partial"
    leftover.mkdir()
    (leftover / "weights").write_text("half")
    write(tmp_path / "rm")
    assert list(tmp_path.iterdir()) == [tmp_path / "rm"]


def test_of_two_writers_the_first_to_end_has_the_folder(tmp_path: Path) -> None:
    target = tmp_path / "rm"
    with pytest.raises(CheckpointError, match="rm exists already"):
        write(target, meanwhile=lambda: write(target))
    assert (target / "weights").read_text() == "whole"
    assert list(tmp_path.iterdir()) == [target]


def test_other_outputs_and_files_are_left_alone(tmp_path: Path) -> None:
    others = [tmp_path / name for name in (".rm2.0123abcd.partial", ".rm.notes.partial", ".rm.0123abcd.training")]
    for other in others:
        other.mkdir()
        (other / "file").touch()
    (tmp_path / ".rm.0123abcd.partial").touch()
    write(tmp_path / "rm")
    assert all((other / "file").is_file() for other in others)
    assert (tmp_path / ".rm.0123abcd.partial").is_file()


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "rm"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
