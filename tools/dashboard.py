"""The Grafana dashboard as a table of panels; `make chart-docs` writes it into the chart as JSON.

Every expression is over the releases that the dashboard's variables choose. The panels on rewards use the recording
rules of helm/beholder/alerts/beholder.yaml where an alert does.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

SCOPE = 'namespace=~"$namespace",job=~"$job"'
ASKED = f'{SCOPE},route!~"/livez|/readyz|/metrics"'
BY_CHECKPOINT = (
    f"sum by (fingerprint) (rate(beholder_samples_total{{{SCOPE}}}[$__rate_interval])"
    f" * on (namespace, job, instance, model) group_left (fingerprint) beholder_model_info{{{SCOPE}}})"
)
COLUMNS = 3
WIDTH, HEIGHT = 24 // COLUMNS, 7


class Panel(NamedTuple):
    """`series` maps a legend to its expression; `note` is the panel's description."""

    title: str
    unit: str
    series: dict[str, str]
    note: str = ""
    kind: str = "timeseries"


def rate(metric: str, by: str = "", scope: str = SCOPE) -> str:
    """The rate of a counter, summed over replicas."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate({metric}{{{scope}}}[$__rate_interval]))"


def quantile(metric: str, q: float, by: str = "", scope: str = SCOPE) -> str:
    """A quantile of a histogram over replicas."""
    return f"histogram_quantile({q}, {rate(f'{metric}_bucket', f'le, {by}' if by else 'le', scope)})"


def moment(name: str) -> str:
    """A recording rule of a release."""
    return f"beholder:{name}{{{SCOPE}}}"


ROWS: dict[str, list[Panel]] = {
    "Service": [
        Panel("Ready replicas", "short", {"{{job}}": f"sum by (job) (beholder_ready{{{SCOPE}}})"}, kind="stat"),
        Panel(
            "Golden samples",
            "short",
            {"{{job}}": f"min by (job) (beholder_golden_passed{{{SCOPE}}})"},
            "1: every replica scores as training did.",
            "stat",
        ),
        Panel(
            "Checkpoints",
            "short",
            {"{{fingerprint}}": f"count by (fingerprint) (beholder_model_info{{{SCOPE}}})"},
            "Replicas by the checkpoint that they serve.",
            "stat",
        ),
        Panel("Requests", "reqps", {"{{route}} {{status}}": rate("beholder_requests_total", "route, status", ASKED)}),
        Panel("Samples scored, by checkpoint", "ops", {"{{fingerprint}}": BY_CHECKPOINT}),
        Panel(
            "Refused and failed, by reason",
            "reqps",
            {"{{code}}": rate("beholder_requests_total", "code", f'{ASKED},code!=""')},
        ),
        Panel(
            "Latency",
            "s",
            {
                f"{route} p{q * 100:g}": quantile("beholder_request_seconds", q, scope=f'{SCOPE},route="{route}"')
                for route in ("/score", "/rank")
                for q in (0.5, 0.99)
            },
        ),
    ],
    "Load": [
        Panel(
            "Saturation",
            "percentunit",
            {"{{job}}": moment("saturation")},
            "Samples in flight, of those that may be. Scale up above 0.8.",
        ),
        Panel("Samples in flight", "short", {"{{pod}}{{instance}}": f"beholder_samples_in_flight{{{SCOPE}}}"}),
        Panel("Oldest sample", "s", {"{{pod}}{{instance}}": f"beholder_oldest_sample_seconds{{{SCOPE}}}"}),
        Panel(
            "Latency by stage (p95)",
            "s",
            {"{{stage}}": quantile("beholder_stage_seconds", 0.95, "stage")},
            "queue: waiting for a processor; image: decoding and rendering; engine: scoring one sample.",
        ),
        Panel(
            "Samples a request",
            "short",
            {"p50": quantile("beholder_request_samples", 0.5), "p95": quantile("beholder_request_samples", 0.95)},
        ),
        Panel(
            "Samples in the engine",
            "short",
            {
                "computed": f"sum(beholder_engine_running_samples{{{SCOPE}}})",
                "waiting": f"sum(beholder_engine_waiting_samples{{{SCOPE}}})",
            },
        ),
        Panel(
            "Samples of a batch",
            "short",
            {
                "p50": quantile("beholder_engine_batch_samples", 0.5),
                "p95": quantile("beholder_engine_batch_samples", 0.95),
            },
        ),
        Panel("Samples scored", "ops", {"samples": rate("beholder_samples_total")}),
        Panel("Score cache, by outcome", "ops", {"{{outcome}}": rate("beholder_score_cache_total", "outcome")}),
        Panel(
            "Tokens",
            "ops",
            {
                "sent": rate("beholder_prompt_tokens_total"),
                "computed": rate("beholder_computed_tokens_total"),
                "cached": rate("beholder_cached_tokens_total"),
            },
        ),
        Panel("Images, by outcome", "ops", {"{{outcome}}": rate("beholder_images_total", "outcome")}),
        Panel("Memory", "bytes", {"{{pod}}{{instance}}": f"process_resident_memory_bytes{{{SCOPE}}}"}),
    ],
    "Rewards": [
        Panel(
            "Distribution of normalized rewards",
            "short",
            {"{{le}}": rate("beholder_normalized_reward_bucket", "le")},
            "In the calibration's deviations from its mean.",
            "heatmap",
        ),
        Panel("Mean (drift from the calibration)", "short", {"{{job}} {{model}}": moment("reward_mean:5m")}),
        Panel(
            "Deviation",
            "short",
            {"{{job}} {{model}}": f"sqrt({moment('reward_variance:5m')})"},
            "1 on the calibration's responses; near 0: all responses get the same reward.",
        ),
        Panel(
            "Correlation of reward and length",
            "short",
            {"{{job}} {{model}}": moment("reward_length_correlation:5m")},
            "Near 1: longer is better, whatever is said.",
        ),
        Panel("Length of the responses", "short", {"{{job}} {{model}} characters": moment("length_mean:5m")}),
        Panel(
            "Median and tails",
            "short",
            {
                f"{{{{model}}}} p{q * 100:g}": quantile("beholder_normalized_reward", q, "model")
                for q in (0.05, 0.5, 0.95)
            },
        ),
    ],
}


def dashboard() -> str:
    """The dashboard as Grafana reads it."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    document = {
        "uid": "beholder",
        "title": "Beholder",
        "tags": ["beholder"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": variables(source)},
        "panels": list(placed(source)),
    }
    return json.dumps(document, indent=1) + "\n"


