"""One line of JSON for each request: what was asked and how it ended, never what was in it (no texts, images, keys).

Printed without Python's logging, which takes longer than refusing a request does.
"""

import json
import sys
from datetime import UTC, datetime
from typing import Any, Final

QUIET: Final = frozenset({"/livez", "/readyz", "/metrics"})
"""Probes come every few seconds from everywhere."""


def log_request(route: str, **values: Any) -> None:
    """To standard error. `route` is the pattern, not the path: a path may hold anything."""
    if route in QUIET and values.get("status", 0) < 400:
        return
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    print(json.dumps({"time": now, "route": route, **values}), file=sys.stderr, flush=True)
