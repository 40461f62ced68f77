"""Write docs/openapi.json from the code; a test holds one to the other."""

from __future__ import annotations

from pathlib import Path

from beholder.openapi import render

PATH = Path(__file__).resolve().parent.parent / "docs" / "openapi.json"

if __name__ == "__main__":
    PATH.write_text(render())
    print(f"{PATH.name}: {len(PATH.read_text().splitlines())} lines")
