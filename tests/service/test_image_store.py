"""Images sent ahead: what is kept, for how long, and how full the store may be. Both stores keep the same promises."""

import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from beholder.errors import ConfigurationError, ImageStoreFull, ImageStoreUnavailable
from beholder.images import store as image_store
from beholder.images.store import FolderStore, ImageStore, open_store

Open = Callable[[int, float], ImageStore]


def name(data: bytes) -> str:
    return sha256(data).hexdigest()


@pytest.fixture(params=["memory", "folder"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    folder = tmp_path / "images" if request.param == "folder" else None
    return lambda max_bytes, ttl_s: open_store(folder, max_bytes, ttl_s)


@pytest.fixture
def pass_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets so many seconds pass: the stores' clock goes on, and files were written earlier."""
    passed = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + passed, time=time.time)
    monkeypatch.setattr(image_store, "time", clock)

    def pass_time(seconds: float) -> None:
        nonlocal passed
        passed += seconds
        for path in tmp_path.glob("images/??/*"):
            written = path.stat().st_mtime - seconds
            os.utime(path, (written, written))

    return pass_time


def test_what_was_put_is_there(opened: Open) -> None:
    store = opened(100, 60)
    assert store.get(name(b"a")) is None
    assert store.put(name(b"a"), b"a")
    assert not store.put(name(b"a"), b"a")
    assert store.get(name(b"a")) == b"a"


def test_a_full_store_refuses_and_drops_nothing(opened: Open) -> None:
    store = opened(10, 60)
    store.put(name(b"x" * 6), b"x" * 6)
    with pytest.raises(ImageStoreFull):
        store.put(name(b"y" * 5), b"y" * 5)
    assert store.get(name(b"x" * 6)) == b"x" * 6
    assert not store.put(name(b"x" * 6), b"x" * 6)  # needs no more room
    assert store.put(name(b"z" * 4), b"z" * 4)


def test_room_is_made_of_what_has_expired(opened: Open, pass_time: Callable[[float], None]) -> None:
    store = opened(10, 30)
    store.put(name(b"x" * 6), b"x" * 6)
    pass_time(31)
    assert store.get(name(b"x" * 6)) is None
    assert store.put(name(b"y" * 8), b"y" * 8)


def test_sending_again_starts_the_time_anew(opened: Open, pass_time: Callable[[float], None]) -> None:
    store = opened(10, 30)
    store.put(name(b"x"), b"x")
    pass_time(20)
    store.put(name(b"x"), b"x")
    pass_time(20)
    assert store.get(name(b"x")) == b"x"


def test_many_threads_keep_to_the_limit(opened: Open) -> None:
    store = opened(500, 60)

    def put(number: int) -> bool:
        data = str(number).zfill(10).encode()
        try:
            return store.put(name(data), data)
        except ImageStoreFull:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(put, range(100))) == 50


