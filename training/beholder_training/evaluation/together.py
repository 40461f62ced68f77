"""Several test sets in one pass: what they ask of the same picture is scored behind one prefix."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from beholder_training.branch import Branch
from beholder_training.data import Record
from beholder_training.evaluation.metrics import Scores

Question = tuple[str, tuple[str, ...]]


def score_together(branch: Branch, tests: Mapping[str, Sequence[Record]]) -> dict[str, Scores]:
    """`branch.score` of every test set. Each picture is encoded, and each different response computed, once."""
    responses: dict[Question, dict[str, None]] = {}
    asked: dict[Question, Record] = {}
    for record in (record for records in tests.values() for record in records):
        responses.setdefault(_question(record), {}).update(dict.fromkeys(record.responses))
        asked.setdefault(_question(record), record)
    merged = [_merged(record, tuple(responses[question])) for question, record in asked.items()]
    rewards = {
        question: dict(zip(record.responses, row, strict=True))
        for question, record, row in zip(asked, merged, branch.score(merged), strict=True)
    }
    return {
        name: [[rewards[_question(record)][response] for response in record.responses] for record in records]
        for name, records in tests.items()
    }


def _question(record: Record) -> Question:
    return record.prompt, tuple(str(path.resolve()) for path in record.images)


def _merged(record: Record, responses: tuple[str, ...]) -> Record:
    """The branch keeps what it encoded by `where`, which must not be the record's own."""
    where = f"all test sets with {record.where}"
    return replace(record, responses=responses, qualities=(0.0,) * len(responses), where=where)
