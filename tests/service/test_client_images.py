"""The pixels that the service decodes are the caller's, bit for bit, from every kind of image; each is sent once."""

import asyncio
import base64
import io
import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image, ImageOps

from beholder.client import AsyncRewardClient, RewardClient, encode_image, replicas
from beholder.errors import EngineError, ImageError, ImageNotFound
from beholder.images import load_image
from beholder.images.loading import _to_rgb
from tests.pictures import encode, png

NOISE = np.random.default_rng(0)
WIDTH, HEIGHT = 37, 23


def noise(*channels: int, dtype: Any = np.uint8) -> Any:
    return NOISE.integers(0, np.iinfo(dtype).max, (HEIGHT, WIDTH, *channels), dtype, endpoint=True)


def colours() -> Image.Image:
    return Image.fromarray(noise(3))


def palette() -> Image.Image:
    return colours().quantize(17)


def transparent_palette() -> Image.Image:
    picture = palette()
    picture.info["transparency"] = bytes([0, 100, 255])
    return picture


def one_transparent_colour() -> Image.Image:
    picture = colours()
    picture.info["transparency"] = picture.getpixel((0, 0))
    return picture


def gif() -> Image.Image:
    picture = Image.open(io.BytesIO(encode(colours(), "GIF")))
    picture.load()
    return picture


def sixteen_bit(mode: str, values: Any = None) -> Image.Image:
    values = noise(dtype=np.uint16) if values is None else values
    return Image.frombytes(mode, (WIDTH, HEIGHT), values.astype(">u2" if mode == "I;16B" else "<u2").tobytes())


