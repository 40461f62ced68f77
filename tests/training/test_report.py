"""`beholder-train evaluate` on real checkpoints: the numbers, the files, and a page that hostile text cannot break."""

import json
import re
from html.parser import HTMLParser
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from beholder.modeling.reward_model import RewardModel
from beholder_training.branch import Branch
from beholder_training.cli import main
from beholder_training.data import read_records
from beholder_training.evaluation.ablations import ABLATIONS
from beholder_training.evaluation.inputs import read_models, read_tests
from beholder_training.evaluation.suite import evaluate
from beholder_training.export import export
from beholder_training.report.evaluation import write_report
from beholder_training.report.figures import heat_map
from beholder_training.report.page import Exhibit, Section, render
from beholder_training.worlds import COLOURS, STYLES, phrase
from tests.pictures import png
from tests.training.hostile import PAIR, rated

HOSTILE = "</p><script>alert('x')</script><img src=http://evil.example/x.png onerror=alert(1)> {{ 7 * 7 }} $x_{$"


@pytest.fixture(scope="module")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, world: Path) -> Path:
    """Another untrained model, with its proxy and a history."""
    torch.manual_seed(1)
    branch, proxy = (Branch.from_base(str(tiny_base), sees_images=sees) for sees in (True, False))
    for each in (branch, proxy):
        torch.nn.init.normal_(each.model.score.weight, std=0.5)
    folder = tmp_path_factory.mktemp("checkpoints") / "other"
    export(
        branch,
        folder,
        read_records([world / "length" / "responses.jsonl"])[:16],
        base_model="tiny",
        algorithm="sfc",
        data_fingerprint="0" * 64,
        proxy=proxy,
        history=[{"step": 1, "weight": 0.5, "weight_0.05": 0.4, "weight_0.95": 0.6}, {"step": 2, "weight": 0.6}],
    )
    return folder


@pytest.fixture(scope="module")
def report(
    tiny_checkpoint: Path, other_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, world: Path
) -> Path:
    folder = tmp_path_factory.mktemp("report") / "out"
    files = [world / "length" / name for name in ("iid.jsonl", "responses.jsonl")]
    paths = [tiny_checkpoint, other_checkpoint, *files]
    assert main(["evaluate", *map(str, paths), "--output", str(folder), "--iid", "tiny=iid", "other=iid"]) == 0
    return folder


def test_the_json_has_every_model_on_every_test_set(report: Path, tiny_checkpoint: Path, world: Path) -> None:
    content = json.loads((report / "evaluation.json").read_text())
    assert [(each["model"], each["test"], each["distribution"]) for each in content["results"]] == [
        (model, test, "iid" if test == "iid" else "ood") for model in ("tiny", "other") for test in ("iid", "responses")
    ]
    records = read_records([world / "length" / "iid.jsonl"])
    scores = Branch.from_checkpoint(tiny_checkpoint).score(records)
    expected = np.mean([(np.sign(chosen - rejected) + 1) / 2 for chosen, rejected in scores])
    first = content["results"][0]
    assert first["accuracy"]["mean"] == pytest.approx(expected)
    assert first["ablations"].keys() == ABLATIONS.keys()
    assert first["text_only"] is None  # this model has no proxy/
    assert content["results"][2]["text_only"] is not None
    assert len(content["results"][1]["best_of_n"]) == 4
    assert "reconstruction" in content["sfd_formula"]


def test_ablations_take_away_what_they_say(tiny_checkpoint: Path, world: Path) -> None:
    records = read_records([world / "length" / "iid.jsonl"])[:8]
    branch = Branch.from_checkpoint(tiny_checkpoint)
    changed = {name: ablation.change(branch, records) for name, ablation in ABLATIONS.items()}
    scores = {name: pair[0].score(pair[1]) for name, pair in changed.items() if pair is not None}
    assert len(scores) == len(ABLATIONS)
    whole = branch.score(records)
    assert all(each != whole for each in scores.values())
    shown = changed["with_other_images"]
    assert shown is not None
    assert all(ours.images != other.images for ours, other in zip(records, shown[1], strict=True))
    blind = changed["without_images"]
    assert blind is not None
    assert blind[0].score(shown[1]) == scores["without_images"]  # the pictures make no difference any more


