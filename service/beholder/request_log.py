"""One line of JSON for each request: what was asked and how it ended, never what was in it (no texts, images, keys)."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final

NAME: Final = "beholder.requests"
QUIET: Final = frozenset({"/livez", "/readyz", "/metrics"})
"""Probes come every few seconds from everywhere."""
_log = logging.getLogger(NAME)


def configure(*, enabled: bool) -> None:
    """Write the lines to standard error as they are, whatever the level of other messages."""
    _log.handlers = [_StandardError()]
    _log.propagate = False
    _log.setLevel(logging.INFO if enabled else logging.CRITICAL)


def log_request(route: str, **values: Any) -> None:
    """`route` is the pattern, not the path: a path may hold anything."""
    if route in QUIET and values.get("status", 0) < 400:
        return
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    _log.info("%s", json.dumps({"time": now, "route": route, **values}))


class _StandardError(logging.Handler):
    """The line alone, to what standard error is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), file=sys.stderr, flush=True)
