"""benchmarks/RESULTS.md says what the JSON files say."""

import json
from pathlib import Path
from typing import Any

from benchmarks.results_page import CUDA, PAGE, page

FOUND: dict[str, Any] = {
    "command": "python -m benchmarks.gpu.training",
    "rows": [{"schedule": "packed", "peak_gib": 71.234, "first_loss": None}],
    "ratios": {"packed_vs_published": 9.5},
    "card": {"name": "NVIDIA H200"},
    "machine": "x86_64, 16 cores",
    "versions": {"torch": "2.11.0"},
    "commit": "0123456789abcdef+",
}


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run `python -m benchmarks.results_page`"


def test_a_cards_file_is_a_section_and_what_has_none_is_named(tmp_path: Path) -> None:
    assert "CUDA: not run.\n" in page(tmp_path)
    (tmp_path / "gpu_training.json").write_text(json.dumps(FOUND))
    text = page(tmp_path)
    head = "`python -m benchmarks.gpu.training`, NVIDIA H200, x86_64, 16 cores; torch 2.11.0; commit 0123456789ab+\n"
    assert f"## gpu_training\n\n{head}" in text
    assert "| schedule | peak_gib | first_loss |\n|---|---|---|\n| packed | 71.2 | - |\n" in text
    assert "| packed_vs_published | 9.50 |  |" in text
    missing = text.split("CUDA: not run: ")[1].split(".\n")[0]
    assert missing.split(", ") == [what for name, what in CUDA.items() if name != "gpu_training"]


def test_a_card_that_ran_everything_leaves_nothing_to_say(tmp_path: Path) -> None:
    for name in CUDA:
        (tmp_path / f"{name}_2b.json").write_text(json.dumps(FOUND))
    assert "not run" not in page(tmp_path)
