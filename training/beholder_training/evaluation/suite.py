"""Several models on several test sets -> one Evaluation, which report/ draws and JSON keeps."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from beholder_training.branch import Branch, on_accelerator
from beholder_training.evaluation.ablations import ABLATIONS
from beholder_training.evaluation.inputs import Model, TestSet
from beholder_training.evaluation.metrics import (
    SFD_FORMULA,
    ReliabilityBin,
    Scores,
    ShortcutFailure,
    best_of_n,
    calibration_error,
    chance_top1,
    outcomes,
    pair_margins,
    pair_outcomes,
    question_of_pair,
    question_of_record,
    reliability,
    shortcut_failure,
    top1,
)
from beholder_training.evaluation.statistics import Estimate, Values, estimate, paired_difference

Distribution = Literal["iid", "ood"]


@dataclass(frozen=True, slots=True)
class Margins:
    mean: float
    deviation: float
    quantiles: dict[str, float]


@dataclass(frozen=True, slots=True)
class Result:
    """One model on one test set.

    distribution: whether the test set is of the model's training distribution; None where nobody said.
    ablations: accuracy by ablations.ABLATIONS. text_only: accuracy of the text-only reward model; sfd: with it.
    best_of_n: mean quality for N = 1, 2, .. over the records with more than two responses; empty where none has.
    values: the margin of every pair, in the test set's order; not part of the JSON.
    """

    model: str
    test: str
    distribution: Distribution | None
    accuracy: Estimate
    margins: Margins
    top1: Estimate
    chance_top1: float
    ablations: dict[str, Estimate]
    text_only: Estimate | None
    sfd: ShortcutFailure | None
    reliability: list[ReliabilityBin]
    calibration_error: float
    best_of_n: list[Estimate]
    values: Values = field(repr=False)


@dataclass(frozen=True, slots=True)
class Difference:
    """Accuracy of `model` minus that of `reference` on the same pairs of `test`."""

    model: str
    reference: str
    test: str
    difference: Estimate


@dataclass(frozen=True)
class Evaluation:
    """`results` model by model, test by test."""

    models: list[Model]
    tests: list[TestSet]
    results: list[Result]
    differences: list[Difference]

    def result(self, model: str, test: str) -> Result:
        return next(result for result in self.results if (result.model, result.test) == (model, test))

    def mean(self, model: str, distribution: Distribution) -> float | None:
        """Mean accuracy over the model's test sets of a distribution; None when there is none."""
        rows = [row for row in self.results if (row.model, row.distribution) == (model, distribution)]
        return float(np.mean([row.accuracy.mean for row in rows])) if rows else None

    def to_json(self) -> dict[str, Any]:
        """Everything but the scores and the records."""
        return {
            "sfd_formula": SFD_FORMULA,
            "ablations": {name: ablation.title for name, ablation in ABLATIONS.items()},
            "models": [
                {
                    "name": model.name,
                    "folder": str(model.folder),
                    "algorithm": model.algorithm,
                    "input": model.branch.input,
                    "fingerprint": model.fingerprint,
                    "mean_iid_accuracy": self.mean(model.name, "iid"),
                    "mean_ood_accuracy": self.mean(model.name, "ood"),
                    "history": model.history,
                }
                for model in self.models
            ],
            "tests": [
                {
                    "name": test.name,
                    "file": str(test.file),
                    "sha256": test.digest,
                    "records": len(test.records),
                    "left_out": [str(problem) for problem in test.left_out],
                }
                for test in self.tests
            ],
            "results": [
                {name: _plain(value) for name, value in asdict(result).items() if name != "values"}
                for result in self.results
            ],
            "differences": [_plain(asdict(difference)) for difference in self.differences],
        }


def _plain(value: Any) -> Any:
    """JSON has no nan."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def evaluate(
    models: Sequence[Model], tests: Sequence[TestSet], homes: Mapping[str, str], ablate: bool = True
) -> Evaluation:
    """Score everything, one model at a time on the accelerator. `homes` names each model's test set of its training
    distribution, where there is one.
    """
    results = [_result(model, test, homes.get(model.name), ablate) for model in models for test in tests]
    evaluation = Evaluation(list(models), list(tests), results, [])
    for test in tests:
        reference = outcomes(evaluation.result(models[0].name, test.name).values)
        groups = question_of_pair(test.records)
        for model in models[1:]:
            ours = outcomes(evaluation.result(model.name, test.name).values)
            difference = paired_difference(ours, reference, groups)
            evaluation.differences.append(Difference(model.name, models[0].name, test.name, difference))
    return evaluation


def _result(model: Model, test: TestSet, home: str | None, ablate: bool) -> Result:
    records, label = test.records, f"{model.name} on {test.name}"
    with on_accelerator(model.branch):
        scores = model.branch.score(records, label=label)
        ablations = _ablations(model.branch, test, label) if ablate else {}
    margins, groups = pair_margins(records, scores), question_of_pair(records)
    text_only = None
    if model.text_only is not None:
        with on_accelerator(model.text_only):
            text_only = pair_outcomes(records, model.text_only.score(records, label=f"{label}, text-only model"))
    bins = reliability(margins, groups)
    several = [number for number, record in enumerate(records) if len(record.responses) > 2]
    return Result(
        model=model.name,
        test=test.name,
        distribution=None if home is None else "iid" if home == test.name else "ood",
        accuracy=estimate(outcomes(margins), groups),
        margins=_margins(margins),
        top1=estimate(top1(records, scores), question_of_record(records)),
        chance_top1=chance_top1(records),
        ablations=ablations,
        text_only=None if text_only is None else estimate(text_only, groups),
        sfd=None if text_only is None else shortcut_failure(outcomes(margins), text_only, groups),
        reliability=bins,
        calibration_error=calibration_error(bins),
        best_of_n=best_of_n([records[each] for each in several], [scores[each] for each in several]),
        values=margins,
    )


def _margins(margins: Values) -> Margins:
    levels = (0.05, 0.25, 0.5, 0.75, 0.95)
    quantiles = {str(level): float(np.quantile(margins, level)) for level in levels}
    return Margins(float(margins.mean()), float(margins.std()), quantiles)


def _ablations(branch: Branch, test: TestSet, label: str) -> dict[str, Estimate]:
    found = {}
    for name, ablation in ABLATIONS.items():
        if (changed := ablation.change(branch, test.records)) is not None:
            other, records = changed
            scores: Scores = other.score(records, label=f"{label}, {ablation.title.partition(', ')[2]}")
            found[name] = estimate(pair_outcomes(records, scores), question_of_pair(test.records))
    return found
