"""docs/openapi.json and docs/errors.md say what the code does."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter

from beholder import openapi
from beholder import openapi_examples as examples
from beholder.checkpoint import Checkpoint
from beholder.errors import BeholderError
from beholder.schemas import ImageReceipt, Problem, RankResponse, ScoreResponse
from beholder.settings import Settings

pytestmark = pytest.mark.anyio
DOCS = Path(__file__).parents[2] / "docs"
HTTP = {"bad-request", "not-found", "method-not-allowed", "request-header-fields-too-large", "client-gone"}
PROCESS = {"invalid-checkpoint", "checkpoint-corrupt", "golden-mismatch", "invalid-configuration", "engine-error"}


def errors(root: type[BeholderError] = BeholderError) -> Iterator[type[BeholderError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__.startswith("beholder."):
            yield from errors(child)


def documented() -> dict[str, int]:
    rows = re.findall(r"^\| `([a-z-]+)` \| (\d+) \|", (DOCS / "errors.md").read_text(), re.MULTILINE)
    return {code: int(status) for code, status in rows}


def test_every_code_is_documented_with_its_status() -> None:
    table = documented()
    codes = {error.code: error.status for error in errors()}
    assert {code: status for code, status in table.items() if code not in HTTP} == {
        code: status for code, status in codes.items() if code not in PROCESS
    }
    assert table.keys() >= HTTP
    text = (DOCS / "errors.md").read_text()
    assert all(f"`{code}`" in text for code in PROCESS)


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    import beholder.errors as module

    drawn = re.findall(r"(\w+) +(\d{3}) ([a-z-]+)$", module.__doc__ or "", re.MULTILINE)
    classes = {error.__name__: error for error in errors() if error.__module__ == "beholder.errors"}
    assert drawn == [(name, str(classes[name].status), classes[name].code) for name, _, _ in drawn]
    assert {name for name, _, _ in drawn} == classes.keys()


def test_openapi_json_is_up_to_date() -> None:
    assert (DOCS / "openapi.json").read_text() == openapi.render(), "run tools/openapi.py"


async def test_the_service_shows_the_same(client: httpx.AsyncClient) -> None:
    assert (await client.get("/openapi.json")).json() == json.loads((DOCS / "openapi.json").read_text())


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/score", examples.SCORE_ITEM),
        ("/score", examples.SCORE_BATCH),
        ("/rank", examples.RANK),
        ("/v1/rerank", examples.RERANK),
        ("/v2/rerank", examples.RERANK),
        ("/trainers/openrlhf", examples.OPENRLHF),
        ("/trainers/llama-factory", examples.LLAMA_FACTORY),
        ("/trainers/slime", examples.SLIME),
        ("/classify", {**examples.CLASSIFY, "model": None}),
    ],
)
async def test_every_example_request_is_answered(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text


async def test_the_example_image_has_the_example_receipt(client: httpx.AsyncClient) -> None:
    import base64

    data = base64.b64decode(examples.RED_SQUARE)
    response = await client.put(f"/images/{examples.RED_SQUARE_SHA256}", content=data)
    assert response.json() == examples.RECEIPT


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (ScoreResponse, examples.SCORE_ANSWER),
        (RankResponse, examples.RANK_ANSWER),
        (ImageReceipt, examples.RECEIPT),
        (Problem, examples.PROBLEM),
    ],
)
def test_every_example_answer_is_one(model: Any, example: dict[str, Any]) -> None:
    TypeAdapter(model).validate_json(json.dumps(example))


async def test_every_answer_has_its_id_and_the_fingerprint(client: httpx.AsyncClient, checkpoint: Checkpoint) -> None:
    for path in ("/livez", "/models", "/nothing"):
        response = await client.get(path, headers={"X-Request-ID": "abc"})
        assert response.headers["x-request-id"] == "abc"
        assert response.headers["beholder-fingerprint"] == checkpoint.fingerprint


async def test_top_n_shortens_the_order_alone(client: httpx.AsyncClient) -> None:
    body = {"prompt": "p", "responses": ["a", "b", "c"]}
    whole, best = [(await client.post("/rank", json={**body, **more})).json() for more in ({}, {"top_n": 2})]
    assert best == {**whole, "order": whole["order"][:2]}


async def test_the_model_may_be_named(client: httpx.AsyncClient, settings: Settings) -> None:
    card = (await client.get("/models")).json()["models"][0]
    for name in (card["id"], *card["names"], card["fingerprint"], None):
        response = await client.post("/score", json={"prompt": "p", "response": "r", "model": name})
        assert response.json()["model"] == card["id"] == settings.checkpoint.name
