"""`beholder select`: best-of-N, filters and preference pairs, from a data file and what score-file made of it.

Both files are read once (with a share of the best: twice), side by side, whatever their size.
"""

import math
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from beholder.errors import DataError
from beholder.offline.results import is_parquet, require_writable, write_rows
from beholder.offline.tasks import Task, read_task
from beholder.records.problems import BadRecord
from beholder.records.sources import read_rows


@dataclass(frozen=True, slots=True)
class Candidates:
    """A record and the scores of its responses, in order; None where a response could not be scored."""

    task: Task
    scores: tuple[float | None, ...]

    def best(self, count: int | None = None) -> int | None:
        """The index of the best of the first `count` responses, the first of equals; None when none has a score."""
        known = [(score, -index) for index, score in enumerate(self.scores[:count]) if score is not None]
        return -max(known)[1] if known else None


@dataclass(frozen=True, slots=True)
class Selected:
    """What one output row says; `value` is a score, or of a pair the margin."""

    task: Task
    value: float
    texts: dict[str, str]


Choose = Callable[[Candidates], Iterator[Selected]]


def every_response(candidates: Candidates) -> Iterator[Selected]:
    """Each response by itself."""
    for response, score in zip(candidates.task.responses, candidates.scores, strict=True):
        if score is not None:
            yield Selected(candidates.task, score, {"response": response})


def best_of(count: int | None) -> Choose:
    """The best of the first `count` responses, or of all."""

    def choose(candidates: Candidates) -> Iterator[Selected]:
        index = candidates.best(count)
        if index is not None and (score := candidates.scores[index]) is not None:
            yield Selected(candidates.task, score, {"response": candidates.task.responses[index]})

    return choose


def best_and_worst(candidates: Candidates) -> Iterator[Selected]:
    """The best response as chosen and the worst as rejected, where their scores differ."""
    known = [
        (score, response)
        for score, response in zip(candidates.scores, candidates.task.responses, strict=True)
        if score is not None
    ]
    if not known:
        return
    best, worst = max(known, key=_score), min(known, key=_score)
    if best[0] > worst[0]:
        yield Selected(candidates.task, best[0] - worst[0], {"chosen": best[1], "rejected": worst[1]})


def select(
    data: Path,
    scores: Path,
    output: Path,
    choose: Choose,
    minimum: float | None = None,
    top_fraction: float | None = None,
    image_root: Path | None = None,
) -> tuple[int, int]:
    """Write what `choose` takes of each record, from `minimum` upwards, or the `top_fraction` with the highest values.

    Returns how many there were and how many were written. Raises DataError.
    """
    require_writable(output, [data, scores])

    def candidates() -> Iterator[Selected]:
        for record in read_candidates(data, scores, image_root):
            yield from choose(record)

    if top_fraction is not None:
        minimum = _threshold((selected.value for selected in candidates()), top_fraction)
    seen = written = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal seen, written
        for selected in candidates():
            seen += 1
            if minimum is None or selected.value >= minimum:
                written += 1
                yield _row(selected, output)

    write_rows(output, rows(), _schema(choose) if is_parquet(output) else None)
    return seen, written


def read_candidates(data: Path, scores: Path, image_root: Path | None = None) -> Iterator[Candidates]:
    """The records that could be read, with their scores. Raises DataError when `scores` are of another file."""
    rows = read_rows(data)
    for line, group in groupby(_read_scores(scores), key=lambda result: result["line"]):
        results = list(group)
        row = next(rows, None)
        task = read_task(row, image_root) if row is not None else None
        if task is None or (task.line, task.digest) != (line, results[0]["digest"]):
            raise DataError(f"{scores} is not of {data}: line {line} is another record; score the file again")
        if task.problem is not None:
            continue
        if [result["index"] for result in results] != list(range(len(task.responses))):
            raise DataError(f"{scores} is not of {data}: line {line} has other responses; score the file again")
        yield Candidates(task, tuple(result["score"] for result in results))
    if (row := next(rows, None)) is not None:
        raise DataError(f"{scores} has no scores for {row.where}: score the whole file first")


def _read_scores(scores: Path) -> Iterator[dict[str, Any]]:
    for row in read_rows(scores):
        if isinstance(row.value, BadRecord):
            raise row.value
        if not isinstance(row.value, dict) or not row.value.keys() >= {"index", "score", "line"}:
            raise DataError(f"{row.where}: not a result of score-file")
        if "digest" not in row.value:
            raise DataError(f"{row.where} has no digest, which shows what was scored: score the file again")
        yield row.value


def _score(known: tuple[float, str]) -> float:
    return known[0]


def _threshold(values: Iterable[float], fraction: float) -> float:
    """The least value of the highest `fraction`, of which one at least; equals of it are taken too."""
    found = sorted(array("d", values), reverse=True)
    count = math.ceil(round(fraction * len(found), 9))  # 0.07 * 100 is a little more than 7
    return found[max(1, count) - 1] if found else math.inf


def _row(selected: Selected, output: Path) -> dict[str, Any]:
    images = [_image(image, selected.task, output) for image in selected.task.images]
    value = "margin" if "chosen" in selected.texts else "score"
    return {
        "id": selected.task.id,
        "prompt": selected.task.prompt,
        "images": images,
        **selected.texts,
        value: selected.value,
    }


def _image(image: Path | bytes, task: Task, output: Path) -> Any:
    """A path from the output's folder, so that the output can be read as it stands."""
    path = None if isinstance(image, bytes) else os.path.relpath(image, output.parent.resolve())
    if is_parquet(output):
        return {"path": path, "bytes": image if isinstance(image, bytes) else None}
    if path is None:
        raise DataError(f"record {task.id!r} holds its images itself: name an output that ends in .parquet")
    return path


def _schema(choose: Choose) -> Any:
    import pyarrow

    text, number = pyarrow.string(), pyarrow.float64()
    own = {"chosen": text, "rejected": text, "margin": number}
    return pyarrow.schema(
        {
            "id": text,
            "prompt": text,
            "images": pyarrow.list_(pyarrow.struct({"path": text, "bytes": pyarrow.binary()})),
            **(own if choose is best_and_worst else {"response": text, "score": number}),
        }
    )
