"""The checkpoint folder: the one contract between training and serving.

    config.json, *.safetensors, tokenizer and processor files   what stock vLLM loads
    reward.json                                                 the Manifest below
    golden/golden.jsonl, golden/*                               samples with the scores that training computed
    history.json                                                what training logged, where it trained
    proxy/                                                      the proxy, where it was kept, with reward_input.json

reward.json records the sha256 of every other file. Its `fingerprint` is the sha256 of all else that it says, these and
the calibration, input, dtype and processor, so two checkpoints that may score differently never share one.
"""

import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from beholder.error_lines import first_line
from beholder.errors import CheckpointCorrupt, CheckpointError
from beholder.images import LoadedImage, load_image_file
from beholder.prompts import Conversation, ModelInput, PromptRenderer, single_turn

MANIFEST_NAME = "reward.json"
GOLDEN_FOLDER = "golden"
GOLDEN_NAME = "golden.jsonl"
INPUT_NAME = "reward_input.json"

Dtype = Literal["float32", "bfloat16", "float16"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Calibration(_Strict):
    """Rewards of held-out responses: mean, standard deviation, and quantiles by probability ("0.05": ...)."""

    mean: float
    deviation: float = Field(gt=0)
    quantiles: dict[str, float]


class GoldenSample(_Strict):
    """A sample and the float32 score that training computed. `images` are file names in golden/, first in the turn."""

    id: str
    prompt: str
    images: tuple[str, ...] = ()
    response: str
    score: float

    def conversation(self) -> Conversation:
        return single_turn(self.prompt, len(self.images))


class Manifest(_Strict):
    """reward.json."""

    format_version: Literal[1] = 1
    base_model: str
    architecture: str
    algorithm: str
    data_fingerprint: str
    chat_template_sha256: str
    processor: dict[str, Any]
    dtype: Dtype
    input: ModelInput = "image"
    """What the model was trained on of a sample's images."""
    calibration: Calibration | None = None
    within_prompt_spread: float = Field(gt=0)
    """Mean over prompts of the standard deviation of the rewards of a prompt's responses."""
    bf16_error: float | None = None
    """Largest difference between bf16 and float32 scores on held-out responses, measured at export."""
    evaluation: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)
    """sha256 of every other file in the folder, by relative path."""
    fingerprint: str = ""
    """What `seal` makes of all else in the file."""


class _Input(_Strict):
    """reward_input.json."""

    input: ModelInput


@dataclass(frozen=True)
class Checkpoint:
    """A folder whose manifest has been read; `verify_files` has not run yet."""

    folder: Path
    manifest: Manifest

    @property
    def fingerprint(self) -> str:
        """64 hex digits that change with any file of the checkpoint, and with anything that reward.json says."""
        return self.manifest.fingerprint

    def renderer(self) -> PromptRenderer:
        """Renders prompts as the model was trained to read them. Raises CheckpointError."""
        return PromptRenderer.from_folder(self.folder, self.manifest.input)

    def golden(self) -> list[GoldenSample]:
        path = self.folder / GOLDEN_FOLDER / GOLDEN_NAME
        try:
            # As bytes: a text is also cut at U+2028 and its like, which stand in JSON as they are.
            samples = [GoldenSample.model_validate_json(line) for line in path.read_bytes().splitlines()]
        except (OSError, ValidationError) as error:
            raise CheckpointError(f"{path}: {_reason(error)}") from None
        if not samples:
            raise CheckpointError(f"{path} has no samples: export the checkpoint again")
        return samples

    def golden_images(self, sample: GoldenSample) -> tuple[LoadedImage, ...]:
        return tuple(load_image_file(self.folder / GOLDEN_FOLDER / name) for name in sample.images)

    def golden_tolerance(self, dtype: Dtype) -> float:
        """How far a served score may be from training's float32 score, in units of the raw reward.

        1e-3 in float32; in half precision a quarter of the spread of rewards within a prompt, since that is the scale
        on which responses are told apart.
        """
        return 1e-3 if dtype == "float32" else 0.25 * self.manifest.within_prompt_spread


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read and check the manifest and that the parts are there. Raises CheckpointError; CheckpointCorrupt where the
    manifest was edited."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder: give a checkpoint that `beholder-train train` wrote")
    path = folder / MANIFEST_NAME
    try:
        content = path.read_bytes()
        manifest = Manifest.model_validate_json(content)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}: not a Beholder checkpoint (see `beholder adopt`)") from None
    except ValidationError as error:
        raise CheckpointError(f"{path}: {_reason(error)}") from None
    if not manifest.fingerprint:
        raise CheckpointError(f"{path} has no fingerprint: an older version wrote it; export or adopt the model again")
    if manifest.fingerprint != seal(json.loads(content)):
        raise CheckpointCorrupt(
            f"{path}: its fingerprint is not that of its contents: it was changed after it was written; copy it again, "
            "or export or adopt the model again"
        )
    missing = [name for name in manifest.files if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder} lacks {', '.join(missing)}, which {MANIFEST_NAME} lists: copy it again")
    checkpoint = Checkpoint(folder, manifest)
    _check_head(checkpoint)
    return checkpoint


