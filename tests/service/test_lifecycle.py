"""From start to exit, over a stand-in engine."""

import asyncio
import shutil
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from beholder.app import create_app
from beholder.checkpoint import Checkpoint, read_checkpoint
from beholder.errors import EngineError, GoldenMismatch
from beholder.lifecycle import Lifecycle
from beholder.models import Model
from beholder.prompts import PromptRenderer
from beholder.routes.context import Context
from beholder.settings import Settings
from tests.service.stand_in import StandInEngine, running, serving, until, until_ready

pytestmark = pytest.mark.anyio
SCORE = {"prompt": "p", "response": "r"}


async def test_the_process_lives_before_the_engine_is_up(
    settings: Settings, engine: StandInEngine, checkpoint: Checkpoint, renderer: PromptRenderer
) -> None:
    engine.gate.clear()  # golden scoring waits
    async with running(create_app(settings, [Model(settings, engine, checkpoint, renderer)])) as client:
        assert (await client.get("/livez")).status_code == 200
        assert "beholder_golden_passed{" not in (await client.get("/metrics")).text  # neither passed nor failed
        unready = await client.get("/readyz")
        assert unready.status_code == 503
        assert unready.json()["code"] == "engine-unavailable"
        refused = await client.post("/score", json=SCORE)
        assert refused.status_code == 503
        assert "not ready: " in refused.json()["detail"]
        engine.gate.set()
        ready = await until_ready(client)
        assert ready.json() == {"status": "ready", "fingerprint": checkpoint.fingerprint}
        assert (await client.post("/score", json=SCORE)).status_code == 200
    assert engine.stopped


async def test_models_describes_the_checkpoint(
    settings: Settings, engine: StandInEngine, checkpoint: Checkpoint, renderer: PromptRenderer
) -> None:
    async with serving(settings, engine, checkpoint, renderer) as client:
        (card,) = (await client.get("/models")).json()["models"]
    assert card["fingerprint"] == checkpoint.fingerprint
    assert card["architecture"] == checkpoint.manifest.architecture


async def test_a_golden_mismatch_stays_unready_and_names_the_sample(
    settings: Settings, checkpoint: Checkpoint, renderer: PromptRenderer
) -> None:
    drifted = StandInEngine({})
    app = create_app(settings, [Model(settings, drifted, checkpoint, renderer)])
    async with running(app) as client:
        await until(lambda: isinstance(lifecycle_of(app).unready, GoldenMismatch))
        unready = await client.get("/readyz")
        assert unready.status_code == 503
        assert any(repr(sample.id) in unready.json()["detail"] for sample in checkpoint.golden())
        refused = await client.post("/score", json=SCORE)
        assert (refused.status_code, refused.json()["code"]) == (503, "engine-unavailable")
        assert (await client.get("/livez")).status_code == 200
        assert 'beholder_golden_passed{model="tiny"} 0.0' in (await client.get("/metrics")).text
        assert lifecycle_of(app).failure is None


async def test_a_damaged_file_is_found_before_the_engine_loads_it(
    tiny_checkpoint: Path, tmp_path: Path, settings: Settings, engine: StandInEngine, renderer: PromptRenderer
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_checkpoint, folder)
    with (folder / "tokenizer.json").open("a") as file:
        file.write(" ")
    app = create_app(settings, [Model(settings, engine, read_checkpoint(folder), renderer)])
    async with running(app) as client:
        assert "tokenizer.json" in (await failure(app, client)).json()["detail"]
    assert lifecycle_of(app).failure is not None


@pytest.mark.parametrize("error", [EngineError("out of memory"), RuntimeError("out of memory")])
async def test_an_engine_that_does_not_start_is_a_failure(
    settings: Settings, engine: StandInEngine, checkpoint: Checkpoint, renderer: PromptRenderer, error: Exception
) -> None:
    engine.start_error = error
    app = create_app(settings, [Model(settings, engine, checkpoint, renderer)])
    async with running(app) as client:
        assert "out of memory" in (await failure(app, client)).json()["detail"]


async def test_the_engines_death_fails_what_is_in_flight_and_the_process(
    settings: Settings, engine: StandInEngine, checkpoint: Checkpoint, renderer: PromptRenderer
) -> None:
    app = create_app(settings, [Model(settings, engine, checkpoint, renderer)])
    async with running(app) as client:
        await until_ready(client)
        engine.gate.clear()
        request = asyncio.ensure_future(client.post("/score", json=SCORE))
        await until(lambda: engine.active)
        engine.die()
        assert (await request).status_code == 503
        await failure(app, client)
        assert (await client.post("/score", json=SCORE)).json()["code"] == "engine-unavailable"
        assert 'beholder_engine_up{model="tiny"} 0.0' in (await client.get("/metrics")).text


async def test_draining_is_unready_but_still_scores_and_closes_connections(
    settings: Settings, engine: StandInEngine, checkpoint: Checkpoint, renderer: PromptRenderer
) -> None:
    app = create_app(settings, [Model(settings, engine, checkpoint, renderer)])
    async with running(app) as client:
        await until_ready(client)
        lifecycle_of(app).draining = True
        assert (await client.get("/readyz")).json()["detail"] == "the service is stopping"
        answer = await client.post("/score", json=SCORE)
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        refused = await client.post("/score", content=b"{", headers={"Content-Length": str(2**40)})
        assert (refused.status_code, refused.headers.get_list("connection")) == (413, ["close"])


def lifecycle_of(app: FastAPI) -> Lifecycle:
    context: Context = app.state.context
    return context.lifecycle


async def failure(app: FastAPI, client: httpx.AsyncClient) -> httpx.Response:
    """What /readyz says once the service has failed."""
    await until(lambda: lifecycle_of(app).failure)
    return await until_ready(client, 503)
