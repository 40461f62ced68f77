"""benchmarks/RESULTS.md from benchmarks/results/*.json, so that no figure is copied by hand.

    python -m benchmarks.results_page

Every file with `ratios` has a section: ratio, spread where rounds were measured, machine, versions, commit.
"""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent / "RESULTS.md"
HEAD = """# Measured

Ratios of two rates in one run on one machine; absolute times depend on the machine and are in the JSON files beside
this page, which `python -m benchmarks.results_page` writes. A "+" after a commit means uncommitted changes.
CUDA: not run.
"""


def page(results: Path = RESULTS) -> str:
    """The whole page."""
    sections = [
        _section(path.stem, found)
        for path in sorted(results.glob("*.json"))
        if isinstance(found := json.loads(path.read_text()), dict) and "ratios" in found
    ]
    return "\n".join([HEAD, *sections])


def _section(name: str, found: dict[str, Any]) -> str:
    spread = found.get("spread", {})
    rows = [f"| {key} | {value:.2f} | {_range(spread.get(key))} |" for key, value in found["ratios"].items()]
    versions = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
    return "\n".join(
        [
            f"## {name}",
            "",
            f"`python -m benchmarks.{name}`, {found['machine']}; {versions}; commit {found['commit'][:12]}"
            + ("+" if found["commit"].endswith("+") else ""),
            "",
            "| ratio | median | least to greatest |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def _range(spread: list[float] | None) -> str:
    return f"{spread[0]:.2f} to {spread[1]:.2f}" if spread else ""


def main() -> None:
    PAGE.write_text(page())
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