def variables(source: dict[str, str]) -> list[dict[str, Any]]:
    """The data source, and which releases are shown."""
    chosen: list[dict[str, Any]] = [
        {
            "name": name,
            "label": name,
            "type": "query",
            "datasource": source,
            "query": {"query": f"label_values(beholder_ready{scope}, {name})", "refId": name},
            "refresh": 2,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        }
        for name, scope in (("namespace", ""), ("job", '{namespace=~"$namespace"}'))
    ]
    return [{"name": "datasource", "label": "data source", "type": "datasource", "query": "prometheus"}, *chosen]


def placed(source: dict[str, str]) -> Any:
    """The rows and panels, each with its place and id."""
    identity, top = 0, 0
    for row, panels in ROWS.items():
        identity += 1
        place = {"x": 0, "y": top, "w": 24, "h": 1}
        yield {"id": identity, "type": "row", "title": row, "collapsed": False, "panels": [], "gridPos": place}
        top += 1
        for index, panel in enumerate(panels):
            identity += 1
            place = {"x": index % COLUMNS * WIDTH, "y": top + index // COLUMNS * HEIGHT, "w": WIDTH, "h": HEIGHT}
            yield {"id": identity, "gridPos": place, **drawn(panel, source)}
        top += -(-len(panels) // COLUMNS) * HEIGHT


def drawn(panel: Panel, source: dict[str, str]) -> dict[str, Any]:
    """One panel as Grafana has it."""
    heat = panel.kind == "heatmap"
    targets = [
        {"refId": chr(ord("A") + index), "expr": expr, "legendFormat": legend, "datasource": source}
        | ({"format": "heatmap"} if heat else {})
        for index, (legend, expr) in enumerate(panel.series.items())
    ]
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.note,
        "datasource": source,
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "options": {"calculate": False} if heat else {},
        "targets": targets,
    }
