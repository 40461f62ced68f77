"""An Evaluation -> evaluation.json, PNG figures and report.html in one folder."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from beholder.errors import DataError
from beholder_training.evaluation.ablations import ABLATIONS
from beholder_training.evaluation.metrics import SFD_FORMULA
from beholder_training.evaluation.statistics import Estimate, with_interval
from beholder_training.evaluation.suite import Evaluation, Result
from beholder_training.report.figures import Series, bars, heat_map, histogram, lines, reliability_plot, weight_series
from beholder_training.report.gallery import disagreements
from beholder_training.report.page import Drawing, Headline, Section, Table, render

PAGE_NAME, JSON_NAME = "report.html", "evaluation.json"


def check_output(folder: Path) -> None:
    """Raises DataError when `folder` is there and is no former report."""
    if folder.exists() and not (folder / JSON_NAME).is_file():
        raise DataError(f"{folder} exists and holds no report: choose another --output")


def write_report(evaluation: Evaluation, folder: Path) -> None:
    """A former report is replaced. Raises DataError when `folder` is something else."""
    check_output(folder)
    sections = make_sections(evaluation)
    folder.mkdir(parents=True, exist_ok=True)
    for drawing in (drawing for section in sections for drawing in section.drawings):
        (folder / f"{drawing.name}.png").write_bytes(drawing.png)
    (folder / JSON_NAME).write_text(json.dumps(evaluation.to_json(), indent=2) + "\n")
    models, tests = (", ".join(each.name for each in some) for some in (evaluation.models, evaluation.tests))
    lead = f"{models}, tested on {tests}. Accuracies are over pairs, with 95% intervals."
    page = render("Reward models under test", lead, _headlines(evaluation), sections)
    (folder / PAGE_NAME).write_text(page, encoding="utf-8", errors="replace")  # an id may hold half a character


def make_sections(evaluation: Evaluation) -> list[Section]:
    """Those parts for which there is something to show."""
    sections = [_accuracy(evaluation), _rests_on(evaluation), _margins(evaluation), _calibration(evaluation)]
    optional = (_best_of_n(evaluation), _weights(evaluation), _gallery(evaluation))
    return sections + [section for section in optional if section is not None]


def _headlines(evaluation: Evaluation) -> list[Headline]:
    found = []
    for model in evaluation.models:
        iid, ood = evaluation.mean(model.name, "iid"), evaluation.mean(model.name, "ood")
        if iid is not None and ood is not None:
            found.append(Headline(f"{ood:.1%}", f"{model.name}, mean o.o.d.", f"{iid:.1%} i.i.d."))
        else:
            rows = [row.accuracy.mean for row in evaluation.results if row.model == model.name]
            note = f"mean of {len(rows)} test sets" if len(rows) > 1 else evaluation.tests[0].name
            found.append(Headline(f"{sum(rows) / len(rows):.1%}", f"{model.name}, accuracy", note))
    for each in evaluation.differences:
        if each.difference.excludes_zero:
            title = f"{each.model} − {each.reference} on {each.test}"
            good = each.difference.mean > 0
            found.append(Headline(_points(each.difference), title, "points, same pairs", good))
    return found


def _accuracy(evaluation: Evaluation) -> Section:
    models, tests = [each.name for each in evaluation.models], [each.name for each in evaluation.tests]
    cells = [[evaluation.result(model, test) for test in tests] for model in models]
    values = [[cell.accuracy.mean for cell in row] for row in cells]
    framed = [(i, j) for i, row in enumerate(cells) for j, cell in enumerate(row) if cell.distribution == "iid"]
    caption = "Accuracy in per cent: models by test sets."
    matrix = Drawing("matrix", heat_map(models, tests, values, framed), caption + (" Framed: i.i.d." if framed else ""))
    chart = Drawing("accuracy", bars(tests, _by_model(evaluation, lambda r: r.accuracy), "accuracy"), "With intervals.")
    rows = [[test, *(str(evaluation.result(model, test).accuracy) for model in models)] for test in tests]
    tables = [Table(["test set", *models], rows)]
    if evaluation.differences:
        header = ["difference", "test set", "points"]
        differences = [
            [
                f"{d.model} − {d.reference}",
                d.test,
                _points(d.difference),
            ]
            for d in evaluation.differences
        ]
        tables.append(Table(header, differences, "On the same pairs."))
    return Section("Accuracy, trained on one distribution and tested on others", "", [matrix, chart], tables)


def _rests_on(evaluation: Evaluation) -> Section:
    """Ablations, the text-only model, and SFD."""
    header = ["model", "test set", "accuracy", *(ablation.title for ablation in ABLATIONS.values())]
    header += ["text-only model", "SFD", "text right", "text wrong"]
    rows = [
        [row.model, row.test, str(row.accuracy), *(_text(row.ablations.get(name)) for name in ABLATIONS), *_sfd(row)]
        for row in evaluation.results
    ]
    drawings = [
        Drawing(f"ablations-{number}", _ablation_bars(evaluation, model.name), model.name)
        for number, model in enumerate(evaluation.models)
    ]
    text = SFD_FORMULA + " With the responses removed as well every pair is a tie, 0.5 by construction."
    return Section("What the accuracy rests on", text, drawings, [Table(header, rows)])


def _ablation_bars(evaluation: Evaluation, model: str) -> bytes:
    """One model's accuracy as it is, and with a part of the input gone."""
    rows = [row for row in evaluation.results if row.model == model]
    series: dict[str, list[Estimate | None]] = {"as it is": [row.accuracy for row in rows]}
    for name, ablation in ABLATIONS.items():
        series[ablation.title.removeprefix("same model, ")] = [row.ablations.get(name) for row in rows]
    if any(row.text_only for row in rows):
        series["text-only model"] = [row.text_only for row in rows]
    return bars([row.test for row in rows], series, "accuracy")


