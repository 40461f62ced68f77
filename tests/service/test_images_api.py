"""Every way to send an image scores alike: base64, data URL, form, sent ahead, marker, link."""

import base64
import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from beholder.checkpoint import Checkpoint
from beholder.images import ImageLimits, decode_base64
from beholder.images import sources as image_sources
from beholder.images.sources import QUICK_CHARACTERS
from beholder.images.store import FolderStore
from beholder.prompts import PromptRenderer
from beholder.settings import Settings
from tests.pictures import encode, png
from tests.service.stand_in import Serve, StandInEngine, serving
from tests.service.test_http import assert_problem

pytestmark = pytest.mark.anyio
PICTURE = png()
NAME = hashlib.sha256(PICTURE).hexdigest()
INLINE = base64.b64encode(PICTURE).decode()
QUESTION = {"prompt": "Colour?", "responses": ["Red.", "Blue."]}


async def inline_scores(client: httpx.AsyncClient) -> list[float]:
    scores: list[float] = (await client.post("/rank", json={**QUESTION, "images": [INLINE]})).json()["scores"]
    return scores


async def test_an_image_sent_ahead_scores_as_one_sent_along(client: httpx.AsyncClient) -> None:
    first = await client.put(f"/images/{NAME}", content=PICTURE)
    again = await client.put(f"/images/{NAME}", content=PICTURE)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == {
        "sha256": NAME,
        "bytes": len(PICTURE),
        "width": 64,
        "height": 64,
        "expires_in_s": 6 * 3600,
    }
    answer = await client.post("/rank", json={**QUESTION, "images": [{"sha256": NAME}]})
    assert answer.json()["scores"] == await inline_scores(client)


async def test_a_form_scores_as_json(client: httpx.AsyncClient) -> None:
    form = {"data": {"request": json.dumps(QUESTION)}, "files": [("images", ("a.png", PICTURE, "image/png"))]}
    answer = await client.post("/rank", **form)  # type: ignore[arg-type]
    assert answer.json()["scores"] == await inline_scores(client)


@pytest.mark.parametrize(
    ("fields", "files", "words"),
    [
        ({}, [], "form"),
        ({"request": "{"}, [("images", PICTURE)], "Invalid JSON"),
        ({"request": json.dumps(QUESTION)}, [("pictures", PICTURE)], "no others"),
        ({"request": json.dumps({**QUESTION, "images": [INLINE]})}, [("images", PICTURE)], "not both"),
    ],
)
async def test_forms_that_are_refused(
    client: httpx.AsyncClient, fields: dict[str, str], files: list[tuple[str, bytes]], words: str
) -> None:
    files = files or [("images", PICTURE)]
    response = await client.post("/rank", data=fields, files=files)
    assert words in assert_problem(response, 422, "invalid-request")["detail"]


@pytest.mark.parametrize("charset", ["", "; charset=utf-8", "; charset=iso-8859-1"])
@pytest.mark.parametrize("name", ['"request"', '"request"; filename="r.json"'])
async def test_a_form_is_utf_8_as_json_is(client: httpx.AsyncClient, name: str, charset: str) -> None:
    def form(content: bytes) -> dict[str, Any]:
        head = f"--x\r\nContent-Disposition: form-data; name={name}\r\n\r\n".encode()
        kind = f"multipart/form-data; boundary=x{charset}"
        return {"content": head + content + b"\r\n--x--\r\n", "headers": {"content-type": kind}}

    body = '{"prompt": "Farbe der T\u00fcr?", "responses": ["Gr\u00fcn.", "\u8d64"]}'.encode()
    scores = (await client.post("/rank", content=body)).json()["scores"]
    assert (await client.post("/rank", **form(body))).json()["scores"] == scores
    for wrong in (body.replace("\u00fc".encode(), b"\xc3", 1), body.replace("\u00fc".encode(), b"\xfc")):
        assert_problem(await client.post("/rank", content=wrong), 422, "invalid-text")
        assert_problem(await client.post("/rank", **form(wrong)), 422, "invalid-text")


async def test_a_form_that_is_none_is_refused(client: httpx.AsyncClient) -> None:
    for kind in ("multipart/form-data", "multipart/form-data; boundary=x", "multipart/form-data; boundary=\u00e9"):
        headers = {b"content-type": kind.encode("latin-1")}
        assert_problem(await client.post("/rank", content=b"nonsense", headers=headers), 422, "invalid-request")


async def test_a_form_of_an_unusable_charset_is_read_or_refused(client: httpx.AsyncClient) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="request"\r\n\r\n' + json.dumps(QUESTION).encode()
    for charset in ("undefined", "idna", "base64", "none", "\u00e9"):
        headers = {b"content-type": f"multipart/form-data; boundary=x; charset={charset}".encode("latin-1")}
        response = await client.post("/rank", content=part + b"\r\n--x--\r\n", headers=headers)
        if response.status_code != 200:
            assert_problem(response, 422, "invalid-request")


@pytest.mark.parametrize("path", ["/rank", f"/images/{NAME}"])
async def test_compressed_bodies_are_refused(client: httpx.AsyncClient, path: str) -> None:
    method = "PUT" if path.startswith("/images") else "POST"
    content = PICTURE if method == "PUT" else json.dumps(QUESTION).encode()
    for encoding in ("gzip", "br", "gzip, identity"):
        response = await client.request(method, path, content=content, headers={"content-encoding": encoding})
        assert "uncompressed" in assert_problem(response, 415, "unsupported-encoding")["detail"]
    response = await client.request(method, path, content=content, headers={"content-encoding": "Identity"})
    assert response.is_success


