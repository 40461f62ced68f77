"""benchmarks/RESULTS.md from benchmarks/results/*.json, so that no figure is copied by hand.

    python -m benchmarks.results_page

Every file with `ratios` or `rows` has a section: rows as they are, ratio, spread where rounds were measured, machine,
versions, commit. Those of benchmarks/gpu are named gpu_*.json, and say which card.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent / "RESULTS.md"
HEAD = """# Measured

Ratios of two rates in one run on one machine; absolute times depend on the machine and are in the JSON files beside
this page, which `python -m benchmarks.results_page` writes. A "+" after a commit means uncommitted changes.

[What they are of and what they mean](../docs/benchmarks.md). Parity and grocery have no ratios: results/parity.json,
results/grocery.json.
"""
CUDA = {
    "gpu_serving_vllm": "the vLLM engine",
    "gpu_serving_transformers": "the transformers engine",
    "gpu_training": "training at about 2B parameters",
    "gpu_reproduction": "the worlds at 20M parameters",
}
"""What benchmarks/gpu measures, by the beginning of its files' names."""


def page(results: Path = RESULTS) -> str:
    """The whole page."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    sections = [
        _section(name, content)
        for name, content in found.items()
        if isinstance(content, dict) and ("ratios" in content or "rows" in content)
    ]
    return "\n".join([f"{HEAD}{_not_run(found)}", *sections])


def _not_run(names: Iterable[str]) -> str:
    """What of CUDA has no file."""
    missing = [what for start, what in CUDA.items() if not any(name.startswith(start) for name in names)]
    if len(missing) == len(CUDA):
        return "CUDA: not run.\n"
    return f"CUDA: not run: {', '.join(missing)}.\n" if missing else ""


def _section(name: str, found: dict[str, Any]) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
    commit = found["commit"][:12] + ("+" if found["commit"].endswith("+") else "")
    card = f"{found['card']['name']}, " if "card" in found else ""
    lines = [f"## {name}", ""]
    lines += [f"`{found.get('command', f'python -m benchmarks.{name}')}`, {card}{found['machine']}; {versions};"
              f" commit {commit}", ""]  # fmt: skip
    lines += _rows_table(found["rows"]) if found.get("rows") else []
    lines += _ratios_table(found["ratios"], found.get("spread", {})) if found.get("ratios") else []
    return "\n".join(lines)


def _rows_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    names = list(rows[0])
    body = [f"| {' | '.join(cell(row.get(name)) for name in names)} |" for row in rows]
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|", *body, ""]


def _ratios_table(ratios: dict[str, float], spread: dict[str, list[float]]) -> list[str]:
    body = [f"| {key} | {value:.2f} | {_range(spread.get(key))} |" for key, value in ratios.items()]
    return ["| ratio | median | least to greatest |", "|---|---|---|", *body, ""]


def cell(value: Any) -> str:
    """One value of a table."""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return "-" if value is None else str(value)


def _range(spread: list[float] | None) -> str:
    return f"{spread[0]:.2f} to {spread[1]:.2f}" if spread else ""


def main() -> None:
    PAGE.write_text(page())
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
