"""The reproduction's runner with real, very short runs, and its summary on outcomes that are made up."""

import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from beholder_training.data import read_records
from beholder_training.reproduce import page
from beholder_training.reproduce.cells import TEXT_ONLY, Base, Cell, Data
from beholder_training.reproduce.charts import map_points, map_section
from beholder_training.reproduce.claims import check
from beholder_training.reproduce.families import ALGORITHMS, CONTROLLED, CONTROLS, FAMILIES, MAP, SEEDS, at
from beholder_training.reproduce.outcomes import Finished, read_all, result_path, write_finished
from beholder_training.reproduce.places import Places, write_flipped
from beholder_training.reproduce.running import run_cells
from beholder_training.reproduce.summary import Results
from beholder_training.reproduce.writing import write_results
from beholder_training.worlds import ENVIRONMENTS, WorldSize

SCENES = WorldSize(seeing=64, train=64, test=64)


def short_cells() -> list[Cell]:
    """From a base that sees for two steps, and from scratch."""
    sees, scratch = Base(0, 2), Base(0)
    return [
        Cell(Data("length"), sees, "proxy_balanced", 0, steps=2, learning_rate=1e-3, warmup=1),
        Cell(Data("length"), scratch, "standard", 0, steps=2, learning_rate=1e-3),
        Cell(Data("length", flipped=0.5), scratch, TEXT_ONLY, 0, steps=2, learning_rate=1e-3),
    ]


def test_cells_are_run_once_and_a_lost_one_comes_back_the_same(tmp_path: Path) -> None:
    places, cells = Places(tmp_path, size=SCENES), short_cells()
    run_cells(cells, places, workers=2)
    paths = [result_path(tmp_path, cell) for cell in cells]
    contents = [json.loads(path.read_text()) for path in paths]
    assert contents[0]["outcomes"].keys() == {"iid", "cue_free", "cue_flipped", "hedging", "style"}
    assert {len(digits) for digits in contents[0]["outcomes"].values()} == {64}
    assert "weight_0.95" in contents[0]["history"][-1]
    written = [path.stat().st_mtime_ns for path in paths]
    paths[1].unlink()
    run_cells(cells, places, workers=1)
    assert [path.stat().st_mtime_ns for path in (paths[0], paths[2])] == [written[0], written[2]]
    again = json.loads(paths[1].read_text())
    assert (again["outcomes"], again["history"]) == (contents[1]["outcomes"], contents[1]["history"])


@pytest.mark.slow
def test_a_kill_leaves_whole_cells_and_no_workers(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; from beholder_training.reproduce.running import run_cells; "
        "from beholder_training.reproduce.places import Places; "
        "from tests.training.test_reproduce import SCENES, short_cells; "
        f"run_cells(short_cells(), Places(Path({str(tmp_path)!r}), size=SCENES), workers=2)"
    )
    run = subprocess.Popen([sys.executable, "-c", script])
    workers: set[int] = set()
    while run.poll() is None and not list(tmp_path.glob("cells/*.json")):
        workers |= set(children(run.pid))
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert workers
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, "workers outlive the run"
        time.sleep(0.1)
    for path in tmp_path.glob("cells/*.json"):
        json.loads(path.read_text())
    run_cells(short_cells(), Places(tmp_path, size=SCENES), workers=1)
    assert len(read_all(tmp_path, short_cells())) == 3


