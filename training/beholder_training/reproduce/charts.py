"""The smaller families: the map of settings, and accuracies by test set (label noise, grocery photos)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from beholder_training.evaluation.statistics import Estimate, Values, over_seeds
from beholder_training.report.figures import Panel, Series, bars, panels
from beholder_training.report.page import Drawing, Section, Table
from beholder_training.reproduce.cells import Cell
from beholder_training.reproduce.families import ALGORITHMS, CONTROLLED, MAP, SEEDS, Axis, at
from beholder_training.reproduce.outcomes import Finished
from beholder_training.reproduce.summary import FLIPPED, IID, Results, Variant, ood

Tests = Mapping[str, Sequence[str]]
"""For each training environment the test sets whose mean is a value."""


@dataclass(frozen=True, slots=True)
class Point:
    """A weighting less standard training at one setting of the map, over seeds and scenes."""

    axis: str
    setting: float
    algorithm: str
    ood_gain: Estimate
    iid_change: Estimate


def map_points(finished: Iterable[Finished]) -> list[Point]:
    """Every setting of which all weightings have all seeds."""
    by_cell = {each.cell: each for each in finished}
    points = []
    for axis in MAP:
        for move in axis.moves:
            runs = {algorithm: _at(by_cell, axis, move, algorithm) for algorithm in ALGORITHMS}
            if not all(runs.values()):
                continue
            standard = runs.pop("standard")
            for algorithm, ours in runs.items():
                gains = [_difference(ours, standard, tests) for tests in (ood(CONTROLLED), [IID])]
                points.append(Point(axis.name, next(iter(move.values())), algorithm, *gains))
    return points


def map_section(points: Sequence[Point]) -> Section:
    """One figure: what each weighting gains o.o.d. (above) and costs i.i.d. (below), over every axis of more than one
    setting so far."""
    shown = []
    for axis in MAP:
        those = [point for point in points if point.axis == axis.name]
        if len({point.setting for point in those}) > 1:
            above, below = (_lines(those, measure) for measure in ("ood_gain", "iid_change"))
            shown.append(Panel(axis.name, above, below, comparable=axis.start == MAP[0].start))
    labels = ("o.o.d. gain, points", "i.i.d. change, points")
    rows = [
        [each.axis, f"{each.setting:g}", each.algorithm, _points(each.ood_gain), _points(each.iid_change)]
        for each in points
    ]
    text = (
        f"Trained on {CONTROLLED}, from a base that sees where nothing else is said, {len(SEEDS)} seeds; one setting "
        "at a time is moved from the recipe. Differences are from standard training at the same setting; bands are 95% "
        "intervals over seeds and scenes."
    )
    header = ["setting", "value", "weighting", *labels]
    drawings = [Drawing("map", panels(shown, labels, ALGORITHMS), "")] if shown else []
    return Section("When which weighting pays", text, drawings, [Table(header, rows)])


def by_test_set(results: Results, title: str, text: str) -> Section:
    """Accuracies of every weighting on each test set, and the differences from standard training."""
    drawings, tables = [], []
    all_variants = results.variants("sees")
    for environment in dict.fromkeys(name for each in all_variants for name in results.environments(each)):
        variants = [each for each in all_variants if environment in results.environments(each)]
        columns, trained = _columns(results, variants[0], environment), f"Trained on {environment}."
        over = partial(_accuracy, results)
        values = {each.label: [over(each, tests) for tests in columns.values()] for each in variants}
        drawings.append(Drawing(f"accuracy-{environment}", bars(list(columns), values, "accuracy"), trained))
        tables += _tables(results, variants, columns, trained)
    return Section(title, text, drawings, tables)


def over_environments(results: Results, columns: Mapping[str, Tests], note: str) -> list[Table]:
    """Means over the environments that `columns` name, and the differences from standard training."""
    return _tables(results, _everywhere(results, columns), columns, note)


def _tables(results: Results, variants: Sequence[Variant], columns: Mapping[str, Tests], note: str) -> list[Table]:
    over = partial(_accuracy, results)
    rows = [[each.label, *(str(over(each, tests)) for tests in columns.values())] for each in variants]
    differences = [
        [each.label, *(_points(over(each, tests, reference)) for tests in columns.values())]
        for reference in variants
        for each in variants
        if reference.algorithm == "standard" and each != reference
    ]
    return [
        Table(["weighting", *columns], rows, note),
        Table(["difference from standard, points", *columns], differences, f"{note} Same seeds, same pairs."),
    ]


def accuracies(results: Results) -> dict[str, Any]:
    """For JSON: environment, weighting, test set -> mean and half-width, and those of the difference from standard."""
    found: dict[str, Any] = {}
    for each in results.variants("sees"):
        for environment in results.environments(each):
            columns = _columns(results, each, environment)
            reference = _standard(results.variants("sees"))
            found.setdefault(environment, {})[each.label] = _with_differences(results, each, columns, reference)
    return found


def means(results: Results, columns: Mapping[str, Tests]) -> dict[str, Any]:
    """For JSON, as `accuracies`: weighting, column -> mean over the environments that the column names."""
    variants = _everywhere(results, columns)
    return {each.label: _with_differences(results, each, columns, _standard(variants)) for each in variants}


def _everywhere(results: Results, columns: Mapping[str, Tests]) -> list[Variant]:
    """The variants that were trained on every environment that `columns` name."""
    named = {environment for tests in columns.values() for environment in tests}
    return [each for each in results.variants("sees") if named <= {*results.environments(each)}]


def _standard(variants: Sequence[Variant]) -> Variant | None:
    return next((each for each in variants if each.algorithm == "standard"), None)


def _with_differences(
    results: Results, variant: Variant, columns: Mapping[str, Tests], reference: Variant | None
) -> dict[str, Any]:
    return {
        name: {
            **asdict(_accuracy(results, variant, tests)),
            "less_standard": asdict(_accuracy(results, variant, tests, reference)),
        }
        for name, tests in columns.items()
    }


def _columns(results: Results, variant: Variant, environment: str) -> dict[str, Tests]:
    """The test sets, each alone; on the worlds their o.o.d. mean too."""
    names = list(results.runs(variant, environment)[0].outcomes)
    columns = {name: [name] for name in names} | ({"o.o.d.": ood(environment)} if FLIPPED in names else {})
    return {name: {environment: tests} for name, tests in columns.items()}


def _accuracy(results: Results, ours: Variant, tests: Tests, less: Variant | None = None) -> Estimate:
    """The mean over `tests`; of the difference from `less`."""
    values = results.values(ours, tests)
    if less is not None:
        values = [mine - theirs for mine, theirs in zip(values, results.values(less, tests), strict=True)]
    return over_seeds(values)


def _at(finished: dict[Cell, Finished], axis: Axis, move: dict[str, float], algorithm: str) -> list[Finished]:
    """The runs of all seeds at a setting; none where one is missing."""
    cells = [at(axis, move, algorithm, seed) for seed in SEEDS]
    return [finished[each] for each in cells] if all(each in finished for each in cells) else []


def _difference(ours: Sequence[Finished], theirs: Sequence[Finished], tests: Sequence[str]) -> Estimate:
    return over_seeds([_stack(ours, tests) - _stack(theirs, tests)])


def _stack(runs: Sequence[Finished], tests: Sequence[str]) -> Values:
    """(seeds, scenes): the mean over `tests`."""
    return np.stack([np.mean([run.outcomes[test] for test in tests], axis=0) for run in runs])


def _lines(points: Sequence[Point], measure: str) -> list[Series]:
    series = []
    for algorithm in dict.fromkeys(point.algorithm for point in points):
        those = [(point.setting, getattr(point, measure)) for point in points if point.algorithm == algorithm]
        low, high = ([100 * (value.mean + sign * value.half_width) for _, value in those] for sign in (-1, 1))
        settings, means = [setting for setting, _ in those], [100 * value.mean for _, value in those]
        series.append(Series(algorithm, settings, means, low, high))
    return series


def _points(value: Estimate) -> str:
    return f"{100 * value.mean:+.1f} ± {100 * value.half_width:.1f}"