def write_input(folder: Path, model_input: ModelInput) -> None:
    """Beside the weights of a model without manifest (a proxy/): what it was trained on."""
    (folder / INPUT_NAME).write_text(json.dumps({"input": model_input}) + "\n", encoding="utf-8")


def read_input(folder: Path) -> ModelInput | None:
    """What `write_input` wrote; None where it did not. Raises CheckpointError."""
    path = folder / INPUT_NAME
    try:
        return _Input.model_validate_json(path.read_bytes()).input if path.is_file() else None
    except (OSError, ValidationError) as error:
        raise CheckpointError(f"{path}: {_reason(error)}") from None


def verify_files(checkpoint: Checkpoint) -> None:
    """Compare every file with its recorded sha256. Raises CheckpointCorrupt, which names the first that differs."""
    for name, expected in checkpoint.manifest.files.items():
        found = sha256_file(checkpoint.folder / name)
        if found != expected:
            raise CheckpointCorrupt(
                f"{checkpoint.folder / name}: sha256 is {found[:12]}..., {MANIFEST_NAME} has {expected[:12]}...: "
                "the file was changed or damaged, copy the checkpoint again"
            )


def seal(contents: Mapping[str, Any]) -> str:
    """The fingerprint of a reward.json: the sha256 of all else that it says, keys sorted.

    Of what the file says, not of what is read of it: a setting that a later version adds changes no fingerprint.
    """
    told = {name: value for name, value in contents.items() if name != "fingerprint"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> Checkpoint:
    """Hash every file of `folder` into `manifest` and write it as reward.json.

    All become readable to everyone: safetensors writes for the owner alone, and a container runs as somebody else.
    """
    for path in _content_files(folder):
        path.chmod(path.stat().st_mode | 0o444)
    files = {str(path.relative_to(folder)): sha256_file(path) for path in _content_files(folder)}
    unsealed = manifest.model_copy(update={"files": files})
    complete = unsealed.model_copy(update={"fingerprint": seal(json.loads(unsealed.model_dump_json()))})
    (folder / MANIFEST_NAME).write_text(complete.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return Checkpoint(folder, complete)


def write_golden(folder: Path, samples: list[GoldenSample]) -> None:
    """Write golden.jsonl; the samples' images are in `folder`/golden already."""
    lines = (sample.model_dump_json() for sample in samples)
    (folder / GOLDEN_FOLDER / GOLDEN_NAME).write_text("\n".join(lines) + "\n", encoding="utf-8")


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A scratch folder that becomes `target` at the end of the block; on an error nothing is left behind.

    What writers of `target` that were killed have left is removed; of several that live the first to end has it.
    Raises CheckpointError when `target` exists already.
    """
    _require_absent(target)
    _remove_leftovers(target)
    scratch = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    scratch.mkdir(parents=True)
    try:
        with _locked(scratch):
            yield scratch
            _require_absent(target)
            scratch.rename(target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _require_absent(target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise CheckpointError(f"{target} exists already: choose another folder or remove it")


@contextmanager
def _locked(scratch: Path) -> Iterator[None]:
    """Says that its writer lives: the lock ends with the process, however that ends."""
    descriptor = os.open(scratch, os.O_RDONLY)
    try:
        with suppress(OSError):  # where the file system has no locks, nobody can take one to remove the folder either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_leftovers(target: Path) -> None:
    """The scratch folders of `target` that no writer has locked. An empty one may be about to be."""
    name = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]+\.partial")
    for scratch in filter(lambda path: name.fullmatch(path.name), target.parent.glob(".*.partial")):
        with suppress(OSError):  # it is locked, or has become `target` meanwhile
            descriptor = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if any(scratch.iterdir()):
                    shutil.rmtree(scratch)
            finally:
                os.close(descriptor)


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_NAME)


def _check_head(checkpoint: Checkpoint) -> None:
    """A checkpoint without its reward head would be served with a random one."""
    from safetensors import safe_open

    shards = [name for name in checkpoint.manifest.files if name.endswith(".safetensors") and "/" not in name]
    for name in shards:
        try:
            with safe_open(checkpoint.folder / name, framework="numpy") as file:
                if any(key.endswith("score.weight") for key in file.keys()):  # noqa: SIM118 (not a mapping)
                    return
        except Exception as error:
            # safetensors raises its own untyped errors on a damaged header.
            raise CheckpointCorrupt(f"{checkpoint.folder / name}: {error}: copy the checkpoint again") from None
    raise CheckpointError(f"{checkpoint.folder} has no reward head (score.weight) in its weights: export it again")


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'content'}: {first['msg']}"
    return first_line(error)
