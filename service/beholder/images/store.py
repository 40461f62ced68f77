"""Images sent before, by the sha256 of their bytes: in memory, or in a folder that replicas share.

What was accepted stays for its whole time to live: when there is no room the store refuses new images instead of
dropping old ones, so a rollout never loses an image that it counts on. Sending an image again starts its time anew.
Both stores may be called from any thread.
"""

import errno
import fcntl
import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from beholder.errors import ConfigurationError, ImageStoreFull, ImageStoreUnavailable

SWEEP_S: Final = 60
_FULL: Final = "the image store holds its {limit} bytes and none of them may be dropped yet: retry later"
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ImageStore(Protocol):
    """`put` returns whether the image is new and raises ImageStoreFull; `get` is None for what is not (or no longer)
    there, for which `holds` is False. All raise ImageStoreUnavailable. One that is `in_memory` waits for no disk."""

    @property
    def in_memory(self) -> bool: ...

    def put(self, sha256: str, data: bytes) -> bool: ...

    def holds(self, sha256: str) -> bool: ...

    def get(self, sha256: str) -> bytes | None: ...


def open_store(folder: Path | None, max_bytes: int, ttl_s: float) -> ImageStore:
    """Raises ConfigurationError when the folder cannot be written to."""
    return MemoryStore(max_bytes, ttl_s) if folder is None else FolderStore(folder, max_bytes, ttl_s)


class MemoryStore:
    """A dictionary in the order of the images' age."""

    in_memory = True

    def __init__(self, max_bytes: int, ttl_s: float) -> None:
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._lock = threading.Lock()
        self._images: dict[str, tuple[bytes, float]] = {}
        self._bytes = 0

    def put(self, sha256: str, data: bytes) -> bool:
        with self._lock:
            self._drop_expired()
            known = self._images.pop(sha256, None)
            if known is None:
                if self._bytes + len(data) > self._max_bytes:
                    raise ImageStoreFull(_FULL.format(limit=self._max_bytes))
                self._bytes += len(data)
            self._images[sha256] = (data, time.monotonic() + self._ttl_s)
            return known is None

    def holds(self, sha256: str) -> bool:
        return self.get(sha256) is not None

    def get(self, sha256: str) -> bytes | None:
        with self._lock:
            self._drop_expired()
            entry = self._images.get(sha256)
            return entry[0] if entry else None

    def _drop_expired(self) -> None:
        now = time.monotonic()
        for sha256, (data, expires) in list(self._oldest(now)):
            if expires <= now:
                del self._images[sha256]
                self._bytes -= len(data)

    def _oldest(self, now: float) -> Iterator[tuple[str, tuple[bytes, float]]]:
        for item in self._images.items():
            if item[1][1] > now:
                return
            yield item


class FolderStore:
    """One file an image; its modification time is when it was last sent.

    Writers take a lock on a file of the folder, under which the number of stored bytes is kept in that file, so that
    replicas together keep to the limit. Files appear whole, by renaming; readers need no lock. A power cut may leave
    damaged ones all the same: what is found so is removed or written again, and counts as stored until the next sweep.
    """

    in_memory = False

    def __init__(self, folder: Path, max_bytes: int, ttl_s: float) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._lock = threading.Lock()
        self._next_sweep = time.monotonic()
        try:
            with self._usage():
                pass
        except OSError as error:
            raise ConfigurationError(f"image_store: {folder} cannot be written to: {error.strerror}") from None

    def put(self, sha256: str, data: bytes) -> bool:
        with _reporting():
            return self._put(self._path(sha256), data)

    def holds(self, sha256: str) -> bool:
        with _reporting():
            return self._alive(self._path(sha256))

    def get(self, sha256: str) -> bytes | None:
        path = self._path(sha256)
        with _reporting():
            try:
                if not self._alive(path):
                    return None
                data = path.read_bytes()
                # Others write to the folder too; wrong bytes would be scored under this hash.
                if hashlib.sha256(data).hexdigest() == sha256:
                    return data
                self._remove_damaged(path)
            except FileNotFoundError:
                pass
            return None

    def _remove_damaged(self, path: Path) -> None:
        """Unless it was written again meanwhile."""
        with self._usage():
            if hashlib.sha256(path.read_bytes()).hexdigest() != path.name:
                path.unlink()

    def _put(self, path: Path, data: bytes) -> bool:
        with self._usage() as usage:
            if time.monotonic() >= self._next_sweep:
                usage.bytes = self._sweep()
            if self._alive(path):
                if path.stat().st_size == len(data):
                    os.utime(path)
                    return False
                path.unlink()  # damaged
            if usage.bytes + len(data) > self._max_bytes:
                usage.bytes = self._sweep()
            if usage.bytes + len(data) > self._max_bytes:
                raise ImageStoreFull(_FULL.format(limit=self._max_bytes))
            self._write(path, data)
            usage.bytes += len(data)
            return True

    def _path(self, sha256: str) -> Path:
        return self._folder / sha256[:2] / sha256

    def _alive(self, path: Path) -> bool:
        try:
            return path.stat().st_mtime + self._ttl_s > time.time()
        except FileNotFoundError:
            return False

    def _write(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(exist_ok=True)
        descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=".")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            Path(scratch).rename(path)
        except BaseException:
            Path(scratch).unlink(missing_ok=True)
            raise

    def _sweep(self) -> int:
        """Remove what has expired, and what a killed writer left half written; the bytes that remain."""
        self._next_sweep = time.monotonic() + SWEEP_S
        remaining = 0
        for path in self._folder.glob("??/*"):
            if path.name.startswith(".") or not self._alive(path):
                path.unlink(missing_ok=True)
            else:
                remaining += path.stat().st_size
        return remaining

    @contextmanager
    def _usage(self) -> Iterator["_Usage"]:
        """The lock of all writers; the number is written back at the end. Where there was no room for it, it is counted
        again. A folder that was removed is made anew."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._lock, (self._folder / "usage").open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            text = file.read().strip()
            usage = _Usage(int(text) if text.isdigit() else self._sweep())
            try:
                yield usage
            finally:
                file.truncate(0)
                file.write(str(usage.bytes))


class _Usage:
    def __init__(self, stored: int) -> None:
        self.bytes = stored


@contextmanager
def _reporting() -> Iterator[None]:
    """What the folder's file system cannot do, as an error that is answered."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise ImageStoreFull(f"the image store's folder has no room: {error.strerror}; retry later") from None
        raise ImageStoreUnavailable(f"the image store's folder cannot be used: {error.strerror}; retry later") from None
