"""Summary and report of the main family: what must hold, tables, matrices, and the paper's figures beside ours."""

from dataclasses import asdict
from typing import Any

import numpy as np

from beholder_training.evaluation.metrics import SFD_FORMULA
from beholder_training.evaluation.statistics import Estimate
from beholder_training.report.figures import Series, bars, heat_map, lines, weight_series
from beholder_training.report.page import Drawing, Headline, Section, Table
from beholder_training.reproduce import published
from beholder_training.reproduce.cells import Start
from beholder_training.reproduce.claims import check
from beholder_training.reproduce.families import CONTROLLED
from beholder_training.reproduce.summary import Failure, Results, Row, difference, lowest_cell, matrix, row
from beholder_training.worlds import ENVIRONMENTS

STARTS: dict[Start, str] = {"sees": "From a base that sees", "scratch": "From scratch"}
TESTS = ("iid", "ood", "cue_free", "cue_flipped", "other_environments")
TITLES = ("i.i.d.", "o.o.d.", "cue-free", "cue turned round", "other environments")
INTERVALS = (
    "o.o.d. is the mean of the cue turned round and the two other environments. Intervals (95%) are for new seeds and "
    "new scenes, with the environments given; differences are between runs of the same seed on the same scenes."
)


def tables(results: Results, start: Start) -> list[list[Row]]:
    """Rows by the environments that they were trained on: all of them first, then the controls beside the same rows."""
    variants = results.variants(start)
    found = []
    for environments in dict.fromkeys(tuple(results.environments(variant)) for variant in variants):
        those = [each for each in variants if set(environments) <= set(results.environments(each))]
        found.append([row(results, each, environments) for each in those])
    return found


def summary(results: Results) -> dict[str, Any]:
    """build/reproduce/summary.json."""
    return {
        "sfd_formula": SFD_FORMULA,
        "intervals": INTERVALS,
        "claims": {start: [asdict(claim) for claim in check(results, start)] for start in STARTS},
        "tables": {start: [[asdict(each) for each in rows] for rows in tables(results, start)] for start in STARTS},
        "differences_from_standard": {start: _differences(results, start) for start in STARTS},
        "matrix": {start: {each.label: matrix(results, each) for each in results.variants(start)} for start in STARTS},
        "published": {"accuracy": published.ACCURACY, "sfd": published.SFD, "lowest_ood_cell": published.LOWEST_CELL},
    }


def _differences(results: Results, start: Start) -> dict[str, Any]:
    """Every other variant's difference from standard training, on the environments that it was trained on."""
    variants = results.variants(start)
    standard = next((each for each in variants if each.algorithm == "standard"), None)
    if standard is None:
        return {}
    found = {}
    for each in variants:
        environments = results.environments(each)
        if each != standard and set(environments) <= set(results.environments(standard)):
            found[each.label] = {
                "environments": environments,
                "iid": asdict(difference(results, each, standard, environments, ["iid"])),
                "ood": asdict(difference(results, each, standard, environments)),
            }
    return found


def sections(results: Results) -> list[Section]:
    """The report's parts."""
    found = [_beside_the_paper(results)]
    for start, title in STARTS.items():
        if results.variants(start):
            found += [_accuracies(results, start, title), _matrices(results, start, title)]
            found += [_over_time(results, start, title)]
    return found


def headlines(results: Results) -> list[Headline]:
    """The claims."""
    return [
        Headline(points(claim.value), f"{STARTS[start]}: {claim.title}", claim.wanted, claim.holds)
        for start in STARTS
        for claim in check(results, start)
    ]


def _accuracies(results: Results, start: Start, title: str) -> Section:
    drawings, shown = [], []
    for number, rows in enumerate(tables(results, start)):
        series = {each.variant.label: [getattr(each, test) for test in TESTS] for each in rows}
        caption = f"Trained on {', '.join(rows[0].environments)}; {len(rows[0].ood_by_seed)} seeds."
        drawings.append(Drawing(f"{start}-accuracy-{number}", bars(TITLES, series, "accuracy"), caption))
        header = ["weighting", *TITLES, "o.o.d. deviation over seeds", "SFD", "text right", "text wrong"]
        shown.append(Table(header, [_cells(each) for each in rows], caption))
    return Section(title, INTERVALS, drawings, shown)


