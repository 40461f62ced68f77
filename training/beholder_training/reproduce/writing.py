"""The finished cells of a family -> its JSON, its report, and a table on the terminal."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from beholder_training.report.page import Headline, Section, render
from beholder_training.reproduce import charts, page
from beholder_training.reproduce.cells import Cell
from beholder_training.reproduce.families import NOISE
from beholder_training.reproduce.outcomes import Finished, read_all, write_text
from beholder_training.reproduce.places import Places
from beholder_training.reproduce.provenance import provenance
from beholder_training.reproduce.summary import Results

Written = tuple[dict[str, Any], list[Headline], list[Section]]
LEAD = "{finished} of {cells} training runs; together they took {minutes:.0f} minutes on one thread each."
TITLE = "What makes a reward model look at the picture"


def write_results(family: str, cells: Sequence[Cell], places: Places) -> None:
    """summary.json and report.html for the main family, FAMILY.json and FAMILY.html for another."""
    finished = read_all(places.root, cells)
    if not finished:
        print(f"{family}: no cell is finished yet")
        return
    names = ("summary.json", "report.html") if family == "main" else (f"{family}.json", f"{family}.html")
    seconds = sum(each.seconds for each in finished)
    extra = {**provenance(), "cell_seconds": round(seconds), "cells": {"finished": len(finished), "all": len(cells)}}
    content, headlines, sections = BUILDERS[family](finished)
    lead = LEAD.format(finished=len(finished), cells=len(cells), minutes=seconds / 60)
    write_text(places.root / names[0], json.dumps(extra | content, indent=1) + "\n")
    write_text(places.root / names[1], render(TITLE, lead, headlines, sections))
    for drawing in (drawing for section in sections for drawing in section.drawings):
        (places.root / f"{family}-{drawing.name}.png").write_bytes(drawing.png)
    for headline in headlines:
        state = "" if headline.good is None else "holds: " if headline.good else "DOES NOT HOLD: "
        print(f"{state}{headline.title}: {headline.value} ({headline.note})")
    print(f"wrote {', '.join(str(places.root / name) for name in names)}")


def _main(finished: Sequence[Finished]) -> Written:
    results = Results(finished)
    return page.summary(results), page.headlines(results), page.sections(results)


def _map(finished: Sequence[Finished]) -> Written:
    points = charts.map_points(finished)
    return {"points": [asdict(point) for point in points]}, [], [charts.map_section(points)] if points else []


def _noise(finished: Sequence[Finished]) -> Written:
    results = Results(finished)
    text = f"{NOISE:.0%} of the training prompts have their labels turned round; the tests do not. {page.INTERVALS}"
    return {"accuracy": charts.accuracies(results)}, [], [charts.by_test_set(results, "Label noise", text)]


def _grocery(finished: Sequence[Finished]) -> Written:
    results = Results(finished)
    text = (
        "Photos of groceries with preferences from their class labels and injected cues; the base was taught to see on "
        "the plain preferences. verbose and hedged are each other's o.o.d. test; plain has no cue."
    )
    means = charts.over_environments(results, GROCERY_MEANS, "Means over training on verbose and on hedged.")
    alone = charts.by_test_set(results, "Grocery photos", text)
    content = {"means": charts.means(results, GROCERY_MEANS), "accuracy": charts.accuracies(results)}
    return content, [], [replace(alone, tables=[*means, *alone.tables])]


GROCERY_MEANS: dict[str, charts.Tests] = {
    "i.i.d.": {"verbose": ["iid"], "hedged": ["iid"]},
    "plain": {"verbose": ["plain"], "hedged": ["plain"]},
    "o.o.d.": {"verbose": ["hedged"], "hedged": ["verbose"]},
}
BUILDERS: dict[str, Callable[[Sequence[Finished]], Written]] = {
    "main": _main,
    "map": _map,
    "noise": _noise,
    "grocery": _grocery,
}
