"""A row of the input -> the responses to score, and what came of them."""

from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from beholder.errors import BeholderError
from beholder.records.layouts import parse_fields
from beholder.records.problems import BadRecord
from beholder.records.sources import Row


@dataclass(frozen=True, slots=True)
class Outcome:
    """One response's raw logit (and in deviations, where calibrated), or the code and message of its error.

    `truncated`: the conversation was shortened before.
    """

    score: float | None = None
    normalized: float | None = None
    code: str | None = None
    message: str | None = None
    truncated: bool = False

    @classmethod
    def of_error(cls, error: BeholderError) -> "Outcome":
        return cls(code=error.code, message=str(error))


@dataclass(frozen=True, slots=True)
class Task:
    """A record to score. `images` are files or bytes; with a `problem` nothing of the record can be scored."""

    line: int
    digest: str
    id: str
    prompt: str = ""
    images: tuple[Path | bytes, ...] = ()
    responses: tuple[str, ...] = ()
    problem: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """A record and the outcome of each response, in order. Without responses: one outcome, the record's error."""

    line: int
    digest: str
    id: str
    outcomes: tuple[Outcome, ...]
    unread: bool = False

    @classmethod
    def of(cls, task: Task, outcomes: tuple[Outcome, ...]) -> "Scored":
        return cls(task.line, task.digest, task.id, outcomes, unread=not task.responses)

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads; an outcome is the list of its fields."""
        return {
            "line": self.line,
            "digest": self.digest,
            "id": self.id,
            "outcomes": [astuple(outcome) for outcome in self.outcomes],
            "unread": self.unread,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Scored":
        return cls(**{**values, "outcomes": tuple(Outcome(*outcome) for outcome in values["outcomes"])})


def read_task(row: Row, image_root: Path | None = None) -> Task:
    """What `row` asks for. Image paths are under `image_root`, by default the file's folder. Raises nothing."""
    digest = row.digest()
    identity = _given_id(row.value) or f"{row.number}-{digest[:12]}"
    try:
        if isinstance(row.value, BadRecord):
            raise row.value
        fields = parse_fields(row.value, row.where)
    except BadRecord as bad:
        problem = Outcome(code=bad.problem.kind, message=bad.problem.message)
        return Task(row.number, digest, identity, problem=problem)
    root = image_root or row.file.parent
    images = tuple(image if isinstance(image, bytes) else root / image for image in fields.images)
    return Task(row.number, digest, identity, fields.prompt, images, fields.responses)


def _given_id(value: Any) -> str | None:
    """The record's own id, whatever else is wrong with it; what is not Unicode in it is escaped."""
    if not isinstance(value, dict):
        return None
    found = value.get("idx") if value.get("id") is None else value["id"]
    return None if found is None else str(found).encode(errors="backslashreplace").decode()
