"""`beholder score-file`: a file of responses to a file of scores, taken up where it was left."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

from tqdm import tqdm

from beholder.errors import DataError
from beholder.offline.journal import Journal, begun_by_restart
from beholder.offline.results import journal_path, require_writable, result_rows, write_rows
from beholder.offline.tasks import Scored, Task, read_task
from beholder.records.sources import Row, count_rows, read_rows


@dataclass(frozen=True, slots=True)
class Position:
    """Where in the input the next row begins: see `beholder.records.sources.read_rows`."""

    offset: int = 0
    number: int = 0


@dataclass(frozen=True)
class Job:
    """What to score and where to. `in_flight`: responses at a time (on Ray, for each engine).

    `restart` forgets an earlier run's journal and replaces its output, once the new one is complete.
    """

    input: Path
    output: Path
    image_root: Path | None = None
    in_flight: int = 256
    stop_on_error: bool = False
    restart: bool = False
    progress: bool = True

    @property
    def images_from(self) -> str:
        """The folder of image paths; another one may hold other pictures of the same names."""
        return str((self.image_root or self.input.parent).resolve())

    def tasks(self, position: Position) -> Iterator[Task]:
        return (read_task(row, self.image_root) for row in read_rows(self.input, position.offset, position.number))


class Backend(Protocol):
    """What scores. `about` decides scores and refusals and stands in the journal; `fingerprint` is one of it."""

    @property
    def about(self) -> dict[str, Any]: ...

    def run(self, job: Job, position: Position, accept: Callable[[Scored], None]) -> None:
        """Score what follows `position`, and call `accept` with each record once, in order."""


@dataclass
class Summary:
    """Counts over the whole file, also what an earlier run scored."""

    records: int = 0
    scored: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def count(self, scored: Scored) -> None:
        self.records += 1
        for outcome in scored.outcomes:
            if outcome.code:
                self.errors[outcome.code] += 1
            else:
                self.scored += 1

    def __str__(self) -> str:
        found = ", ".join(f"{count} {code}" for code, count in self.errors.most_common())
        total = self.errors.total()
        return f"{self.scored} responses of {self.records} records scored, {total} errors" + (
            f": {found}" if found else ""
        )


def score_file(job: Job, backend: Backend) -> Summary:
    """Score all of `job.input`, or the rest of it. Raises BeholderError; what was scored until then is kept."""
    if not job.input.is_file():
        raise DataError(f"{job.input}: No such file")
    require_writable(job.output, [job.input])
    partial = journal_path(job.output)
    if job.output.exists() and not job.restart and not begun_by_restart(partial):
        raise DataError(f"{job.output} exists: name another output, or score anew with --restart")
    about = {**backend.about, "image_root": job.images_from}
    with closing(Journal(partial, about, restart=job.restart)) as journal:
        summary = Summary()
        position = _resume(job, journal, summary)
        if next(read_rows(job.input, position.offset, position.number), None) is not None:
            _score(job, backend, position, journal, summary)
        journal.sync()
        rows = (row for scored in journal.records() for row in result_rows(scored, about["fingerprint"]))
        write_rows(job.output, rows)
        journal.path.unlink()
    return summary


def _resume(job: Job, journal: Journal, summary: Summary) -> Position:
    """Pass over what the journal has. Raises DataError where the input is not what was scored."""
    position = Position()
    rows = read_rows(job.input)
    for scored in journal.records():
        row = next(rows, None)
        if row is None or (row.number, row.digest()) != (scored.line, scored.digest):
            _refuse(job, journal, scored, row)
        summary.count(scored)
        position = Position(row.offset, row.number)
    return position


def _refuse(job: Job, journal: Journal, scored: Scored, row: Row | None) -> NoReturn:
    place = f"{job.input}:{scored.line}" if row is None else row.where
    raise DataError(
        f"{place} is not what was scored before ({journal.path} has another record {scored.id!r} there): "
        "bring the input back, or score anew with --restart"
    )


def _score(job: Job, backend: Backend, position: Position, journal: Journal, summary: Summary) -> None:
    done = summary.records
    with tqdm(
        desc="scoring",
        total=count_rows(job.input),
        initial=done,
        unit="record",
        disable=not job.progress,
        smoothing=0.1,
    ) as bar:

        def accept(scored: Scored) -> None:
            if summary.records == done:
                bar.unpause()  # the engine's loading is no part of the rate
            if job.stop_on_error:
                _require_good(job, scored)
            journal.append(scored)
            summary.count(scored)
            if any(outcome.code for outcome in scored.outcomes):
                bar.set_postfix(errors=summary.errors.total(), refresh=False)
            bar.update()

        backend.run(job, position, accept)


def _require_good(job: Job, scored: Scored) -> None:
    for outcome in scored.outcomes:
        if outcome.code:
            raise DataError(f"{job.input}:{scored.line}: {outcome.code}: {outcome.message}")
