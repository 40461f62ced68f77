"""A real Prometheus scrapes the service under load: every panel and every alert has something to evaluate."""

import asyncio
import base64
import json
import math
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.pictures import png
from tests.system.programs import Replica, answers, free_port, program, running, wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(300)]
CHART = Path(__file__).resolve().parents[2] / "helm" / "beholder"
RULES = CHART / "alerts" / "beholder.yaml"
LOAD_S = 20
VARIABLES = {"$namespace": ".*", "$job": ".*", "$__rate_interval": "10s"}
OF_GOLDEN_SAMPLES = {"Golden samples", "BeholderGoldenMismatch"}
"""The fake engine, which is not checked, has nothing for them."""
Query = tuple[str, str]


def panels() -> list[Query]:
    """Title and expression of every series of the dashboard."""
    board = json.loads((CHART / "dashboards" / "beholder.json").read_text())
    found = []
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            found.append((panel["title"], expression))
    return found


def rules() -> list[Query]:
    """Name and expression of every rule; a comparison gives 0 or 1 here, for a quiet alert is empty."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    listed = [rule for group in groups for rule in group["rules"]]
    return [
        (rule.get("alert") or rule["record"], re.sub(r" (==|!=|>=|<=|>|<) ", r" \1 bool ", rule["expr"]))
        for rule in listed
    ]


class Prometheus:
    """Its HTTP API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str) -> list[float]:
        """The values now. Fails the test on an error of the expression."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=30).json()
        assert answer["status"] == "success", f"{expression}: {answer.get('error')}"
        return [float(item["value"][1]) for item in answer["data"]["result"]]


async def load(url: str, seconds: float) -> dict[int, int]:
    """Requests of every kind for a while, on loopback; how many answers had which status."""
    image = base64.b64encode(png()).decode()
    statuses: dict[int, int] = {}
    end = asyncio.get_running_loop().time() + seconds

    async def client(number: int, http: httpx.AsyncClient) -> None:
        turn = 0
        while asyncio.get_running_loop().time() < end:
            turn += 1
            responses = [f"{'Yes. ' * (1 + (number + index) % 5)} {turn}" for index in range(1 + number % 8)]
            body: dict[str, Any] = {"prompt": f"{number}", "images": [image], "responses": responses}
            if turn % 4 == 0:
                body = {"prompt": "p", "images": [], "response": responses[0]}
            if turn % 9 == 0:
                body["images"] = ["bm90IGFuIGltYWdl"]
            answer = await http.post(f"{url}/{'rank' if 'responses' in body else 'score'}", json=body)
            statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
            await asyncio.sleep(0.1)

    async with httpx.AsyncClient(timeout=60) as http:
        await asyncio.gather(*(client(number, http) for number in range(16)))
    return statuses


@pytest.fixture(scope="module")
def service(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    folder = tmp_path_factory.mktemp("service")
    # So few in flight that some requests are refused, and an engine that sometimes fails.
    arguments = "{delay_s: 0.02, jitter_s: 0.2, failure_rate: 0.01}"
    replica = Replica(tiny_checkpoint, folder / "log", arguments, "--max-in-flight", "48")
    try:
        replica.wait_ready()
        yield replica
    finally:
        replica.close()


@pytest.fixture(scope="module")
def prometheus(service: Replica, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    target = {"targets": [f"127.0.0.1:{service.port}"], "labels": {"namespace": "scoring"}}
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "scoring/rewards", "static_configs": [target]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with running(command, folder / "log"):
        wait_until(lambda: answers(f"http://{address}/-/ready"), "Prometheus is ready")
        yield Prometheus(f"http://{address}")


def test_every_panel_and_rule_has_a_result(
    service: Replica, prometheus: Prometheus, capsys: pytest.CaptureFixture[str]
) -> None:
    statuses = asyncio.run(load(service.url, LOAD_S))
    assert {200, 422, 500, 503} <= statuses.keys(), statuses
    empty = []
    with capsys.disabled():
        print(f"\n{sum(statuses.values())} requests: {dict(sorted(statuses.items()))}")
        for title, expression in [*panels(), *rules()]:
            values = prometheus.query(expression)
            finite = [value for value in values if math.isfinite(value)]
            shown = f"{min(finite):.4g} to {max(finite):.4g}" if finite else f"NOTHING: {expression}"
            print(f"  {title:40} {len(values):3} series  {shown}")
            if not finite:
                empty.append(title)
    assert set(empty) == OF_GOLDEN_SAMPLES


def test_rules_are_healthy(prometheus: Prometheus) -> None:
    groups = httpx.get(f"{prometheus.url}/api/v1/rules").json()["data"]["groups"]
    wrong = [
        (rule["name"], rule.get("lastError")) for group in groups for rule in group["rules"] if rule["health"] == "err"
    ]
    assert not wrong


def test_the_moments_are_those_of_the_scores(service: Replica, prometheus: Prometheus) -> None:
    """Mean and correlation from the counters equal those that a client computes from its answers."""
    before = moments(service.url)
    rewards, lengths = [], []
    for number in range(40):
        response = "x" * (1 + number * number % 37)
        answer = httpx.post(f"{service.url}/score", json={"prompt": f"moment {number}", "response": response})
        if answer.status_code == 200:
            rewards.append(answer.json()["normalized"][0])
            lengths.append(len(response))
    after = moments(service.url)
    change = {name: after[name] - before[name] for name in after}
    count = len(rewards)
    assert change["beholder_samples_total"] == count
    assert change["reward"] == pytest.approx(sum(rewards))
    assert change["beholder_reward_squared_total"] == pytest.approx(sum(reward**2 for reward in rewards))
    assert change["beholder_response_characters_total"] == sum(lengths)
    assert change["beholder_response_characters_squared_total"] == sum(length**2 for length in lengths)
    assert change["product"] == pytest.approx(sum(r * n for r, n in zip(rewards, lengths, strict=True)))


def moments(url: str) -> dict[str, float]:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    values = {
        re.sub(r'[{]model="[^"]*"[}]|model="[^"]*",', "", line.rpartition(" ")[0]): float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("beholder_")
    }
    signed = {"reward": "beholder_reward_sum_total", "product": "beholder_reward_characters_total"}
    differences = {
        short: values[f'{name}{{sign="positive"}}'] - values[f'{name}{{sign="negative"}}']
        for short, name in signed.items()
    }
    plain = (
        "beholder_samples_total",
        "beholder_reward_squared_total",
        "beholder_response_characters_total",
        "beholder_response_characters_squared_total",
    )
    return differences | {name: values[name] for name in plain}


def test_promtool_finds_nothing_wrong_with_the_metrics(service: Replica) -> None:
    text = httpx.get(f"{service.url}/metrics").content
    check = subprocess.run([program("promtool"), "check", "metrics"], input=text, capture_output=True, check=False)
    assert (check.returncode, check.stderr.decode(), check.stdout.decode()) == (0, "", "")


def test_metrics_are_cheap_and_bounded(service: Replica) -> None:
    lines = httpx.get(f"{service.url}/metrics").text.splitlines()
    assert len([line for line in lines if line.startswith("beholder_")]) < 500
    assert httpx.get(f"{service.url}/metrics").elapsed.total_seconds() < 0.1