def _cells(each: Row) -> list[str]:
    values = [str(getattr(each, test)) for test in TESTS]
    sfd = ["–"] * 3
    if each.sfd is not None:
        sfd = [f"{100 * each.sfd.degradation:+.1f}", f"{each.sfd.right:.3f}", f"{each.sfd.wrong:.3f}"]
    return [each.variant.label, *values, f"{np.std(each.ood_by_seed, ddof=1):.3f}", *sfd]


def _matrices(results: Results, start: Start, title: str) -> Section:
    drawings = []
    for number, each in enumerate(results.variants(start)):
        if results.environments(each) != sorted(ENVIRONMENTS):
            continue
        cells = matrix(results, each)
        values = [[cells[trained][tested] for tested in ENVIRONMENTS] for trained in ENVIRONMENTS]
        diagonal = [(place, place) for place in range(len(ENVIRONMENTS))]
        drawings.append(
            Drawing(f"{start}-matrix-{number}", heat_map(ENVIRONMENTS, ENVIRONMENTS, values, diagonal), each.label)
        )
    text = "Rows: trained on. Columns: tested on. Mean accuracy over seeds, in per cent; i.i.d. is framed."
    return Section(f"{title}: the cross-distribution matrix", text, drawings)


def _over_time(results: Results, start: Start, title: str) -> Section:
    """Weights, and i.i.d. accuracy in training, of the first seed on one environment."""
    trained = [each for each in results.variants(start) if CONTROLLED in results.environments(each)]
    first = [(each.label, results.runs(each, CONTROLLED)[0].history) for each in trained]
    weights = [curve for label, history in first if (curve := weight_series(label, history)) is not None]
    accuracy = []
    for label, history in first:
        logged = [line for line in history if "accuracy" in line]
        accuracy.append(Series(label, [line["step"] for line in logged], [line["accuracy"] for line in logged]))
    drawings = [
        Drawing(f"{start}-weights", lines(weights, "step", "weight"), "Mean weight of a pair; bands from 5% to 95%."),
        Drawing(f"{start}-training", lines(accuracy, "step", "accuracy in training"), "Pairs of the training data."),
    ]
    return Section(f"{title}: over training", f"Trained on {CONTROLLED}, first seed.", drawings)


def _beside_the_paper(results: Results) -> Section:
    """The published means and ours. The models and data are others: what compares is the direction and the gap."""
    header = ["", "mean i.i.d.", "mean o.o.d.", "lowest o.o.d. cell", "SFD, mean (range)"]
    rows = []
    for name, each in published.ACCURACY.items():
        accuracies = [f"{value:.1f}" for value in each.values()]
        rows.append([f"published, {name}", *accuracies, "–", published.SFD[name]])
    for start, title in STARTS.items():
        for line in next(iter(tables(results, start)), []):
            values = (line.iid.mean, line.ood.mean, lowest_cell(results, line.variant))
            accuracies = [f"{100 * value:.1f}" for value in values]
            rows.append([f"{title}, {line.variant.label}", *accuracies, _sfd(line.sfd)])
    text = (
        "Published: models of 2B to 8B parameters on human and AI preferences. Ours: a tiny model on rendered scenes "
        "with injected cues. What compares is the direction and the size of the gap, not the level. "
        f"The lowest published o.o.d. cell is {published.LOWEST_CELL}. " + SFD_FORMULA
    )
    return Section("Beside the published figures", text, tables=[Table(header, rows, "Pair accuracy in per cent.")])


def _sfd(value: Failure | None) -> str:
    if value is None:
        return "–"
    mean, lowest, highest = (f"{100 * each:.1f}" for each in (value.degradation, value.lowest, value.highest))
    return f"{mean} ({lowest} to {highest})"


def points(value: Estimate | float) -> str:
    if isinstance(value, Estimate):
        return f"{100 * value.mean:+.1f} ± {100 * value.half_width:.1f}"
    return f"{100 * value:+.1f}"
