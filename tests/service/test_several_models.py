"""Several models in one process: over stand-in engines, and as a process with vLLM."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from beholder.app import create_app
from beholder.checkpoint import read_checkpoint
from beholder.cli import main
from beholder.client import RewardClient
from beholder.errors import ModelNotFound
from beholder.models import Model
from beholder.prompts import PromptRenderer
from beholder.server import bind, make_server
from beholder.settings import Settings, load_settings
from tests.service.process import STOP_S, Service
from tests.service.stand_in import StandInEngine, running, until, until_ready
from tests.service.test_server import Served

RESPONSES = ["Yes.", "No, it is not.", "It is hard to say."]
RANK: dict[str, Any] = {"prompt": "Is it?", "responses": RESPONSES}
STRING = "<|im_start|>user\nIs it?<|im_end|>\n<|im_start|>assistant\n"
OFFSET = 100.0
pytestmark = pytest.mark.timeout(600)  # two engines load


@pytest.fixture
def models(tiny_checkpoint: Path, proxy_checkpoint: Path) -> tuple[Model, Model]:
    """`tiny`, the first, and `proxy`, whose stand-in scores OFFSET higher; without score caches."""
    settings = load_settings(
        {
            "checkpoint": tiny_checkpoint,
            "models": {"proxy": {"checkpoint": proxy_checkpoint}},
            "score_cache_bytes": 0,
            "max_in_flight": len(RESPONSES),
        }
    )
    tiny, proxy = (model_of(each) for each in settings.each())
    engine_of(proxy).offset = OFFSET
    return tiny, proxy


def model_of(settings: Settings) -> Model:
    checkpoint, renderer = read_checkpoint(settings.checkpoint), PromptRenderer.from_folder(settings.checkpoint)
    return Model(settings, StandInEngine.passing_golden(checkpoint, renderer), checkpoint, renderer)


def engine_of(model: Model) -> StandInEngine:
    assert isinstance(model.engine, StandInEngine)
    return model.engine


@pytest.fixture
async def client(models: tuple[Model, Model]) -> AsyncIterator[httpx.AsyncClient]:
    async with running(create_app(models[0].settings, models)) as client:
        await until_ready(client)
        yield client


async def rank(client: httpx.AsyncClient, model: str | None = None) -> httpx.Response:
    return await client.post("/rank", json={**RANK, "model": model})


@pytest.mark.anyio
async def test_a_request_is_answered_by_the_model_that_it_names(
    client: httpx.AsyncClient, models: tuple[Model, Model]
) -> None:
    tiny, proxy = models
    without = (await rank(client)).json()
    assert (without["model"], without["fingerprint"]) == ("tiny", tiny.fingerprint)
    assert without["normalized"] is not None
    for name in ("proxy", proxy.fingerprint):
        answer = await rank(client, name)
        assert answer.headers["beholder-fingerprint"] == answer.json()["fingerprint"] == proxy.fingerprint
        assert answer.json()["model"] == "proxy"
        assert answer.json()["scores"] == [score + OFFSET for score in without["scores"]]
        assert "normalized" not in answer.json()  # an adopted checkpoint is not calibrated
    for name in ("tiny", tiny.fingerprint, str(tiny.settings.checkpoint)):
        answer = await rank(client, name)
        assert answer.headers["beholder-fingerprint"] == tiny.fingerprint
        assert answer.json() == without


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "body", "read"),
    [
        ("/score", {"prompt": "Is it?", "response": "Yes."}, lambda answer: answer["scores"][0]),
        (
            "/v1/rerank",
            {"query": "Is it?", "documents": ["Yes."], "use_activation": False},
            lambda answer: answer["results"][0]["relevance_score"],
        ),
        (
            "/classify",
            {"input": f"{STRING}Yes.<|im_end|>\n", "use_activation": False},
            lambda answer: answer["data"][0]["probs"][0],
        ),
    ],
)
async def test_every_body_with_a_model_chooses(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], read: Callable[[Any], float]
) -> None:
    tiny, proxy = [(await client.post(path, json={**body, "model": name})).json() for name in ("tiny", "proxy")]
    assert (tiny["model"], proxy["model"]) == ("tiny", "proxy")
    assert read(proxy) == pytest.approx(read(tiny) + OFFSET)


@pytest.mark.anyio
async def test_trainers_choose_by_the_url(client: httpx.AsyncClient, models: tuple[Model, Model]) -> None:
    (expected, *_) = (await rank(client)).json()["scores"]
    whole = f"{STRING}Yes.<|im_end|>"
    bodies: dict[str, dict[str, Any]] = {
        "openrlhf": {"query": [whole], "prompts": [STRING]},
        "llama-factory": {"model": "model", "messages": [whole]},
        "slime": {"prompt": STRING, "response": "Yes."},
    }
    for trainer, body in bodies.items():
        for model, offset in ((None, 0), ("tiny", 0), ("proxy", OFFSET)):
            parameters = {} if model is None else {"model": model}
            answer = await client.post(f"/trainers/{trainer}", params=parameters, json=body)
            score = answer.json() if trainer == "slime" else answer.json()["scores"][0]
            assert score == pytest.approx(expected + offset)
            assert answer.headers["beholder-fingerprint"] == models[model == "proxy"].fingerprint
        refused = await client.post(f"/trainers/{trainer}", params={"model": "old"}, json=body)
        assert (refused.status_code, refused.json()["code"]) == (404, "model-not-found")


@pytest.mark.anyio
async def test_an_unknown_model_is_refused_with_the_names(client: httpx.AsyncClient) -> None:
    refused = await rank(client, "old")
    assert (refused.status_code, refused.json()["code"]) == (404, "model-not-found")
    assert refused.json()["detail"].endswith("leave `model` out, or send 'tiny' or 'proxy'")


@pytest.mark.anyio
async def test_a_model_knows_no_score_of_another(models: tuple[Model, Model]) -> None:
    caching = models[0].settings.model_copy(update={"score_cache_bytes": 2**20})
    async with running(create_app(caching, models)) as client:
        await until_ready(client)
        answers = [(await rank(client, name)).json() for name in ("tiny", "proxy", "tiny", "proxy")]
    assert [answer["cached"] for answer in answers] == [[False] * 3, [False] * 3, [True] * 3, [True] * 3]
    assert answers[2]["scores"] == answers[0]["scores"]
    assert answers[3]["scores"] == [score + OFFSET for score in answers[0]["scores"]]


@pytest.mark.anyio
async def test_models_lists_the_first_first(client: httpx.AsyncClient, models: tuple[Model, Model]) -> None:
    cards = (await client.get("/models")).json()["models"]
    assert [card["id"] for card in cards] == ["tiny", "proxy"]
    assert [card["fingerprint"] for card in cards] == [model.fingerprint for model in models]
    assert [card["calibrated"] for card in cards] == [True, False]


@pytest.mark.anyio
async def test_metrics_tell_the_models_apart(client: httpx.AsyncClient, models: tuple[Model, Model]) -> None:
    await rank(client, "proxy")
    text = (await client.get("/metrics")).text
    for line in (
        'beholder_samples_total{model="tiny"} 0.0',
        'beholder_samples_total{model="proxy"} 3.0',
        'beholder_engine_up{model="tiny"} 1.0',
        'beholder_golden_passed{model="proxy"} 1.0',
        'beholder_calibrated{model="tiny"} 1.0',
        'beholder_calibrated{model="proxy"} 0.0',
        f'fingerprint="{models[1].fingerprint}",model="proxy"}} 1.0',
    ):
        assert line in text


@pytest.fixture
def url(models: tuple[Model, Model]) -> Iterator[str]:
    settings = models[0].settings.model_copy(update={"drain_delay_s": 0})
    served = Served(make_server(create_app(settings, models), settings), bind("127.0.0.1", 0))
    yield served.url
    served.stop()


def test_every_command_asks_the_model_that_it_names(
    url: str, models: tuple[Model, Model], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "Is it?", "responses": ["Yes."]}) + "\n")
    sample = ["Is it?", "--response", "Yes.", "--url", url, "--json"]
    file = [str(data), str(tmp_path / "out.jsonl"), "--url", url, "--no-progress", "--restart"]
    found = []
    for model in ([], ["--model", "proxy"], ["--model", models[1].fingerprint]):
        assert (
            main(["score", *sample, *model])
            == main(["rank", *sample, *model])
            == main(["score-file", *file, *model])
            == 0
        )
        answers = [json.loads(line)["scores"] for line in capsys.readouterr().out.splitlines()]
        answers.append([json.loads((tmp_path / "out.jsonl").read_text())["score"]])
        assert answers == answers[:1] * 3
        found += answers[0]
    assert found == [pytest.approx(found[0] + offset) for offset in (0, OFFSET, OFFSET)]
    asked = httpx.get(f"{url}/metrics").text
    assert main(["load-test", url, "--requests", "2", "--images", "none", "--model", "proxy"]) == 0
    for name, count in (("tiny", 0), ("proxy", 2)):
        assert samples(httpx.get(f"{url}/metrics").text, name) == samples(asked, name) + count


def samples(metrics: str, model: str) -> float:
    (line,) = [line for line in metrics.splitlines() if line.startswith(f'beholder_samples_total{{model="{model}"}}')]
    return float(line.split()[-1])


def test_a_command_that_names_no_model_of_the_service_is_refused(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "Is it?", "responses": ["Yes."]}) + "\n")
    assert main(["score-file", str(data), str(tmp_path / "out.jsonl"), "--url", url, "--model", "old"]) == 1
    assert "--model old: the service has tiny, " in capsys.readouterr().err
    assert main(["score", "Is it?", "--response", "Yes.", "--url", url, "--model", "old"]) == 1
    assert "send 'tiny' or 'proxy'" in capsys.readouterr().err
    for command in (["score", "Is it?", "--response", "Yes."], ["score-file", str(data), "out.jsonl"]):
        assert main([*command, "--checkpoint", "rm", "--model", "proxy"]) == 1
        assert "--model names one of a service's models: give --url" in capsys.readouterr().err


@pytest.mark.anyio
async def test_the_bound_on_samples_is_for_all_models_together(
    client: httpx.AsyncClient, models: tuple[Model, Model]
) -> None:
    engine = engine_of(models[0])
    engine.gate.clear()
    first = asyncio.ensure_future(rank(client))
    await until(lambda: engine.active)
    assert (await rank(client, "proxy")).json()["code"] == "overloaded"
    engine.gate.set()
    assert (await first).status_code == 200
    assert (await rank(client, "proxy")).status_code == 200


@pytest.mark.anyio
async def test_none_scores_before_all_are_ready(models: tuple[Model, Model]) -> None:
    first, second = map(engine_of, models)
    first.gate.clear()  # its golden samples wait
    async with running(create_app(models[0].settings, models)) as client:
        await until(lambda: first.active)
        assert second.healthy
        assert (await client.get("/readyz")).json()["detail"] == "the golden samples of tiny are being scored"
        assert (await rank(client, "proxy")).status_code == 503
        first.gate.set()
        await until_ready(client)
        assert (await rank(client, "proxy")).status_code == 200
    assert first.stopped
    assert second.stopped


@pytest.mark.anyio
@pytest.mark.parametrize("drifted", [0, 1])
async def test_one_golden_mismatch_keeps_all_unready_and_names_the_model(
    models: tuple[Model, Model], drifted: int
) -> None:
    engine_of(models[drifted]).forget_golden()
    async with running(create_app(models[0].settings, models)) as client:
        unready = await until_code(client, "golden-mismatch")
        assert unready.json()["detail"].startswith(f"{models[drifted].name}: golden sample ")
        assert (await rank(client, models[1 - drifted].name)).status_code == 503


@pytest.mark.anyio
@pytest.mark.parametrize("dead", [0, 1])
async def test_the_death_of_one_engine_fails_the_process(models: tuple[Model, Model], dead: int) -> None:
    app = create_app(models[0].settings, models)
    async with running(app) as client:
        await until_ready(client)
        engine_of(models[dead]).die()
        await until(lambda: app.state.context.lifecycle.failure)
        assert (await client.get("/readyz")).json()["detail"] == f"the engine died: {models[dead].name}"
        assert (await rank(client, models[1 - dead].name)).status_code == 503
        assert f'beholder_engine_up{{model="{models[dead].name}"}} 0.0' in (await client.get("/metrics")).text


async def until_code(client: httpx.AsyncClient, code: str) -> httpx.Response:
    """The first refusal of /readyz with this code."""
    async with asyncio.timeout(10):
        while (response := await until_ready(client, 503)).json()["code"] != code:  # noqa: ASYNC110 (it is over HTTP)
            await asyncio.sleep(0.01)
    return response


@pytest.fixture(scope="module")
def folders(tiny_checkpoint: Path, proxy_checkpoint: Path) -> dict[str, Path]:
    return {"tiny": tiny_checkpoint, "proxy": proxy_checkpoint}


@pytest.fixture(scope="module")
def together(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    pytest.importorskip("vllm")
    folder = tmp_path_factory.mktemp("together")
    config = folder / "beholder.yaml"
    config.write_text("memory_share: 0.5\nmodels: {proxy: {memory_share: 0.2}}\n")
    service = Service(folders["tiny"], folder / "log", "--config", str(config), "--model", f"proxy={folders['proxy']}")
    service.wait_ready()
    yield service
    if service.process.poll() is None:
        assert service.stop() == 0, service.log.read_text()


def scores_of(url: str, image: Path, model: str | None) -> list[float]:
    with RewardClient(url, model=model) as client:
        pictured = client.rank("What is this?", [image], RESPONSES).scores
        return [*pictured, *client.rank("What is this?", [], RESPONSES).scores]


@pytest.mark.slow
def test_both_score_the_golden_samples_as_training_did(together: Service, folders: dict[str, Path]) -> None:
    for model, folder in folders.items():
        with RewardClient(together.url, model=model) as client:
            for sample in read_checkpoint(folder).golden():
                images = [folder / "golden" / name for name in sample.images]
                served = client.score(sample.prompt, images, sample.response).score
                assert served == pytest.approx(sample.score, abs=1e-4), sample.id


@pytest.mark.slow
def test_a_model_scores_as_it_does_alone(
    together: Service, folders: dict[str, Path], golden_image: Path, tmp_path: Path
) -> None:
    beside = scores_of(together.url, golden_image, "proxy")
    alone = Service(folders["proxy"], tmp_path / "log")
    try:
        alone.wait_ready()
        expected = scores_of(alone.url, golden_image, None)
    finally:
        alone.stop()
    assert beside == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_the_first_model_is_the_default_and_the_other_differs(together: Service, golden_image: Path) -> None:
    default, tiny, proxy = (scores_of(together.url, golden_image, model) for model in (None, "tiny", "proxy"))
    assert default == tiny
    assert max(abs(a - b) for a, b in zip(tiny, proxy, strict=True)) > 0.1
    with RewardClient(together.url, model="old") as client, pytest.raises(ModelNotFound, match="'tiny' or 'proxy'"):
        client.score("p", [], "r")


@pytest.mark.slow
def test_vllms_own_metrics_are_of_both(together: Service) -> None:
    before = prompt_tokens_of(together)
    assert before.keys() == {"tiny", "proxy"}
    with RewardClient(together.url, model="proxy") as client:
        client.score("Has nobody asked this?", [], "Nobody has.")
    after = prompt_tokens_of(together)
    assert after["proxy"] > before["proxy"] > 0  # before: the golden samples
    assert after["tiny"] == before["tiny"]


def prompt_tokens_of(service: Service) -> dict[str, float]:
    """vLLM's count of each model's."""
    text = httpx.get(f"{service.url}/metrics").text
    assert text.count("# TYPE vllm:prompt_tokens_total counter") == 1
    (counted,) = (found for found in text_string_to_metric_families(text) if found.name == "vllm:prompt_tokens")
    return {found.labels["model_name"]: found.value for found in counted.samples if found.name.endswith("_total")}


@pytest.mark.slow
def test_a_client_pins_the_model_that_it_asks(together: Service, folders: dict[str, Path]) -> None:
    pinned = read_checkpoint(folders["proxy"]).fingerprint
    with RewardClient(together.url, model="proxy", fingerprint=pinned) as client:
        assert client.rank("p", [], RESPONSES).fingerprint == pinned


@pytest.mark.slow
def test_the_death_of_one_engine_ends_the_process(together: Service) -> None:
    """The last one here: it ends the service."""
    _, proxy = together.cores()
    os.kill(proxy, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while is_ready(together.url):
        assert time.monotonic() < deadline, together.log.read_text()
        time.sleep(0.05)
    assert together.process.wait(STOP_S) == 1, together.log.read_text()
    assert "the engine died: proxy" in together.log.read_text()


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False