def test_replicas_share_a_folder_and_its_limit(tmp_path: Path) -> None:
    first, second = FolderStore(tmp_path, 10, 60), FolderStore(tmp_path, 10, 60)
    first.put(name(b"x" * 6), b"x" * 6)
    assert second.get(name(b"x" * 6)) == b"x" * 6
    with pytest.raises(ImageStoreFull):
        second.put(name(b"y" * 6), b"y" * 6)
    assert FolderStore(tmp_path, 10, 60).get(name(b"x" * 6)) == b"x" * 6  # after a restart


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    store = FolderStore(tmp_path, 10, 60)
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / ".half").write_bytes(b"x" * 100)
    (tmp_path / "usage").write_text("garbage")
    assert store.put(name(b"y" * 8), b"y" * 8)
    assert not (tmp_path / "ab" / ".half").exists()


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """What a full disk does to a writer. Python ignores the signal that comes with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_folder_without_room_is_a_full_store(tmp_path: Path) -> None:
    store = FolderStore(tmp_path, 10**6, 60)
    data = b"x" * 200_000
    with largest_file(100_000), pytest.raises(ImageStoreFull, match="no room"):
        store.put(name(data), data)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "usage"]
    assert (tmp_path / "usage").read_text() == "0"
    assert store.put(name(data), data)
    assert store.get(name(data)) == data


def test_what_is_stored_is_counted_where_its_number_was_lost(tmp_path: Path) -> None:
    store = FolderStore(tmp_path, 10, 60)
    store.put(name(b"x" * 6), b"x" * 6)
    (tmp_path / "usage").write_text("")
    with pytest.raises(ImageStoreFull):
        store.put(name(b"y" * 6), b"y" * 6)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"image_store: .*file"):
        open_store(tmp_path / "file", 10, 60)


def test_a_folder_that_was_removed_is_made_anew(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "images", 10, 60)
    store.put(name(b"x" * 6), b"x" * 6)
    shutil.rmtree(tmp_path / "images")
    assert not store.holds(name(b"x" * 6))
    assert store.get(name(b"x" * 6)) is None
    assert store.put(name(b"y" * 6), b"y" * 6)
    assert store.get(name(b"y" * 6)) == b"y" * 6


def test_a_folder_that_became_a_file_is_unavailable(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "images", 10, 60)
    shutil.rmtree(tmp_path / "images")
    (tmp_path / "images").write_text("")
    for ask in (store.holds, store.get, lambda sha256: store.put(sha256, b"x")):
        with pytest.raises(ImageStoreUnavailable, match=r"cannot be used: .*retry later"):
            ask(name(b"x"))


def damage(folder: Path, data: bytes, found: bytes) -> None:
    """What a power cut may leave of a file that was renamed before its bytes were on the disk."""
    (folder / name(data)[:2] / name(data)).write_bytes(found)


@pytest.mark.parametrize("found", [b"", b"xxx", bytes(6), b"x" * 9])
def test_a_damaged_file_is_no_image_and_can_be_sent_again(tmp_path: Path, found: bytes) -> None:
    store, data = FolderStore(tmp_path, 10, 60), b"x" * 6
    store.put(name(data), data)
    damage(tmp_path, data, found)
    assert store.get(name(data)) is None
    assert not store.holds(name(data))
    assert store.put(name(data), data)
    assert store.get(name(data)) == data


@pytest.mark.parametrize("found", [b"", b"x" * 9])
def test_a_damaged_file_is_written_again_before_it_is_read(tmp_path: Path, found: bytes) -> None:
    store, data = FolderStore(tmp_path, 10, 60), b"x" * 6
    store.put(name(data), data)
    damage(tmp_path, data, found)
    assert store.put(name(data), data)
    assert store.get(name(data)) == data
    assert store.put(name(b"y" * 4), b"y" * 4), "what was damaged takes no room"


def test_what_was_written_again_during_a_read_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, data = FolderStore(tmp_path, 10, 60), b"x" * 6
    store.put(name(data), data)
    damage(tmp_path, data, b"")
    read = Path.read_bytes

    def read_then_write(path: Path) -> bytes:
        found = read(path)
        if not found:
            FolderStore(tmp_path, 10, 60).put(name(data), data)
        return found

    monkeypatch.setattr(Path, "read_bytes", read_then_write)
    store.get(name(data))
    assert store.get(name(data)) == data


def test_files_are_whole_when_they_appear(tmp_path: Path) -> None:
    """Another process reads them by their path, at whatever line the writer is."""
    store, data = FolderStore(tmp_path, 10**8, 60), os.urandom(10**6)
    path = tmp_path / name(data)[:2] / name(data)
    seen: set[bytes | None] = set()

    def look(frame: FrameType, event: str, argument: Any) -> Any:
        seen.add(path.read_bytes() if path.exists() else None)
        return look

    former = sys.gettrace()
    sys.settrace(look)
    try:
        store.put(name(data), data)
    finally:
        sys.settrace(former)
    assert seen == {None, data}
