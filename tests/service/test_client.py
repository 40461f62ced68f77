"""The client, over a stand-in engine behind a real server and over a transport that answers what a test says."""

import io
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from signal import SIGINT

import httpx
import pytest
from PIL import Image

from beholder.app import create_app
from beholder.checkpoint import Checkpoint
from beholder.client import RewardClient, encode_image
from beholder.errors import (
    BeholderError,
    DeadlineExceeded,
    EmptyResponse,
    EngineError,
    EngineUnavailable,
    FingerprintMismatch,
    ImageError,
    ImageNotFound,
)
from beholder.prompts import PromptRenderer
from beholder.server import bind, make_server
from beholder.settings import Settings
from tests.service.stand_in import StandInEngine

RESPONSES = ["It is red.", "It is blue.", "It is green."]


@pytest.fixture
def url(settings: Settings, engine: StandInEngine, checkpoint: Checkpoint, renderer: PromptRenderer) -> Iterator[str]:
    server = make_server(create_app(settings, engine, checkpoint, renderer), settings)
    listener = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    while httpx.get(f"{url}/readyz").status_code != 200:
        pass
    yield url
    server.handle_exit(SIGINT, None)
    thread.join(10)


def test_rank_and_score_agree(url: str, golden_image: Path, checkpoint: Checkpoint) -> None:
    with RewardClient(url, fingerprint=checkpoint.fingerprint) as client:
        ranking = client.rank("Colour?", [golden_image], RESPONSES)
        scores = [client.score("Colour?", [golden_image], response) for response in RESPONSES]
    assert ranking.scores == [score.score for score in scores]
    assert ranking.best == ranking.order[0] == ranking.ranks.index(0)
    assert ranking.fingerprint == checkpoint.fingerprint
    if checkpoint.manifest.calibration:
        assert ranking.normalized == [score.normalized for score in scores]


def test_images_come_as_file_bytes_or_picture(url: str, golden_image: Path) -> None:
    with RewardClient(url) as client, Image.open(golden_image) as picture:
        given = (golden_image, str(golden_image), golden_image.read_bytes())
        assert len({client.score("p", [image], "r").score for image in given}) == 1
        client.score("p", [picture], "r")


def test_a_picture_is_sent_without_loss() -> None:
    picture = Image.new("RGB", (3, 2), (1, 2, 3))
    import base64

    with Image.open(io.BytesIO(base64.b64decode(encode_image(picture)))) as sent:
        assert sent.tobytes() == picture.tobytes()


def test_messages_are_a_prompt_too(url: str) -> None:
    with RewardClient(url) as client:
        plain = client.score("p", [], "r").score
        assert client.score([{"role": "user", "content": "p"}], [], "r").score == plain


@pytest.mark.parametrize(
    ("images", "response", "error"), [([], "", EmptyResponse), ([b"not an image"], "r", ImageError)]
)
def test_errors_arrive_as_their_class(url: str, images: list[bytes], response: str, error: type[BeholderError]) -> None:
    with RewardClient(url) as client, pytest.raises(error):
        client.score("p", images, response)


def test_a_pinned_fingerprint_refuses_another_checkpoint(url: str) -> None:
    with RewardClient(url, fingerprint="0" * 64) as client, pytest.raises(FingerprintMismatch):
        client.score("p", [], "r")


def test_a_missing_file_is_named_before_anything_is_sent() -> None:
    with RewardClient("http://unused") as client, pytest.raises(ImageNotFound, match=r"no/such\.png"):
        client.score("p", [Path("no/such.png")], "r")


def test_nobody_listening_is_engine_unavailable() -> None:
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    with RewardClient(f"http://127.0.0.1:{port}") as client, pytest.raises(EngineUnavailable, match=str(port)):
        client.score("p", [], "r")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (httpx.Response(502, text="<html>bad gateway"), EngineError),
        (httpx.Response(200, text="welcome to nginx"), EngineError),
        (httpx.Response(400, json={"code": "of-the-future", "detail": "x"}), EngineError),
        (httpx.Response(503, json={"code": "overloaded", "detail": "full"}), EngineError),
    ],
)
def test_what_is_not_an_answer_raises(answer: httpx.Response, error: type[BeholderError]) -> None:
    transport = httpx.MockTransport(lambda _: answer)
    with RewardClient("http://t", transport=transport) as client, pytest.raises(error):
        client.score("p", [], "r")


def test_a_slow_service_is_a_missed_deadline() -> None:
    def slow(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("slow", request=request)

    with RewardClient("http://t", transport=httpx.MockTransport(slow)) as client, pytest.raises(DeadlineExceeded):
        client.score("p", [], "r")


@pytest.mark.parametrize("module", ["beholder", "beholder.client", "beholder.errors", "beholder.cli"])
def test_a_trainer_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*{{'torch', 'vllm', 'fastapi', 'transformers', 'PIL'}} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == ""
