"""Running services by URL: the same file as with an engine here, and the same errors."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from beholder.checkpoint import read_checkpoint
from beholder.engine.fake import FakeEngine
from beholder.errors import BeholderError, EngineUnavailable, FingerprintMismatch
from beholder.offline.backends import ServiceBackend
from beholder.offline.scoring import Job, score_file
from beholder.prompts import PromptRenderer
from beholder.settings import Settings
from tests.offline.scoring import read, score, write
from tests.service.serving import served
from tests.training.hostile import write_hostile


@pytest.fixture(scope="module")
def url(fake: Settings) -> Iterator[str]:
    checkpoint = read_checkpoint(fake.checkpoint)
    renderer = PromptRenderer.from_folder(fake.checkpoint)
    with served(fake, FakeEngine(fake, checkpoint), checkpoint, renderer) as url:
        yield url


def test_scores_are_those_of_an_engine_here(url: str, fake: Settings, scenes: Path, tmp_path: Path) -> None:
    score_file(Job(scenes, tmp_path / "there.jsonl", progress=False), ServiceBackend([url]))
    score(fake, scenes, tmp_path / "here.jsonl")
    assert (tmp_path / "there.jsonl").read_bytes() == (tmp_path / "here.jsonl").read_bytes()


def test_bad_records_have_the_codes_of_an_engine_here(url: str, fake: Settings, tmp_path: Path) -> None:
    hostile = write_hostile(tmp_path)
    score_file(Job(hostile, tmp_path / "there.jsonl", progress=False), ServiceBackend([url]))
    score(fake, hostile, tmp_path / "here.jsonl")
    there, here = ([(row["id"], row["index"], row["score"], row["error"] and row["error"]["code"]) for row in rows]
                   for rows in map(read, (tmp_path / "there.jsonl", tmp_path / "here.jsonl")))  # fmt: skip
    assert there == here


def test_another_checkpoint_than_at_the_start_ends_the_run(url: str, scenes: Path, tmp_path: Path) -> None:
    class Changed(ServiceBackend):
        """The service is replaced between its card and its first score."""

        @property
        def about(self) -> dict[str, str]:
            return {**super().about, "fingerprint": "b" * 64}

    with pytest.raises(FingerprintMismatch):
        score_file(Job(scenes, tmp_path / "out.jsonl", progress=False), Changed([url]))
    assert not (tmp_path / "out.jsonl").exists()


def test_no_service_is_said_before_anything_is_written(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match="is a Beholder service running there"):
        score_file(Job(scenes, tmp_path / "out.jsonl", progress=False), ServiceBackend(["http://127.0.0.1:1"]))
    assert list(tmp_path.iterdir()) == []


class Gateway:
    """Before a service: passes requests on, and answers those that `refuses` chooses with `answer` (status, body)."""

    def __init__(self, upstream: str) -> None:
        gateway, http = self, httpx.Client(base_url=upstream)
        self.answer = (404, b"<html>default backend - 404</html>")
        self.refuses: Callable[[bytes], bool] = lambda body: False
        self.seen = 0
        self.upstream = http

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(200, http.get(self.path).content)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                gateway.seen += 1
                if gateway.refuses(body):
                    self.reply(*gateway.answer)
                else:
                    answer = http.post(self.path, content=body)
                    self.reply(answer.status_code, answer.content)

            def reply(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with suppress(OSError):  # a run that has failed waits for no answer
                    self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def gateway(url: str) -> Iterator[Gateway]:
    gateway = Gateway(url)
    thread = threading.Thread(target=gateway.server.serve_forever, args=(0.01,))
    thread.start()
    yield gateway
    gateway.server.shutdown()
    thread.join()
    gateway.server.server_close()
    gateway.upstream.close()


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """40 records of two responses."""
    return write(tmp_path / "texts.jsonl", [{"prompt": f"{n}?", "responses": ["A", f"B{n}"]} for n in range(40)])


@pytest.mark.parametrize(
    "answer",
    [
        (404, b"<html>default backend - 404</html>"),
        (500, b"<html>Internal Server Error</html>"),
        (500, b'{"code": "internal", "detail": "an internal error"}'),
        (408, b'{"code": "request-timeout", "detail": "the body was not sent within 60 s"}'),
        (404, b'{"code": "model-not-found", "detail": "no such model"}'),
    ],
)
def test_a_gateway_that_fails_ends_the_run_and_the_next_goes_on(
    gateway: Gateway, url: str, texts: Path, tmp_path: Path, answer: tuple[int, bytes]
) -> None:
    out = tmp_path / "out.jsonl"
    gateway.answer, gateway.refuses = answer, lambda body: gateway.seen > 20
    with pytest.raises(BeholderError):
        score_file(Job(texts, out, progress=False, in_flight=8), ServiceBackend([gateway.url]))
    assert not out.exists()
    assert len(read(tmp_path / "out.jsonl.partial")) > 8
    gateway.refuses = lambda body: False
    score_file(Job(texts, out, progress=False), ServiceBackend([gateway.url]))
    score_file(Job(texts, tmp_path / "whole.jsonl", progress=False), ServiceBackend([url]))
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ((500, b'{"code": "internal", "detail": "an internal error"}'), "internal"),
        ((403, b"<html>blocked by the firewall</html>"), "engine-error"),
    ],
)
def test_what_fails_while_others_are_scored_is_that_response_s_error(
    gateway: Gateway, texts: Path, tmp_path: Path, answer: tuple[int, bytes], code: str
) -> None:
    gateway.answer, gateway.refuses = answer, lambda body: b'"B7"' in body
    summary = score_file(Job(texts, tmp_path / "out.jsonl", progress=False), ServiceBackend([gateway.url]))
    assert (summary.scored, summary.errors) == (79, {code: 1})
    (failed,) = [row for row in read(tmp_path / "out.jsonl") if row["error"]]
    assert (failed["line"], failed["index"], failed["error"]["code"]) == (8, 1, code)