def rotated_jpeg() -> Image.Image:
    """As PIL opens it: the rotation is a note beside the pixels, which the caller has not applied."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return Image.open(io.BytesIO(encode(colours(), "JPEG", exif=exif)))


PICTURES: dict[str, Callable[[], Image.Image]] = {
    "RGB": colours,
    "RGBA": lambda: Image.fromarray(noise(4)),
    "L": lambda: Image.fromarray(noise()),
    "LA": lambda: Image.fromarray(noise(4)).convert("LA"),
    "1": lambda: Image.fromarray(noise()).convert("1"),
    "P": palette,
    "P, transparent": transparent_palette,
    "RGB, transparent": one_transparent_colour,
    "GIF": gif,
    "I;16": lambda: sixteen_bit("I;16"),
    "I": lambda: sixteen_bit("I;16").convert("I"),
    "CMYK": lambda: colours().convert("CMYK"),
    "YCbCr": lambda: colours().convert("YCbCr"),
    "RGBa": lambda: Image.fromarray(noise(4)).convert("RGBa"),
    "HSV": lambda: colours().convert("HSV"),
    "WebP": lambda: Image.open(io.BytesIO(encode(colours(), "WEBP", lossless=True))),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_s_pixels_arrive(kind: str) -> None:
    picture = PICTURES[kind]()
    received = load_image(encode_image(picture).data).pixels
    assert received.tobytes() == _to_rgb(picture).tobytes()
    assert received.size == (WIDTH, HEIGHT)


def test_a_picture_arrives_as_it_stands_in_memory() -> None:
    picture = rotated_jpeg()
    received = load_image(encode_image(picture).data).pixels
    assert received.tobytes() == picture.convert("RGB").tobytes()
    upright = load_image(encode_image(ImageOps.exif_transpose(picture)).data).pixels
    assert upright.size == (HEIGHT, WIDTH)


def test_the_order_of_bytes_in_sixteen_bits_does_not_matter() -> None:
    values = noise(dtype=np.uint16)
    little, big = encode_image(sixteen_bit("I;16", values)), encode_image(sixteen_bit("I;16B", values))
    assert load_image(little.data).pixels.tobytes() == load_image(big.data).pixels.tobytes()


@pytest.mark.parametrize("channels", [(), (3,), (4,)])
def test_an_array_s_pixels_arrive(channels: tuple[int, ...]) -> None:
    array = noise(*channels)
    assert load_image(encode_image(array).data).pixels.tobytes() == _to_rgb(Image.fromarray(array)).tobytes()


def test_a_sixteen_bit_array_s_pixels_arrive() -> None:
    array = noise(dtype=np.uint16)
    received = np.asarray(load_image(encode_image(array).data).pixels)
    assert (received[:, :, 0] == array // 256).all()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_file_is_sent_as_it_is(form: str, tmp_path: Path) -> None:
    data = encode(colours(), form)
    (tmp_path / "picture").write_bytes(data)
    for given in (data, tmp_path / "picture", str(tmp_path / "picture"), {"bytes": data}, bytearray(data)):
        assert encode_image(given).data == data  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "image",
    [
        noise(3).astype(np.float32),
        noise(2),
        noise(3).transpose(2, 0, 1),
        noise(3)[None],
        np.zeros((0, 4, 3), np.uint8),
        Image.fromarray(noise().astype(np.float32)),
        Image.fromarray(noise().astype(np.int32) - 5),
        {"path": None},
        {},
        7,
        None,
    ],
    ids=repr,
)
def test_what_would_have_to_be_guessed_is_refused(image: Any) -> None:
    with pytest.raises(ImageError):
        encode_image(image)


def test_a_file_named_by_a_url_is_sent_as_it_is(tmp_path: Path) -> None:
    data = encode(colours(), "PNG")
    for name in ("picture.png", "a picture.png", "a%20b.png", "#1?.png"):
        (tmp_path / name).write_bytes(data)
        for given in (f"file://{tmp_path / name}", (tmp_path / name).as_uri()):
            assert encode_image(given).data == data
            assert encode_image({"bytes": None, "path": given}).data == data


def test_a_file_in_a_data_url_is_sent_as_it_is() -> None:
    data = encode(colours(), "JPEG")
    text = base64.b64encode(data).decode()
    for head in ("data:image/jpeg;base64", "data:image;base64", "DATA:;BASE64"):
        assert encode_image(f"{head},{text}").data == data


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://host/picture.png?key=s3cret", "of host.*download"),
        ("HTTP://[broken", "download"),
        ("data:image/png;base64,%%%", "base64"),
        ("data:image/png;base64,iVBORw0KGg", "base64"),
        ("data:image/png,picture", "base64"),
        ("data:image/png;base64", "base64"),
        ("file:///no/such.png", "such.png"),
    ],
)
def test_a_url_that_names_no_file_is_refused(url: str, said: str) -> None:
    with pytest.raises(ImageError, match=said) as caught:
        encode_image(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("path", ["a\0.png", f"iVBORw0KGgo{'A' * 100_000}"])
def test_what_is_no_path_is_shown_short(path: str) -> None:
    with pytest.raises(ImageNotFound) as caught:
        encode_image(path)
    assert len(str(caught.value)) < 200


class Store:
    """A service that keeps images, forgets them when told to, and counts what is sent."""

    def __init__(self) -> None:
        self.stored: set[str] = set()
        self.requests: Counter[str] = Counter()
        self.forgets = False
        self.full, self.code = 0, ""
        self.broken = False
        self.inline: list[str] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        import json

        await asyncio.sleep(0.01)
        self.requests[request.method] += 1
        name = request.url.path.rpartition("/")[2]
        if request.method == "PUT":
            if self.full:
                return problem(self.full, self.code)
            self.stored |= set() if self.forgets else {name}
            return httpx.Response(201, json={"sha256": name, "expires_in_s": 100.0})
        images = json.loads(request.content)["images"]
        self.inline += [image for image in images if isinstance(image, str)]
        if self.broken and len(self.inline) < len(images):
            return problem(503, "image-store-unavailable")
        if any(isinstance(image, dict) and image["sha256"] not in self.stored for image in images):
            return problem(422, "image-unknown")
        usage = {"prompt_tokens": 1, "cached_tokens": 0}
        return httpx.Response(200, json={"scores": [1.0], "fingerprint": "f", "usage": usage})


def problem(status: int, code: str) -> httpx.Response:
    return httpx.Response(status, json={"code": code, "detail": code})


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_picture_that_samples_share_is_decoded_for_one_at_a_time(kind: str) -> None:
    """Pillow reads a file at the picture's first use; two threads in it get half of the pixels, or an error."""
    data = encode(Image.fromarray(noise(3)).resize((700, 500)), kind)
    expected = encode_image(Image.open(io.BytesIO(data))).sha256
    with ThreadPoolExecutor(8) as pool:
        for _ in range(25):
            picture = Image.open(io.BytesIO(data))
            encoded = list(pool.map(lambda _, shared=picture: encode_image(shared).sha256, range(8)))
            assert set(encoded) == {expected}