async def test_the_service_opens_what_its_own_limit_accepts(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)
    async with serve() as client:
        assert (await client.post("/rank", json={**QUESTION, "images": [INLINE]})).status_code == 200


async def test_an_unknown_reference_has_its_own_code(client: httpx.AsyncClient) -> None:
    response = await client.post("/rank", json={**QUESTION, "images": [{"sha256": "0" * 64}]})
    body = assert_problem(response, 422, "image-unknown")
    assert body["sha256"] == "0" * 64
    assert body["detail"].startswith("responses[0]: images[0]: ")


@pytest.mark.parametrize(
    ("path", "content", "status", "code"),
    [
        ("0" * 64, PICTURE, 422, "image-hash-mismatch"),
        ("nonsense", PICTURE, 422, "invalid-request"),
        (NAME.upper(), PICTURE, 422, "invalid-request"),
        (hashlib.sha256(b"<svg/>").hexdigest(), b"<svg/>", 422, "invalid-image"),
        (hashlib.sha256(PICTURE[:-20]).hexdigest(), PICTURE[:-20], 422, "invalid-image"),
        (hashlib.sha256(b"").hexdigest(), b"", 422, "invalid-image"),
    ],
)
async def test_what_is_not_stored(client: httpx.AsyncClient, path: str, content: bytes, status: int, code: str) -> None:
    assert_problem(await client.put(f"/images/{path}", content=content), status, code)


async def test_a_full_store_sheds(serve: Serve) -> None:
    async with serve(image_store_bytes=len(PICTURE) + 1) as client:
        await client.put(f"/images/{NAME}", content=PICTURE)
        other = png(colour=(1, 2, 3))
        response = await client.put(f"/images/{hashlib.sha256(other).hexdigest()}", content=other)
        assert_problem(response, 503, "image-store-full")
        assert "retry-after" in response.headers


async def test_a_shared_folder_outlives_the_service_and_is_not_trusted(
    settings: Settings, engine: StandInEngine, checkpoint: Checkpoint, renderer: PromptRenderer, tmp_path: Path
) -> None:
    shared = settings.model_copy(update={"image_store": tmp_path})
    async with serving(shared, engine, checkpoint, renderer) as client:
        await client.put(f"/images/{NAME}", content=PICTURE)
    body = {**QUESTION, "images": [{"sha256": NAME}]}
    async with serving(shared, engine, checkpoint, renderer) as client:
        assert (await client.post("/rank", json=body)).status_code == 200
    (tmp_path / NAME[:2] / NAME).write_bytes(png(colour=(9, 9, 9)))
    async with serving(shared, engine, checkpoint, renderer) as client:
        assert_problem(await client.post("/rank", json=body), 422, "image-unknown")
        assert (await client.put(f"/images/{NAME}", content=PICTURE)).status_code == 201
        assert (await client.post("/rank", json=body)).status_code == 200


async def test_the_event_loop_waits_for_no_folder(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    alive = FolderStore._alive

    def spy(self: FolderStore, path: Path) -> bool:
        threads.append(threading.get_ident())
        return alive(self, path)

    monkeypatch.setattr(FolderStore, "_alive", spy)
    async with serve(image_store=tmp_path) as client:
        await client.put(f"/images/{NAME}", content=PICTURE)
        for _ in range(2):  # the second time it is decoded already
            response = await client.post("/rank", json={**QUESTION, "images": [{"sha256": NAME}]})
            assert response.status_code == 200
    assert threads
    assert threading.get_ident() not in threads


async def test_the_event_loop_hashes_little_of_a_request(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []

    def spy(text: str, limits: ImageLimits) -> bytes:
        if threading.current_thread() is threading.main_thread():
            hashed.append(len(text))
        return decode_base64(text, limits)

    monkeypatch.setattr(image_sources, "decode_base64", spy)
    noise = [Image.effect_noise((200, 150), 90 + number) for number in range(8)]
    images = [base64.b64encode(encode(picture, "PNG")).decode() for picture in noise]
    assert max(map(len, images)) < QUICK_CHARACTERS / 2
    assert sum(map(len, images)) > QUICK_CHARACTERS
    async with serve(max_images=8) as client:
        for _ in range(2):
            hashed.clear()
            assert (await client.post("/rank", json={**QUESTION, "images": images})).status_code == 200
    assert 0 < sum(hashed) <= QUICK_CHARACTERS


async def test_too_many_images_are_refused_before_they_are_decoded(client: httpx.AsyncClient) -> None:
    response = await client.post("/rank", json={**QUESTION, "images": ["broken"] * 5})
    assert_problem(response, 422, "too-many-images")


async def test_pixels_in_flight_are_bounded(serve: Serve) -> None:
    others = [base64.b64encode(png(colour=(number, 0, 0))).decode() for number in range(3)]
    async with serve(max_decoded_pixels=64 * 64 * 2) as client:
        for _ in range(5):  # nothing stays counted
            answer = await client.post("/rank", json={**QUESTION, "images": others[:2]})
            assert answer.status_code == 200
            response = await client.post("/rank", json={**QUESTION, "images": others})
            assert_problem(response, 413, "image-too-large")
