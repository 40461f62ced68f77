"""Running services by URL: the same file as with an engine here, and the same errors."""

import io
import random
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from beholder.checkpoint import read_checkpoint
from beholder.cli import main
from beholder.engine.fake import FakeEngine
from beholder.errors import BeholderError, ConfigurationError, DataError, EngineUnavailable, FingerprintMismatch
from beholder.offline.backends import EngineBackend, ServiceBackend
from beholder.offline.journal import Journal
from beholder.offline.scoring import Backend, Job, score_file
from beholder.prompts import PromptRenderer
from beholder.settings import Settings
from tests.offline.scoring import read, score, write
from tests.service.serving import served
from tests.training.hostile import write_hostile


@contextmanager
def serving(settings: Settings) -> Iterator[str]:
    checkpoint = read_checkpoint(settings.checkpoint)
    renderer = PromptRenderer.from_folder(settings.checkpoint)
    with served(settings, FakeEngine(settings, checkpoint), checkpoint, renderer) as url:
        yield url


@pytest.fixture(scope="module")
def url(fake: Settings) -> Iterator[str]:
    with serving(fake) as url:
        yield url


def large_png() -> bytes:
    """More than 20 MiB: noise does not compress."""
    picture = io.BytesIO()
    Image.frombytes("RGB", (2700, 2700), random.Random(0).randbytes(3 * 2700**2)).save(picture, "PNG", compress_level=0)
    return picture.getvalue()


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


def test_a_cut_prompt_is_said_to_be_and_scored_as_by_an_engine_here(fake: Settings, tmp_path: Path) -> None:
    """The second record's responses are sent one by one, since one of them is refused."""
    long = "word " * 2000 + "the end?"
    records = [{"prompt": long, "responses": ["A", "B"]}, {"prompt": long, "responses": ["A", " "]}]
    data = write(tmp_path / "data.jsonl", records)
    cutting = fake.model_copy(update={"overlong": "truncate"})
    with serving(cutting) as url:
        score_file(Job(data, tmp_path / "there.jsonl", progress=False), ServiceBackend([url]))
    assert [row["truncated"] for row in read(tmp_path / "there.jsonl")] == [True, True, True, None]
    score(cutting, data, tmp_path / "here.jsonl")
    assert (tmp_path / "there.jsonl").read_bytes() == (tmp_path / "here.jsonl").read_bytes()


def test_an_image_may_be_as_large_as_the_service_takes(
    url: str, fake: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "large.png").write_bytes(large_png())
    data = write(tmp_path / "data.jsonl", [{"prompt": "?", "img_path": "large.png", "responses": ["A"]}])
    arguments = ["score-file", str(data), str(tmp_path / "out.jsonl"), "--no-progress", "--restart", "--url"]
    assert main([*arguments, url]) == 0
    assert "0 responses of 1 records scored, 1 errors: 1 image-too-large" in capsys.readouterr().err
    monkeypatch.setenv("BEHOLDER_PORT", "tcp://10.0.0.1:8000")  # a service link: settings of a server are none of it
    with serving(fake.model_copy(update={"max_image_bytes": 64 * 2**20})) as generous:
        assert main([*arguments, generous]) == 0
    assert "1 responses of 1 records scored, 0 errors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "bfloat16"}, "scores with dtype float32, {other} with bfloat16: two would mix"),
        ({"max_model_len": 512}, "scores with max_tokens 1024, {other} with 512: two would mix"),
        ({"max_images": 5}, "scores with max_images 4, {other} with 5: two would mix"),
        ({"overlong": "truncate"}, "scores with overlong refuse, {other} with truncate: two would mix"),
        ({"max_image_pixels": 9}, "scores with max_image_pixels 50000000, {other} with 9: two would mix"),
    ],
)
def test_services_that_score_otherwise_are_refused(
    url: str, fake: Settings, scenes: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with serving(fake.model_copy(update=change)) as other:
        expected = re.escape(f"{url} {message.format(other=other)}")
        with pytest.raises(ConfigurationError, match=expected):
            score_file(Job(scenes, tmp_path / "out.jsonl", progress=False), ServiceBackend([url, other]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changed", [{}, {"max_images": 5}, {"max_image_bytes": 1000}, {"overlong": "truncate"}])
@pytest.mark.parametrize("services_first", [True, False])
def test_services_and_an_engine_here_may_finish_what_the_other_began_where_they_are_alike(
    url: str, fake: Settings, texts: Path, tmp_path: Path, changed: dict[str, Any], services_first: bool
) -> None:
    job = Job(texts, tmp_path / "out.jsonl", progress=False)
    backends: list[Backend] = [ServiceBackend([url]), EngineBackend(fake.model_copy(update=changed))]
    first, second = backends if services_first else reversed(backends)
    Journal(tmp_path / "out.jsonl.partial", {**first.about, "image_root": job.images_from}).close()
    if changed:
        with pytest.raises(DataError, match=f"was begun with {''.join(changed)} "):
            score_file(job, second)
    else:
        assert score_file(job, second).scored == 80


def test_a_service_that_does_not_answer_is_left_out_and_named(
    url: str, texts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = ServiceBackend(["http://127.0.0.1:1", url])
    assert score_file(Job(texts, tmp_path / "out.jsonl", progress=False), backend).scored == 80
    assert re.search("scoring without a service: .*http://127.0.0.1:1/models cannot be reached", caplog.text)


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


def test_a_body_that_is_slow_on_its_way_is_sent_again(gateway: Gateway, texts: Path, tmp_path: Path) -> None:
    gateway.answer = (408, b'{"code": "request-timeout", "detail": "the body was not sent within 60 s"}')
    gateway.refuses = lambda body: 20 < gateway.seen <= 30
    summary = score_file(Job(texts, tmp_path / "out.jsonl", progress=False), ServiceBackend([gateway.url]))
    assert (summary.scored, summary.errors) == (80, {})


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