def test_a_forked_process_does_not_wait_for_threads_of_its_parent() -> None:
    parent, decoding, over = os.getpid(), threading.Event(), threading.Event()

    class Picture:
        """Takes long to decode in the parent."""

        mode, save = "RGB", None

        def copy(self) -> Image.Image:
            if os.getpid() == parent:
                decoding.set()
                over.wait()
            return colours()

    picture: Any = Picture()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(encode_image, picture)
        decoding.wait()
        child = multiprocessing.get_context("fork").Process(target=encode_image, args=(picture,))
        child.start()
        child.join(20)
        over.set()
        exit_code = child.exitcode
        child.kill()
    assert exit_code == 0


def test_a_broken_picture_is_an_image_error_of_its_sample() -> None:
    store, whole = Store(), png()
    with RewardClient("http://t", transport=httpx.MockTransport(store)) as client:
        broken = Image.open(io.BytesIO(encode(Image.fromarray(noise(3)).resize((300, 300)), "PNG")[:5000]))
        failed, scored = client.try_score_many([("p", [broken], "r"), ("p", [whole], "r")])
    assert isinstance(failed, ImageError)
    assert "cannot be decoded" in str(failed)
    assert not isinstance(scored, Exception)


@pytest.mark.anyio
async def test_an_image_is_sent_once_however_many_ask_at_a_time() -> None:
    store = Store()
    async with AsyncRewardClient("http://t", transport=httpx.MockTransport(store)) as client:
        await client.score_many([("p", [png(), png(colour=(1, 2, 3))], f"r{number}") for number in range(16)])
    assert store.requests == {"PUT": 2, "POST": 16}
    assert not store.inline


def test_a_store_that_fails_later_is_not_waited_for() -> None:
    store = Store()
    with RewardClient("http://t", transport=httpx.MockTransport(store), retries=0) as client:
        client.score("p", [png()], "r")
        store.broken = True
        assert client.score("p", [png()], "r").score == 1.0
    assert len(store.inline) == 1


def test_a_receipt_that_is_none_is_an_error() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(201, json={"ok": True}))
    with RewardClient("http://t", transport=transport) as client, pytest.raises(EngineError, match="how long"):
        client.score("p", [png()], "r")


def test_an_unknown_image_is_sent_again() -> None:
    store = Store()
    with RewardClient("http://t", transport=httpx.MockTransport(store)) as client:
        client.score("p", [png()], "r")
        store.stored.clear()  # it expired, or the service was restarted
        client.score("p", [png()], "r")
    assert store.requests == {"PUT": 2, "POST": 3}


def test_where_no_reference_holds_the_image_goes_with_the_request() -> None:
    """Several replicas without a common store behind one URL: the next request may meet another one each time."""
    store = Store()
    store.forgets = True
    with RewardClient("http://t", transport=httpx.MockTransport(store)) as client:
        assert client.score("p", [png()], "r").score == 1.0
    assert len(store.inline) == 1


@pytest.mark.parametrize(
    ("status", "code"), [(503, "image-store-full"), (429, "image-store-full"), (503, "image-store-unavailable")]
)
def test_with_a_full_store_the_image_goes_with_the_request(status: int, code: str) -> None:
    store = Store()
    store.full, store.code = status, code
    with RewardClient("http://t", transport=httpx.MockTransport(store)) as client:
        assert client.score("p", [png()], "r").score == 1.0
    assert len(store.inline) == 1


def test_to_a_full_store_no_image_is_sent_ahead_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every request of it would send its images twice."""
    monkeypatch.setattr(replicas, "STORE_REST_S", 0.5)
    store, known, new = Store(), png(), png(colour=(1, 2, 3))
    with RewardClient("http://t", transport=httpx.MockTransport(store)) as client:
        client.score("p", [known], "r")
        store.full, store.code = 503, "image-store-full"
        client.score_many([("p", [known, new], f"r{number}") for number in range(16)])
        assert store.requests == {"PUT": 2, "POST": 17}
        assert len(store.inline) == 16  # what it has is named all the same
        store.full = 0
        time.sleep(0.5)
        client.score("p", [known, new], "r")
    assert store.requests == {"PUT": 3, "POST": 18}
    assert len(store.inline) == 16
