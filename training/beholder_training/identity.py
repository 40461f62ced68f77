"""What two runs share that may continue each other: settings, data, images, base and number of processes."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from beholder.checkpoint import sha256_file
from beholder_training.branch import BASE_FILES
from beholder_training.config import TrainingConfig
from beholder_training.data import Record
from beholder_training.embedded import default_image_cache

FREE = {
    *("save_steps", "logging_steps", "report_to", "workers"),  # how a run is watched and fed
    *("validation", "calibration_records", "export_dtype", "save_proxy"),  # read after the last step
}
SMALL = 32 * 2**20  # bytes of a base's file up to which its content counts, above its size alone


def identity(config: TrainingConfig, records: Sequence[Record], processes: int) -> dict[str, Any]:
    """What every process of a run can say of it."""
    contents = ((record.prompt, *map(str, record.images), *record.responses, *record.qualities) for record in records)
    return {**settings(config), "training data": _digest(contents), "processes": processes}


def files_identity(config: TrainingConfig, records: Sequence[Record], bases: Sequence[Path]) -> dict[str, Any]:
    """What identifies the files behind a run on this machine; another machine may have copies, of another time."""
    images = sorted({path for record in records for path in record.images})
    cache = config.image_cache or default_image_cache()
    files = sorted(path for base in dict.fromkeys(bases) for pattern in BASE_FILES for path in base.glob(pattern))
    return {
        "images": _digest(_image(path) for path in images if not path.is_relative_to(cache)),  # there by their content
        "base files": _digest(_base_file(path) for path in files),
    }


def settings(config: TrainingConfig) -> dict[str, Any]:
    """Those that must not change."""
    values: dict[str, Any] = yaml.safe_load(config.as_text())
    return {name: value for name, value in values.items() if name not in FREE}


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """What of `ours` is not so in `theirs`, in words."""
    return [
        f"{name} was {theirs.get(name)}, is {value}" for name, value in ours.items() if theirs.get(name, ...) != value
    ]


def _image(path: Path) -> tuple[object, ...]:
    status = path.stat()
    return str(path), status.st_size, status.st_mtime_ns


def _base_file(path: Path) -> tuple[object, ...]:
    size = path.stat().st_size
    return path.name, size, sha256_file(path) if size < SMALL else ""


def _digest(contents: Iterable[tuple[object, ...]]) -> str:
    digest = hashlib.sha256()
    for content in contents:
        digest.update(repr(content).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()[:16]