def test_the_accelerator_holds_one_model_at_a_time(
    tiny_checkpoint: Path, other_checkpoint: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerator = torch.device("cpu", 0)  # told from torch.device("cpu"), and the same memory
    there: set[RewardModel] = set()
    scored: list[bool] = []
    score, to = Branch.score, RewardModel.to

    def move(model: RewardModel, where: torch.device) -> RewardModel:
        (there.add if where == accelerator else there.discard)(model)
        return to(model, where)

    def look(branch: Branch, *arguments: Any, **options: Any) -> Any:
        scored.append(there == {branch.model})
        return score(branch, *arguments, **options)

    monkeypatch.setattr("beholder_training.branch.device", lambda: accelerator)
    monkeypatch.setattr(RewardModel, "to", move)
    monkeypatch.setattr(Branch, "score", look)
    assert main(["evaluate", str(tiny_checkpoint), str(other_checkpoint), str(world / "length" / "iid.jsonl")]) == 0
    assert scored == [True] * 3  # two models and the proxy of one
    assert not there


def write_lines(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_what_check_data_finds_is_left_out_and_counted(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "good.png").write_bytes(png())
    partly = rated(("A", "N/A"), ("B", "1"), ("C", "4"))
    equal, tied = {**PAIR, "rejected": PAIR["chosen"]}, rated(("A", "3"), ("B", "3"))
    file = write_lines(tmp_path / "test.jsonl", PAIR, equal, partly, tied)
    assert main(["evaluate", str(tiny_checkpoint), str(file), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert "over 2 pairs" in printed.out
    assert f"{file}: left out: 2 ties-only, 1 duplicate-response, 1 non-numeric-rating" in printed.err
    (test,) = json.loads((tmp_path / "out" / "evaluation.json").read_text())["tests"]
    assert (test["records"], len(test["left_out"])) == (2, 4)
    assert test["left_out"][0].startswith(f"{file}:2: duplicate-response: ")


def test_one_record_is_reported_without_an_interval(
    tiny_checkpoint: Path, other_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "good.png").write_bytes(png())
    file = write_lines(tmp_path / "test.jsonl", rated(("A", "1"), ("B", "2"), ("C", "3")))
    models = [str(tiny_checkpoint), str(other_checkpoint)]
    assert main(["evaluate", *models, str(file), "--output", str(tmp_path / "out")]) == 0
    assert "(no interval) over 3 pairs" in capsys.readouterr().out
    text = (tmp_path / "out" / "evaluation.json").read_text()
    content = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    result = content["results"][0]
    widths = [part["half_width"] for part in (result["accuracy"], content["differences"][0]["difference"])]
    assert [*widths, *(each["half_width"] for each in result["best_of_n"])] == [None] * 5
    page = (tmp_path / "out" / "report.html").read_text()
    assert "(no interval)" in page
    assert "nan" not in re.sub(r'base64,[^"]*', "", page)


def test_best_of_n_is_of_the_records_with_more_than_two_responses(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(png())
    three, four = (rated(*((text, str(ord(text))) for text in texts)) for texts in ("ABC", "ABCD"))
    file = write_lines(tmp_path / "test.jsonl", PAIR, three, four)
    assert main(["evaluate", str(tiny_checkpoint), str(file), "--output", str(tmp_path / "out")]) == 0
    (result,) = json.loads((tmp_path / "out" / "evaluation.json").read_text())["results"]
    assert [each["count"] for each in result["best_of_n"]] == [2, 2, 2]
    assert "its 2 of 3 records with more than two responses" in (tmp_path / "out" / "report.html").read_text()


def test_a_bad_image_in_any_test_set_is_found_before_anything_is_scored(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Branch, "score", lambda *arguments, **options: pytest.fail("scored"))
    (tmp_path / "good.png").write_bytes(png())
    (tmp_path / "broken.png").write_bytes(b"no picture")
    first, second = write_lines(tmp_path / "first.jsonl", PAIR), tmp_path / "second.jsonl"
    write_lines(second, PAIR, {**PAIR, "img_path": "broken.png"})
    assert main(["evaluate", str(tiny_checkpoint), str(first), str(second)]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{second}:2: unreadable-image: image {tmp_path / 'broken.png'}" in error
    assert "1 unreadable-image in all: list them with `beholder-train check-data`" in error


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.urls += [value or "" for name, value in attributes if name in ("src", "href")]
        assert not [name for name, _ in attributes if name.startswith("on")]


def test_the_page_is_self_contained(report: Path) -> None:
    page = (report / "report.html").read_text()
    parser = _Parser()
    parser.feed(page)
    assert not parser.tags & {"script", "link", "iframe", "object"}
    assert parser.urls
    assert all(url.startswith("data:image/png;base64,") for url in parser.urls)
    for title in ("tested on others", "rests on", "Calibration", "Best of N", "Weights over training", "disagree"):
        assert re.search(f"<h2>.*{title}.*</h2>", page), title
    for drawing in ("matrix", "accuracy", "ablations-0", "calibration-0", "best-of-n-1", "weights"):
        with Image.open(report / f"{drawing}.png") as image:
            assert image.format == "PNG"


def test_what_records_hold_is_shown_as_text(tiny_checkpoint: Path, other_checkpoint: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / "red.png")
    pair = {"id": f"{HOSTILE}\ud800", "prompt": HOSTILE, "img_path": "red.png"}
    styles = list(permutations(STYLES, 2)) * 3  # texts that are unlike enough for two models to disagree on some
    lines = [
        pair | {"chosen": f"{HOSTILE} {phrase(first, ours)}", "rejected": f"{HOSTILE} {phrase(second, theirs)}"}
        for (ours, theirs), (first, second) in zip(styles, permutations(COLOURS, 2), strict=False)
    ]
    (tmp_path / "$t$.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    models, tests = read_models([tiny_checkpoint, other_checkpoint]), read_tests([tmp_path / "$t$.jsonl"])
    write_report(evaluate(models, tests, {}, ablate=False), tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    parser = _Parser()
    parser.feed(page)
    assert "script" not in parser.tags
    assert all(url.startswith("data:image/png;base64,") for url in parser.urls)
    assert "{{ 7 * 7 }}" in page
    assert "&lt;script&gt;" in page


def test_an_exhibit_shows_its_texts_escaped() -> None:
    exhibit = Exhibit(HOSTILE, ["data:image/png;base64,AA=="], HOSTILE, HOSTILE, HOSTILE, [(HOSTILE, 1.0)])
    page = render(HOSTILE, HOSTILE, [], [Section(HOSTILE, gallery=[exhibit])])
    parser = _Parser()
    parser.feed(page)
    assert "script" not in parser.tags
    assert parser.urls == ["data:image/png;base64,AA=="]


def test_a_formula_in_a_name_is_drawn_as_it_is() -> None:
    assert heat_map(["$x_{$"], [r"\frac$"], [[0.5]]).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["{checkpoint}"], "give at least one checkpoint (a folder) and one test set"),
        (["{checkpoint}", "{test}", "--iid", "tiny=magic"], "no test set is called 'magic': use one of iid"),
        (["{checkpoint}", "{test}", "--output", "{checkpoint}"], "holds no report: choose another --output"),
        (["{checkpoint}", "{test}", "{test}"], "a path is given twice"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, tiny_checkpoint: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {"checkpoint": tiny_checkpoint, "test": world / "length" / "iid.jsonl"}
    assert main(["evaluate", *(each.format(**paths) for each in arguments)]) == 1
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
