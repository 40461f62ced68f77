"""What is evaluated: models and test sets, named, from paths."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from beholder.checkpoint import MANIFEST_NAME, read_checkpoint
from beholder.errors import CheckpointError, DataError
from beholder.records.problems import Problem, counts
from beholder_training.branch import Branch
from beholder_training.checking import NO_PREFERENCE, PictureCheck, check_files
from beholder_training.data import ImagePlaces, Record, fingerprint
from beholder_training.export import HISTORY_NAME, PROXY_FOLDER


@dataclass(frozen=True)
class Model:
    """A reward model under test. `text_only` is the one that says where its shortcut works: its proxy, or a given one.

    history: the losses and weights that training logged, a mapping a log line.
    """

    name: str
    folder: Path
    branch: Branch
    algorithm: str
    fingerprint: str
    text_only: Branch | None = None
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class TestSet:
    """Records with a preference each. `digest` is the sha256 of `file`; `left_out` says what of it is not in them."""

    __test__ = False  # not one of pytest's

    name: str
    file: Path
    records: list[Record]
    digest: str
    left_out: list[Problem] = field(default_factory=list)


def split_paths(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Checkpoints are folders, test sets are files. Raises DataError when either is missing."""
    for path in paths:
        if not path.exists():
            raise DataError(f"{path} does not exist: give folders of checkpoints and files of preferences")
    folders, files = [path for path in paths if path.is_dir()], [path for path in paths if path.is_file()]
    if not folders or not files:
        raise DataError("give at least one checkpoint (a folder) and one test set (a file of preferences)")
    return folders, files


def short_names(paths: Sequence[Path]) -> list[str]:
    """Each path's last part without suffix, with as many of the parts before it as tell the paths apart."""
    if len(set(paths)) < len(paths):
        raise DataError("a path is given twice")
    whole = [path.resolve().with_suffix("").parts for path in paths]
    for count in range(1, max(map(len, whole)) + 1):
        names = ["/".join(parts[-count:]) for parts in whole]
        if len(set(names)) == len(names):
            return names
    raise DataError("two paths differ in their suffix alone: rename one")


def read_models(folders: Sequence[Path], text_only: Path | None = None) -> list[Model]:
    """Models by folder. `text_only` is a reward model to read without images, in place of each model's own proxy/."""
    common = text_only_branch(text_only) if text_only else None
    return [_read_model(name, folder, common) for name, folder in zip(short_names(folders), folders, strict=True)]


def _read_model(name: str, folder: Path, text_only: Branch | None) -> Model:
    checkpoint = read_checkpoint(folder)
    if text_only is None and (folder / PROXY_FOLDER).is_dir():
        text_only = text_only_branch(folder / PROXY_FOLDER)
    branch = Branch.from_checkpoint(folder)
    algorithm, digest = checkpoint.manifest.algorithm, checkpoint.fingerprint
    return Model(name, folder, branch, algorithm, digest, text_only, _history(folder / HISTORY_NAME))


def _history(path: Path) -> list[dict[str, float]]:
    """Empty for checkpoints that were not trained here, or before histories were kept. Raises CheckpointError."""
    if not path.is_file():
        return []
    try:
        lines: list[dict[str, Any]] = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error}): export the checkpoint again") from None
    return lines


def text_only_branch(folder: Path) -> Branch:
    """A checkpoint, or the proxy/ of one, that reads no images. Blank ones stay where it was trained with them."""
    is_checkpoint = (folder / MANIFEST_NAME).is_file()
    branch = Branch.from_checkpoint(folder) if is_checkpoint else Branch.from_proxy(folder)
    return branch if branch.blank_images else replace(branch, sees_images=False)


def read_tests(files: Sequence[Path], image_root: Path | None = None) -> list[TestSet]:
    """Every record of every file examined as `check-data` does, with its pictures.

    Equal and unrated responses are left out, and records without a preference. Raises DataError for a file that holds
    a record that cannot be read, or no preference.
    """
    pictures = PictureCheck()
    return [_read_test(name, file, image_root, pictures) for name, file in zip(short_names(files), files, strict=True)]


def _read_test(name: str, file: Path, image_root: Path | None, pictures: PictureCheck) -> TestSet:
    checked = check_files([file], ImagePlaces(image_root), [pictures])
    if bad := [problem for problem in checked.problems if problem.fatal and problem.kind != NO_PREFERENCE]:
        found = f"{counts(bad)} in all: list them with `beholder-train check-data`, and mend or remove these records"
        raise DataError(f"{bad[0]} ({found})")
    if not checked.records:
        raise DataError(f"{file}: none of the {checked.read} records has two responses of different quality")
    return TestSet(name, file, checked.records, fingerprint([file]), checked.problems)


def home_sets(pairs: Sequence[str], models: Sequence[Model], tests: Sequence[TestSet]) -> dict[str, str]:
    """MODEL=TEST: the test set of each model's own training distribution. Raises DataError for an unknown name."""
    homes = {}
    for pair in pairs:
        model, _, test = pair.partition("=")
        for kind, name, known in (("model", model, models), ("test set", test, tests)):
            if name not in (names := [each.name for each in known]):
                raise DataError(f"--iid {pair}: no {kind} is called {name!r}: use one of {', '.join(names)}")
        homes[model] = test
    return homes
