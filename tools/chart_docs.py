"""Write what the chart repeats: the settings in values.schema.json, the table in README.md, the dashboard's JSON.

`make chart-docs` writes; with --check, as in `make check`, it only tells whether they are up to date.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from dashboard import dashboard

CHART = Path(__file__).resolve().parent.parent / "helm" / "beholder"
THE_CHARTS_OWN = ("checkpoint", "host", "port", "api_keys", "drain_delay_s", "drain_timeout_s")
"""Settings that the chart decides: by values of their own, or, as keys do, through a Secret."""
BEGIN, END = "<!-- values: made by make chart-docs -->", "<!-- end of values -->"


def main() -> None:
    """Write the files, or exit with 1 where --check finds one out of date."""
    parser = argparse.ArgumentParser(description="Write the chart's schema of settings, README table and dashboard.")
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    schema = with_settings(json.loads((CHART / "values.schema.json").read_text()))
    made = {
        CHART / "values.schema.json": json.dumps(schema, indent=2) + "\n",
        CHART / "README.md": readme(schema),
        CHART / "dashboards" / "beholder.json": dashboard(),
    }
    stale = [path for path, text in made.items() if not path.exists() or path.read_text() != text]
    if check and stale:
        sys.exit(f"{', '.join(path.name for path in stale)} of the chart is out of date: make chart-docs")
    for path in stale:
        path.write_text(made[path])


def with_settings(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with `config` as Settings has it now."""
    from beholder.settings import Settings

    settings = Settings.model_json_schema(ref_template="#/definitions/{model}")
    properties = {name: field for name, field in settings["properties"].items() if name not in THE_CHARTS_OWN}
    schema["properties"]["config"] = {
        "type": "object",
        "description": "Settings of the service, as `beholder serve --help` lists them, with underscores.",
        "additionalProperties": False,
        "properties": properties,
    }
    schema.pop("definitions", None)
    if definitions := settings.get("$defs"):
        schema["definitions"] = definitions
    return schema


def readme(schema: dict[str, Any]) -> str:
    """README.md with the table of values made anew."""
    text = (CHART / "README.md").read_text()
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    rows = [f"| `{name}` | {text} | `{json.dumps(default)}` |" for name, text, default in entries(schema, values)]
    table = "\n".join(["| value | meaning | default |", "|---|---|---|", *rows])
    return f"{text.split(BEGIN)[0]}{BEGIN}\n{table}\n{END}{text.split(END)[1]}"


def entries(schema: dict[str, Any], values: Any, prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """Name, description and default of every value; a map without a description is entered."""
    for name, part in schema["properties"].items():
        if f"{prefix}{name}" == "global":
            continue
        if "description" in part:
            yield f"{prefix}{name}", part["description"].replace("|", "\\|"), values.get(name)
        else:
            yield from entries(part, values[name], f"{prefix}{name}.")


if __name__ == "__main__":
    main()
