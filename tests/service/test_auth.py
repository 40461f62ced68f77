"""API keys: who is let in, by which header, how keys are rotated, and how much one key may ask at once."""

import asyncio
import base64
import hmac
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from beholder import auth
from beholder.auth import KeyRing
from beholder.checkpoint import Checkpoint
from beholder.errors import ConfigurationError
from beholder.prompts import PromptRenderer
from beholder.settings import Settings, load_settings
from tests.service.stand_in import StandInEngine, running, serving, until, until_ready
from tests.service.test_http import assert_problem

pytestmark = pytest.mark.anyio
KEY, OTHER = "first-key", "schlüssel"
SCORE = {"prompt": "p", "response": "r"}
Serve = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


def bearer(key: str) -> dict[bytes, bytes]:
    return {b"authorization": b"Bearer " + key.encode()}


def basic(user: str, password: str) -> dict[bytes, bytes]:
    return {b"authorization": b"Basic " + base64.b64encode(f"{user}:{password}".encode())}


@pytest.fixture
def serve(settings: Settings, engine: StandInEngine, checkpoint: Checkpoint, renderer: PromptRenderer) -> Serve:
    def start(**changes: object) -> AbstractAsyncContextManager[httpx.AsyncClient]:
        keys = {"api_keys": (SecretStr(KEY), SecretStr(OTHER))}
        return serving(settings.model_copy(update={**keys, **changes}), engine, checkpoint, renderer)

    return start


@pytest.mark.parametrize("headers", [bearer(KEY), bearer(OTHER), basic("x", KEY), basic("", KEY), basic("a", OTHER)])
async def test_a_key_is_let_in(serve: Serve, headers: dict[bytes, bytes]) -> None:
    async with serve() as client:
        assert (await client.post("/score", json=SCORE, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer(""),
        bearer("wrong"),
        bearer(KEY + "x"),
        bearer(KEY[:-1]),
        basic(KEY, ""),
        basic(KEY, "wrong"),
        {b"authorization": KEY.encode()},
        {b"authorization": b"Basic " + KEY.encode()},
        {b"authorization": b"Basic \xff\xfe"},
        {b"authorization": b"Digest " + KEY.encode()},
        {b"x-api-key": KEY.encode()},
    ],
)
async def test_others_are_not(serve: Serve, headers: dict[bytes, bytes]) -> None:
    async with serve() as client:
        response = await client.post("/score", json=SCORE, headers=headers)
        assert_problem(response, 401, "unauthorized")
        assert response.headers["www-authenticate"].startswith("Bearer")
        assert KEY not in response.text


async def test_every_route_but_health_needs_a_key(serve: Serve) -> None:
    async with serve() as client:
        paths = (await client.get("/openapi.json", headers=bearer(KEY))).json()["paths"]
        for path, operations in paths.items():
            for method in operations:
                status = (await client.request(method, path.replace("{sha256}", "0" * 64))).status_code
                assert (status == 401) == (path not in ("/livez", "/readyz", "/metrics")), path
        for path in ("/openapi.json", "/docs", "/nothing", "/livez/", "//livez"):
            assert (await client.get(path)).status_code == 401, path


async def test_metrics_need_a_key_by_setting(serve: Serve) -> None:
    async with serve(metrics_need_key=True) as client:
        assert (await client.get("/metrics")).status_code == 401
        assert (await client.get("/metrics", headers=bearer(KEY))).status_code == 200


async def test_keys_of_a_file_are_rotated_without_a_restart(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "RELOAD_S", 0)
    file = tmp_path / "keys"
    file.write_text("# team a\nold\n\n")
    async with serve(api_keys=(), api_keys_file=file) as client:

        async def status(key: str) -> int:
            return (await client.post("/score", json=SCORE, headers=bearer(key))).status_code

        assert (await status("old"), await status("new"), await status("# team a")) == (200, 401, 401)
        file.write_text("old\nnew\n")
        assert (await status("old"), await status("new")) == (200, 200)
        scratch = tmp_path / "next"
        scratch.write_text("new\n")
        os.replace(scratch, file)  # noqa: PTH105 (as Kubernetes swaps a mounted secret)
        assert (await status("old"), await status("new")) == (401, 200)
        file.unlink()
        assert await status("new") == 200  # the keys read before stay
        file.write_text("")
        assert await status("new") == 401


@pytest.mark.parametrize("content", [None, "", "# only a comment\n"])
def test_a_file_without_keys_does_not_open_the_service(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "keys").write_text(content)
    with pytest.raises(ConfigurationError, match="api_keys_file"):
        KeyRing([], tmp_path / "keys")


def test_every_key_is_compared_whatever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    compare = hmac.compare_digest

    def counting(first: bytes, second: bytes) -> bool:
        compared.append(len(first) == len(second) == 32)
        return bool(compare(first, second))

    monkeypatch.setattr(hmac, "compare_digest", counting)
    keys = KeyRing(["a", "b", "c"], None)
    keys.identify(b"Bearer a")
    assert compared == [True] * 3


def test_keys_come_from_a_variable_and_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEHOLDER_API_KEYS", "key-1, key-2")
    settings = load_settings({"checkpoint": "x"})
    assert [key.get_secret_value() for key in settings.api_keys] == ["key-1", "key-2"]
    assert "key-1" not in repr(settings)


@pytest.mark.parametrize("shed_status", [503, 429])
async def test_one_key_has_its_share(serve: Serve, engine: StandInEngine, shed_status: int) -> None:
    async with serve(max_concurrent_per_key=1, shed_status=shed_status) as client:
        engine.gate.clear()
        first = asyncio.ensure_future(client.post("/score", json=SCORE, headers=bearer(KEY)))
        await until(lambda: engine.active == 1)
        shed = await client.post("/score", json=SCORE, headers=basic("x", KEY))
        assert_problem(shed, shed_status, "key-overloaded")
        assert shed.headers["retry-after"] == "1"
        other = asyncio.ensure_future(client.post("/score", json=SCORE, headers=bearer(OTHER)))
        await until(lambda: engine.active == 2)
        engine.gate.set()
        assert [(await request).status_code for request in (first, other)] == [200, 200]
        assert (await client.post("/score", json=SCORE, headers=bearer(KEY))).status_code == 200


async def test_without_keys_everybody_is_let_in(serve: Serve) -> None:
    async with serve(api_keys=()) as client:
        assert (await client.post("/score", json=SCORE)).status_code == 200


async def test_the_key_is_asked_for_before_the_service_is_ready(
    settings: Settings, engine: StandInEngine, checkpoint: Checkpoint, renderer: PromptRenderer
) -> None:
    from beholder.app import create_app
    from beholder.models import Model

    locked = settings.model_copy(update={"api_keys": (SecretStr(KEY),)})
    async with running(create_app(locked, [Model(locked, engine, checkpoint, renderer)])) as client:
        assert (await client.post("/score", json=SCORE)).status_code == 401
        await until_ready(client)
