"""What has been scored, record by record in the input's order, in a file beside the output: OUT.partial.

The first line says what scores, and whether a restart began it; every other line is one scored record. Lines are only
ever appended, so a kill at any moment costs at most a torn last line, which is cut off when the run is taken up again.
"""

import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final

from beholder.errors import DataError
from beholder.offline.tasks import Scored

SYNC_INTERVAL_S: Final = 2.0
"""How much a power cut may cost; a kill costs nothing that was written."""
_VERSION: Final = 3
_FINGERPRINT: Final = re.compile("[0-9a-f]{64}")


class Journal:
    """Open for one process at a time. `about` is what decides a score or a refusal: a journal with another one is
    refused, unless `restart` empties it. Names that only one of the two has are not compared."""

    def __init__(self, path: Path, about: dict[str, Any], *, restart: bool = False) -> None:
        self.path = path
        self._about = about
        self._synced = time.monotonic()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self._file: IO[bytes] = os.fdopen(descriptor, "r+b")
        try:
            self._lock()
            if restart:
                self._file.truncate(0)
            self._begin(restart)
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        with suppress(OSError):  # of a full disk, which `append` has reported
            self._file.close()

    def records(self) -> Iterator[Scored]:
        """What was scored so far, in order; a torn last line is cut off at the end. Raises DataError."""
        self._file.seek(0)
        end = len(self._file.readline())
        while (line := self._file.readline()).endswith(b"\n"):
            try:
                scored = Scored.from_json(json.loads(line))
            except (ValueError, TypeError, KeyError):
                raise DataError(
                    f"{self.path} is damaged at byte {end}: remove it, or score anew with --restart"
                ) from None
            yield scored
            end += len(line)
        self._file.truncate(end)
        self._file.seek(end)

    def append(self, scored: Scored) -> None:
        """After `records` has been read to its end. Raises DataError when the disk does not take it."""
        try:
            self._file.write(json.dumps(scored.to_json()).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror}: make room and run the same command again") from None
        if time.monotonic() - self._synced > SYNC_INTERVAL_S:
            self.sync()

    def sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def _lock(self) -> None:
        """Record locks are not inherited by an engine's processes, which may outlive a killed run by a moment."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{self.path}: another process is scoring to this file") from None
        except OSError:
            pass  # some cluster file systems have no locks

    def _begin(self, restart: bool) -> None:
        header = self._file.readline()
        if not header.endswith(b"\n"):  # new, or killed while it was made
            self._file.seek(0)
            self._file.truncate()
            self._file.write(json.dumps({"journal": _VERSION, **self._about, "restart": restart}).encode() + b"\n")
            self._file.flush()
            return
        found = _header(header)
        if found is None:
            raise DataError(f"{self.path} is not a journal of score-file: move it away")
        if found["journal"] != _VERSION:
            raise DataError(
                f"{self.path} was begun by another version of Beholder, which wrote down other settings: finish it "
                "with that one, or score anew with --restart"
            )
        for name, value in self._about.items():
            if found.get(name, value) != value:
                raise DataError(
                    f"{self.path} was begun with {name} {_short(found[name])}, this run has {_short(value)}: "
                    "two would mix in one file; finish it as it was begun, or score anew with --restart"
                )


def begun_by_restart(path: Path) -> bool:
    """Whether the journal is that of a run with `restart`: then an output beside it is what the run is to replace."""
    try:
        with path.open("rb") as file:
            header = _header(file.readline())
    except OSError:
        return False
    return header is not None and header.get("restart") is True


def _header(line: bytes) -> dict[str, Any] | None:
    """None when it is not a journal's."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "journal" in found else None


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}..." if _FINGERPRINT.fullmatch(text) else text
