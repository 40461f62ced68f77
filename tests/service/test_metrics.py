"""Metrics as a scraper reads them."""

import asyncio
import base64
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from beholder.checkpoint import Checkpoint
from beholder.metrics import Metrics
from beholder.rewards import normalize
from tests.pictures import png
from tests.service.stand_in import Serve, StandInEngine

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"


def values(text: str) -> dict[tuple[str, str], float]:
    """Every sample of the service by its name and the values of its labels but the model."""
    return {
        (sample.name, ",".join(value for label, value in sample.labels.items() if label != "model")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("beholder_")
    }


@pytest.mark.anyio
async def test_a_request_moves_every_metric_of_its_way(
    serve: Serve, engine: StandInEngine, checkpoint: Checkpoint
) -> None:
    image, responses = base64.b64encode(png()).decode(), ["short", "rather a long one"]
    async with serve() as client:
        before = values((await client.get("/metrics")).text)
        body = {"prompt": "p", "images": [image], "responses": responses}
        answer = (await client.post("/rank", json=body)).json()
        await client.post("/rank", json={**body, "images": ["bm90IGFuIGltYWdl"]})
        after = values((await client.get("/metrics")).text)

    def change(name: str, labels: str = "") -> float:
        return after[name, labels] - before.get((name, labels), 0)

    calibration = checkpoint.manifest.calibration
    assert calibration is not None
    rewards = normalize(answer["scores"], calibration)
    assert change("beholder_samples_total") == 2
    assert change("beholder_request_samples_sum") == 2
    assert change("beholder_computed_tokens_total") == answer["usage"]["prompt_tokens"]
    assert change("beholder_images_total", "ok") == 1
    assert change("beholder_images_total", "invalid-image") == 1
    assert change("beholder_stage_seconds_count", "queue") == 2
    assert change("beholder_stage_seconds_count", "engine") == 2
    assert change("beholder_normalized_reward_count") == 2
    signed = change("beholder_reward_sum_total", "positive") - change("beholder_reward_sum_total", "negative")
    assert signed == pytest.approx(sum(rewards))
    assert change("beholder_response_characters_total") == len("".join(responses))
    assert after["beholder_oldest_sample_seconds", ""] == 0
    assert after["beholder_calibrated", ""] == 1


@pytest.mark.anyio
async def test_tokens_are_computed_or_spared_also_by_the_score_cache(serve: Serve) -> None:
    body = {"prompt": "p", "responses": ["one", "two", "one"]}
    async with serve(score_cache_bytes=2**20) as client:
        texts = [(await client.get("/metrics")).text]
        for _ in range(2):
            tokens = (await client.post("/rank", json=body)).json()["usage"]["prompt_tokens"]
            texts.append((await client.get("/metrics")).text)
    sent, computed, spared = (
        [values(text)[f"beholder_{kind}_tokens_total", ""] for text in texts]
        for kind in ("prompt", "computed", "cached")
    )
    assert [spared[2] - spared[1], computed[2] - computed[1]] == [tokens, 0]
    assert [a + b for a, b in zip(computed, spared, strict=True)] == sent
    assert "or whole by the score cache" in texts[0]
    assert "whose score the score cache knew" in DOCUMENT.read_text()


@pytest.mark.anyio
async def test_failures_begin_at_zero_so_that_a_rate_sees_the_first(serve: Serve) -> None:
    async with serve() as client:
        await client.post("/score", json={"prompt": "p", "response": "r"})
        text = (await client.get("/metrics")).text
    for code, status in (("internal", 500), ("deadline-exceeded", 504)):
        assert f'beholder_requests_total{{code="{code}",route="/score",status="{status}"}} 0.0' in text


@pytest.mark.anyio
async def test_the_oldest_sample_ages_until_it_is_answered(serve: Serve, engine: StandInEngine) -> None:
    async with serve() as client:
        engine.gate.clear()
        asked = asyncio.ensure_future(client.post("/score", json={"prompt": "p", "response": "r"}))
        await asyncio.sleep(0.2)
        assert values((await client.get("/metrics")).text)["beholder_oldest_sample_seconds", ""] >= 0.1
        engine.gate.set()
        await asked
        assert values((await client.get("/metrics")).text)["beholder_oldest_sample_seconds", ""] == 0


def test_rewards_that_are_not_calibrated_have_no_distribution() -> None:
    metrics = Metrics()
    metrics.rewards.begin("m", calibrated=False)
    metrics.rewards.observe("m", [-2.0, 3.0], [1, 2], calibrated=False)
    found = values(metrics.render().decode())
    assert found["beholder_normalized_reward_count", ""] == 0
    assert found["beholder_reward_sum_total", "negative"] == 2
    assert found["beholder_reward_characters_total", "positive"] == 6


def test_every_metric_is_documented() -> None:
    text = DOCUMENT.read_text()
    names = {family.name for family in Metrics().registry.collect()}
    assert [name for name in sorted(names) if f"`{name}" not in text] == []
