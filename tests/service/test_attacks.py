"""Hostile images: each is refused by its documented code, in bounded memory, and the next request is answered.

Hostile URLs are in test_image_urls.py, hostile texts in test_hostile_texts.py.
"""

import base64
import hashlib
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from beholder.checkpoint import Checkpoint
from beholder.prompts import PromptRenderer
from beholder.settings import Settings
from tests.service.hostile_images import FILES, GIF, INPUTS, JPEG, PNG, WEBP, chunk, header, png_of, rows, zipped
from tests.service.stand_in import StandInEngine, serving
from tests.service.test_http import assert_problem

pytestmark = pytest.mark.anyio
MEMORY_MB = 250


@pytest.fixture(scope="module")
async def client(
    tiny_checkpoint: Path, checkpoint: Checkpoint, renderer: PromptRenderer
) -> AsyncIterator[httpx.AsyncClient]:
    settings = Settings(checkpoint=tiny_checkpoint, drain_delay_s=0)
    engine = StandInEngine.passing_golden(checkpoint, renderer)
    async with serving(settings, engine, checkpoint, renderer) as client:
        yield client


def score_of(image: object) -> dict[str, object]:
    return {"prompt": "p", "images": [image], "response": "r"}


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


@contextmanager
def at_most_mb(limit: float) -> Iterator[None]:
    """What the process holds at a time, beyond what it held before. The kernel is told to forget the former peak."""
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_mb()
    yield
    assert peak_mb() - before < limit


def peak_mb() -> float:
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) / 1024


async def assert_still_serving(client: httpx.AsyncClient) -> None:
    assert (await client.post("/score", json=score_of(text_of(PNG)))).status_code == 200


@pytest.mark.parametrize("name", FILES)
async def test_a_bad_file_is_refused(client: httpx.AsyncClient, name: str) -> None:
    data, (status, code) = FILES[name]
    with at_most_mb(MEMORY_MB):
        assert_problem(await client.post("/score", json=score_of(text_of(data))), status, code)
        sent_ahead = await client.put(f"/images/{hashlib.sha256(data).hexdigest()}", content=data)
        code = "request-too-large" if len(data) > 20 * 2**20 else code
        assert_problem(sent_ahead, status, code)
    await assert_still_serving(client)


@pytest.mark.parametrize("name", INPUTS)
async def test_a_bad_input_is_refused(client: httpx.AsyncClient, name: str) -> None:
    value, (status, code) = INPUTS[name]
    body = assert_problem(await client.post("/score", json=score_of(value)), status, code)
    assert "passwd" not in str(body) or "passwd" in str(value)
    await assert_still_serving(client)


@pytest.mark.parametrize("data", [PNG, JPEG, GIF, WEBP], ids=["png", "jpeg", "gif", "webp"])
async def test_bytes_after_the_end_are_left_alone(client: httpx.AsyncClient, data: bytes) -> None:
    """Cameras write them. The file is the image that its first bytes say, and nothing else is read."""
    assert (await client.post("/score", json=score_of(text_of(data + zipped(PNG))))).status_code == 200


async def test_more_images_than_any_conversation_may_have(client: httpx.AsyncClient) -> None:
    body = {"prompt": "p", "images": [text_of(PNG)] * 65, "response": "r"}
    assert_problem(await client.post("/score", json=body), 422, "invalid-request")
    await assert_still_serving(client)


async def test_many_bombs_at_once_stay_within_the_memory_for_pixels(
    tiny_checkpoint: Path, checkpoint: Checkpoint, renderer: PromptRenderer
) -> None:
    """Each image is within its limit, together they are not: 12 times 25 million pixels of 4 bytes."""
    data = rows(5_000, 5_000)
    bombs = [
        text_of(png_of(header(5_000, 5_000), chunk(b"tEXt", b"n\0" + str(number).encode()), data))
        for number in range(12)
    ]
    items = [{"prompt": "p", "images": bombs[index : index + 4], "response": "r"} for index in range(0, 12, 4)]
    settings = Settings(checkpoint=tiny_checkpoint, drain_delay_s=0, max_decoded_pixels=60_000_000)
    engine = StandInEngine.passing_golden(checkpoint, renderer)
    async with serving(settings, engine, checkpoint, renderer) as client:
        with at_most_mb(60 * 4 + MEMORY_MB):
            assert_problem(await client.post("/score", json={"items": items}), 413, "image-too-large")
        await assert_still_serving(client)