def children(pid: int) -> list[int]:
    """Of the process `pid`, by /proc."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


@pytest.mark.parametrize(
    "change",
    [
        {"algorithm": "sfc"},
        {"seed": 1},
        {"steps": 3},
        {"learning_rate": 2e-3},
        {"exponent": 0.5},
        {"warmup": 2},
        {"base": Base(1, 2)},
        {"base": Base(0, 3)},
        {"data": Data("length", cue=0.8)},
        {"data": Data("length", flipped=0.1)},
        {"data": Data("style")},
    ],
)
def test_another_recipe_is_another_cell(change: dict[str, Any]) -> None:
    cell = short_cells()[0]
    assert replace(cell, **change).name != cell.name


def test_the_main_family_is_what_was_asked_for() -> None:
    cells = FAMILIES["main"]()
    found = {(each.data.environment, each.algorithm, each.start, each.seed) for each in cells if each.exponent == 1}
    wanted: set[tuple[str, str, str, int]] = {
        (e, a, s, n) for e in ENVIRONMENTS for a in ALGORITHMS for s in ("sees", "scratch") for n in SEEDS
    }
    wanted |= {(e, a, "scratch", n) for e in ENVIRONMENTS for a in CONTROLS for n in SEEDS}
    wanted |= {(CONTROLLED, a, "sees", n) for a in CONTROLS for n in SEEDS}
    assert wanted <= found
    for start in ("sees", "scratch"):
        those = [each for each in cells if each.start == start and each.algorithm != TEXT_ONLY]
        assert len({(each.steps, each.learning_rate) for each in those}) == 1  # equal steps, equal tuning


def test_flipped_labels_turn_round_every_pair_of_their_prompts(world: Path) -> None:
    source = world / "length" / "train.jsonl"
    target = source.with_name("flipped.jsonl")
    write_flipped(source, target, share=0.25)
    kept, flipped = 0, 0
    for before, after in zip(read_records([source]), read_records([target]), strict=True):
        if before.pairs() == after.pairs():
            kept += 1
        else:
            assert after.pairs() == sorted((rejected, chosen) for chosen, rejected in before.pairs())
            flipped += 1
    assert 4 <= flipped <= 28
    assert kept + flipped == 64


def test_flipping_cuts_no_record_at_a_line_separator_in_it(tmp_path: Path) -> None:
    record = {"id": "1", "prompt": "a\u2028b\u0085c", "completions": {"annotations": [], "response": []}}
    source, target = tmp_path / "train.jsonl", tmp_path / "flipped.jsonl"
    source.write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
    write_flipped(source, target, share=1.0)
    assert json.loads(target.read_text()) == record


def made_up(accuracies: dict[str, tuple[float, float]], family: str = "main", scenes: int = 400) -> list[Finished]:
    """Every cell of a family with (i.i.d., other) accuracies by algorithm, or by algorithm^exponent."""
    rng, finished = np.random.default_rng(0), []
    for cell in FAMILIES[family]():
        known = accuracies.get(f"{cell.algorithm}^{cell.exponent:g}", accuracies.get(cell.algorithm))
        if known is None:
            continue
        tests = [*Places(Path(), Path()).tests(cell.data)] if cell.data.source != "grocery" else grocery_tests(cell)
        chances = [known[0] if test == "iid" else known[1] for test in tests]
        values = {test: (rng.random(scenes) < p).astype(float) for test, p in zip(tests, chances, strict=True)}
        finished.append(Finished(cell, values, [], 1.0))
    return finished


def grocery_tests(cell: Cell) -> list[str]:
    (other,) = {"verbose", "hedged"} - {cell.data.environment}
    return ["iid", "plain", other]


GOOD = {
    **dict.fromkeys(["standard", *CONTROLS], (0.95, 0.75)),
    "sfc": (0.94, 0.8),
    "proxy_balanced": (0.92, 0.9),
    "proxy_balanced^0.5": (0.945, 0.85),
}


@pytest.mark.parametrize("start", ["sees", "scratch"])
def test_claims_hold_where_the_outcomes_say_so(start: Any) -> None:
    claims = check(Results(made_up(GOOD)), start)
    assert [claim.holds for claim in claims] == [True] * 4
    bad = GOOD | {"proxy_balanced": (0.92, 0.755), "proxy_balanced^0.5": (0.9, 0.85)}
    claims = check(Results(made_up(bad)), start)
    assert [claim.holds for claim in claims] == [False] * 4


def test_sfd_is_of_the_text_only_baseline_on_the_same_data() -> None:
    results = Results(made_up(GOOD | {TEXT_ONLY: (0.9, 0.3)}))
    claims = check(results, "sees")
    assert "SFD" in claims[-1].title
    rows = page.tables(results, "sees")[0]
    assert all(row.sfd is not None and abs(row.sfd.degradation) < 0.1 for row in rows)  # made up without a shortcut


def test_a_half_finished_family_is_summarised_from_what_is_there() -> None:
    results = Results(made_up({"standard": (0.95, 0.75), "sfc": (0.94, 0.8)}))
    summary = json.loads(json.dumps(page.summary(results)))
    assert summary["claims"] == {"sees": [], "scratch": []}
    assert [row["variant"]["algorithm"] for row in summary["tables"]["sees"][0]] == ["standard", "sfc"]
    assert summary["differences_from_standard"]["sees"]["sfc"]["ood"]["mean"] == pytest.approx(0.05, abs=0.02)
    assert len(page.sections(results)) == 7
    assert page.sections(Results([]))


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("main", ("summary.json", "report.html")),
        ("noise", ("noise.json", "noise.html")),
        ("grocery", ("grocery.json",)),
    ],
)
def test_a_family_is_read_back_and_written(family: str, names: tuple[str, ...], tmp_path: Path) -> None:
    finished = made_up(GOOD, family, scenes=40)
    for each in finished:
        write_finished(tmp_path, each)
    write_results(family, FAMILIES[family](), Places(tmp_path))
    assert all((tmp_path / name).stat().st_size > 1000 for name in names)
    content = json.loads((tmp_path / names[0]).read_text())
    assert content["cells"] == {"finished": len(finished), "all": len(FAMILIES[family]())}
    again = read_all(tmp_path, FAMILIES[family]())
    assert {name: values.tolist() for name, values in again[0].outcomes.items()} == {
        name: values.tolist() for name, values in finished[0].outcomes.items()
    }


def test_grocery_means_are_over_both_cues_once_both_are_there(tmp_path: Path) -> None:
    finished = made_up(GOOD, "grocery")
    for each in finished:
        if each.cell.data.environment == "verbose":
            write_finished(tmp_path, each)
    write_results("grocery", FAMILIES["grocery"](), Places(tmp_path))
    assert json.loads((tmp_path / "grocery.json").read_text())["means"] == {}
    for each in finished:
        write_finished(tmp_path, each)
    write_results("grocery", FAMILIES["grocery"](), Places(tmp_path))
    means = json.loads((tmp_path / "grocery.json").read_text())["means"]["proxy_balanced"]
    assert means["i.i.d."]["mean"] == pytest.approx(0.92, abs=0.02)
    assert means["o.o.d."]["less_standard"]["mean"] == pytest.approx(0.15, abs=0.03)


def test_the_map_compares_runs_of_the_same_setting() -> None:
    points = map_points(made_up(GOOD, "map"))
    assert {point.axis for point in points} == {axis.name for axis in MAP}
    sfc = [point.ood_gain.mean for point in points if point.algorithm == "sfc"]
    assert len(sfc) == sum(len(axis.moves) for axis in MAP)
    assert sfc == pytest.approx([0.05] * len(sfc), abs=0.04)
    halves = [
        point for point in points if point.algorithm == "proxy_balanced" and point.axis == "exponent of the weight"
    ]
    assert [point.setting for point in halves] == [0.25, 0.5, 0.75, 1]
    assert halves[1].ood_gain.mean == pytest.approx(0.1, abs=0.04)
    assert halves[3].ood_gain.mean == pytest.approx(0.15, abs=0.04)
    assert not map_points(each for each in made_up(GOOD, "map") if each.cell.seed > 0)  # a seed is missing


def test_the_map_shows_an_axis_once_it_has_two_settings() -> None:
    def size(finished: Iterable[Finished]) -> tuple[int, int]:
        (drawing,) = map_section(map_points(finished)).drawings
        return Image.open(io.BytesIO(drawing.png)).size

    cells = list(made_up(GOOD, "map"))
    centre = [each for each in cells if each.cell == recipe(each.cell)]
    seeing = [each for each in cells if replace(each.cell, base=recipe(each.cell).base) == recipe(each.cell)]
    assert not map_section(map_points(centre)).drawings
    (panel_wide, panel_high), whole = size(seeing), size(cells)
    assert whole == (3 * panel_wide, 2 * panel_high)


def recipe(cell: Cell) -> Cell:
    """The same run with none of the map's settings moved."""
    axis = next(axis for axis in MAP if axis.start == cell.start)
    return at(axis, {}, cell.algorithm, cell.seed)