def _sfd(row: Result) -> list[str]:
    if row.sfd is None:
        return [_text(row.text_only), "–", "–", "–"]
    sfd = with_interval(f"{100 * row.sfd.degradation:+.1f}", 100 * row.sfd.half_width, digits=1)
    return [_text(row.text_only), sfd, str(row.sfd.right), str(row.sfd.wrong)]


def _margins(evaluation: Evaluation) -> Section:
    label = "margin: reward(chosen) − reward(rejected)"
    drawings = []
    for number, test in enumerate(evaluation.tests):
        values = {model.name: evaluation.result(model.name, test.name).values for model in evaluation.models}
        drawings.append(Drawing(f"margins-{number}", histogram(values, label), test.name))
    rows = [
        [row.model, row.test, f"{row.margins.mean:+.3f}", f"{row.margins.deviation:.3f}",
         *(f"{value:+.3f}" for value in row.margins.quantiles.values())]
        for row in evaluation.results
    ]  # fmt: skip
    quantiles = [f"{float(level):.0%}" for level in evaluation.results[0].margins.quantiles]
    return Section("Margins", "", drawings, [Table(["model", "test set", "mean", "deviation", *quantiles], rows)])


def _calibration(evaluation: Evaluation) -> Section:
    drawings = [
        Drawing(
            f"calibration-{number}",
            reliability_plot({m.name: evaluation.result(m.name, test.name).reliability for m in evaluation.models}),
            test.name,
        )
        for number, test in enumerate(evaluation.tests)
    ]
    rows = [[row.model, row.test, f"{row.calibration_error:.3f}"] for row in evaluation.results]
    text = "sigmoid(margin) as the probability that the chosen response is the better one, in bins of equal size."
    return Section("Calibration", text, drawings, [Table(["model", "test set", "expected calibration error"], rows)])


def _best_of_n(evaluation: Evaluation) -> Section | None:
    drawings = []
    for number, test in enumerate(evaluation.tests):
        curves = [
            Series(row.model, [*range(1, len(row.best_of_n) + 1)], *_band(row.best_of_n))
            for row in evaluation.results
            if row.test == test.name and row.best_of_n
        ]
        if curves:
            several = sum(len(record.responses) > 2 for record in test.records)
            left = f", its {several} of {len(test.records)} records with more than two responses"
            caption = test.name + (left if several < len(test.records) else "")
            chart = lines(curves, "N", "mean quality of the best of N")
            drawings.append(Drawing(f"best-of-n-{number}", chart, caption))
    text = "The response with the highest reward among N drawn ones, and how good it really is, with 95% bands."
    return Section("Best of N", text, drawings) if drawings else None


def _weights(evaluation: Evaluation) -> Section | None:
    """The weights of pairs while training, mean and the range from 5% to 95%."""
    named = [(f"{model.name} ({model.algorithm})", model.history) for model in evaluation.models]
    curves = [curve for name, history in named if (curve := weight_series(name, history)) is not None]
    if not curves:
        return None
    text = "Mean weight of a pair since the log line before, and 5% and 95% quantiles; for SFC this is the coefficient."
    return Section("Weights over training", text, [Drawing("weights", lines(curves, "step", "weight"), "")])


def _gallery(evaluation: Evaluation) -> Section | None:
    if len(evaluation.models) < 2:
        return None
    first, second = evaluation.models[0].name, evaluation.models[1].name
    gallery = disagreements(evaluation, first, second)
    title = f"Where {first} and {second} disagree"
    return Section(title, "The widest differences first, won by either in turn.", gallery=gallery) if gallery else None


def _band(estimates: Sequence[Estimate]) -> tuple[list[float], list[float], list[float]]:
    means = [each.mean for each in estimates]
    low, high = ([each.mean + sign * each.half_width for each in estimates] for sign in (-1, 1))
    return means, low, high


def _by_model(evaluation: Evaluation, value: Callable[[Result], Estimate]) -> dict[str, list[Estimate | None]]:
    return {
        model.name: [value(evaluation.result(model.name, test.name)) for test in evaluation.tests]
        for model in evaluation.models
    }


def _points(difference: Estimate) -> str:
    return with_interval(f"{100 * difference.mean:+.1f}", 100 * difference.half_width, digits=1)


def _text(value: Estimate | None) -> str:
    return "–" if value is None else str(value)
