"""Write docs/openapi.json from the code; a test holds one to the other."""

from __future__ import annotations

import json
from pathlib import Path

from fastapi import FastAPI

from beholder.openapi import TITLE, add_routes

PATH = Path(__file__).resolve().parent.parent / "docs" / "openapi.json"


def render() -> str:
    app = FastAPI(**TITLE)
    add_routes(app)
    return json.dumps(app.openapi(), indent=2) + "\n"


if __name__ == "__main__":
    PATH.write_text(render())
    print(f"{PATH.name}: {len(PATH.read_text().splitlines())} lines")
