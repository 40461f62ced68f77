"""The clients, over a stand-in engine behind a real server and over a transport that answers what a test says."""

import asyncio
import gc
import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from beholder import schemas
from beholder.checkpoint import Checkpoint
from beholder.client import AsyncRewardClient, ModelCard, RewardClient, Sample, Score
from beholder.errors import (
    BeholderError,
    ConfigurationError,
    EmptyResponse,
    EngineError,
    EngineUnavailable,
    FingerprintMismatch,
    ImageError,
    ImageNotFound,
    InvalidRequest,
    InvalidText,
    RequestTooLarge,
)
from beholder.prompts import PromptRenderer
from beholder.server import bind
from beholder.settings import Settings
from tests.service.serving import served
from tests.service.stand_in import StandInEngine

RESPONSES = ["It is red.", "It is blue.", "It is green."]
ANSWER = {"scores": [1.0], "fingerprint": "f", "usage": {"prompt_tokens": 1, "cached_tokens": 0}}


@pytest.fixture
def url(settings: Settings, engine: StandInEngine, checkpoint: Checkpoint, renderer: PromptRenderer) -> Iterator[str]:
    with served(settings, engine, checkpoint, renderer) as url:
        yield url


def test_rank_and_score_agree(url: str, golden_image: Path, checkpoint: Checkpoint) -> None:
    with RewardClient(url, fingerprint=checkpoint.fingerprint) as client:
        ranking = client.rank("Colour?", [golden_image], RESPONSES)
        scores = [client.score("Colour?", [golden_image], response) for response in RESPONSES]
        best = client.best_of("Colour?", [golden_image], RESPONSES)
    assert ranking.scores == [score.score for score in scores]
    assert ranking.best == ranking.order[0] == ranking.ranks.index(0)
    assert (best.index, best.response, best.score) == (ranking.best, RESPONSES[ranking.best], max(ranking.scores))
    assert ranking.fingerprint == checkpoint.fingerprint
    if checkpoint.manifest.calibration:
        assert ranking.normalized == [score.normalized for score in scores]


def test_models_are_the_cards_of_what_is_served(url: str, checkpoint: Checkpoint) -> None:
    with RewardClient(url, fingerprint="first") as client:
        (card,) = client.models()
        with RewardClient(url, fingerprint=card.fingerprint, model=card.names[0]) as pinned:
            assert pinned.score("p", [], "r").fingerprint == checkpoint.fingerprint
    assert asdict(card) == httpx.get(f"{url}/models").json()["models"][0]
    assert {field.name for field in fields(ModelCard)} == schemas.ModelCard.model_fields.keys()


def test_models_are_asked_with_key_and_retries(url: str) -> None:
    (card,) = httpx.get(f"{url}/models").json()["models"]
    answers = iter(
        [
            httpx.Response(503, json={"code": "engine-unavailable", "detail": "starting"}),
            httpx.Response(200, json={"models": [{**card, "of_the_future": 1}, {**card, "fingerprint": "other"}]}),
        ]
    )
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.method, str(request.url), request.headers["authorization"], request.content))
        return next(answers)

    with RewardClient("http://t", api_key="key", transport=httpx.MockTransport(answer)) as client:
        assert [known.fingerprint for known in client.models()] == [card["fingerprint"], "other"]
    assert asked == [("GET", "http://t/models", "Bearer key", b"")] * 2


@pytest.mark.parametrize("body", [{}, {"models": []}, {"models": ["rm"]}, {"models": [{"fingerprint": "f"}]}])
def test_what_is_no_list_of_models_raises(body: Any) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=body))
    with RewardClient("http://t", transport=transport) as client, pytest.raises(EngineError):
        client.models()


def test_the_asynchronous_client_answers_the_same(url: str, golden_image: Path) -> None:
    async def rank() -> Any:
        async with AsyncRewardClient(url) as client:
            return (await client.rank("Colour?", [golden_image], RESPONSES)).scores

    with RewardClient(url) as client:
        assert client.rank("Colour?", [golden_image], RESPONSES).scores == asyncio.run(rank())


def test_one_asynchronous_client_serves_several_loops(url: str) -> None:
    client = AsyncRewardClient(url)

    async def score() -> float:
        async with client:
            return (await client.score("p", [], "r")).score

    assert asyncio.run(score()) == asyncio.run(score())


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # nobody closes the connections before their loop ends
def test_what_belonged_to_an_ended_loop_is_dropped(url: str) -> None:
    client = AsyncRewardClient(url)
    for _ in range(5):
        asyncio.run(client.score("p", [], "r"))
    assert len(client._loops) <= 1
    client._loops.clear()
    gc.collect()


def test_another_thread_may_open_its_loop_while_ended_ones_are_dropped() -> None:
    client = AsyncRewardClient("http://t", transport=httpx.MockTransport(lambda _: httpx.Response(200, json=ANSWER)))
    asked = 0

    class Loop(asyncio.SelectorEventLoop):
        """While one thread asks whether it has ended, another uses the client."""

        def is_closed(self) -> bool:
            nonlocal asked
            if super().is_closed():
                asked += 1
                if asked == 1:
                    other = threading.Thread(target=asyncio.run, args=(client.score("p", [], "r"),))
                    other.start()
                    other.join()
            return super().is_closed()

    with asyncio.Runner(loop_factory=Loop) as runner:
        kept = runner.get_loop()
        runner.run(client.score("p", [], "r"))
    asked = 0
    assert asyncio.run(client.score("p", [], "r")).score == 1.0
    assert asked > 1
    assert kept.is_closed()


def test_many_are_read_in_the_callers_thread(url: str) -> None:
    with RewardClient(url, deadline_s=5) as client:
        samples: Iterator[Any] = (("p", [], f"r{client.score('p', [], 'r').score}") for _ in range(3))
        assert len(client.score_many(samples)) == 3


def test_many_come_back_in_order(url: str, golden_image: Path) -> None:
    samples = [Sample("Colour?", [golden_image], f"Number {number}.") for number in range(20)]
    with RewardClient(url, max_concurrency=4) as client:
        scores = [score.score for score in client.score_many(samples)]
        assert scores == [client.score(*sample).score for sample in samples]
        rankings = client.rank_many([("Colour?", [golden_image], [sample.response]) for sample in samples])
    assert [ranking.scores[0] for ranking in rankings] == scores


def test_no_more_than_max_concurrency_are_in_flight(url: str, engine: StandInEngine) -> None:
    engine.peak = 0  # golden samples ran at start
    with RewardClient(url, max_concurrency=3) as client:
        client.score_many([("p", [], f"r{number}") for number in range(30)])
    assert 1 < engine.peak <= 3


def test_the_first_error_of_many_is_raised(url: str) -> None:
    with RewardClient(url) as client, pytest.raises(EmptyResponse):
        client.score_many([("p", [], "r"), ("p", [], " "), ("p", [], "r")])


def test_an_error_can_stand_in_its_sample_s_place(url: str) -> None:
    with RewardClient(url) as client:
        first, failed, last = client.try_score_many([("p", [], "r"), ("p", [], " "), ("p", [], "r")])
    assert isinstance(first, Score)
    assert isinstance(last, Score)
    assert first.score == last.score
    assert isinstance(failed, EmptyResponse)


def test_progress_is_shown_on_request(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with RewardClient(url) as client:
        client.score_many([("p", [], "r")])
        assert "1/1" not in capsys.readouterr().err  # the service logs there too
        client.score_many([("p", [], "r")] * 2, progress=True)
    assert "2/2" in capsys.readouterr().err


def test_images_come_as_file_bytes_or_picture(url: str, golden_image: Path) -> None:
    with RewardClient(url) as client, Image.open(golden_image) as picture:
        row = {"bytes": golden_image.read_bytes(), "path": None}
        given = (golden_image, str(golden_image), golden_image.read_bytes(), row, {"path": str(golden_image)})
        assert len({client.score("p", [image], "r").score for image in given}) == 1
        client.score("p", [picture], "r")


def test_messages_are_a_prompt_too(url: str) -> None:
    with RewardClient(url) as client:
        plain = client.score("p", [], "r").score
        assert client.score([{"role": "user", "content": "p"}], [], "r").score == plain


@pytest.mark.parametrize(
    ("prompt", "images", "response", "error"),
    [
        ("p", [], "", EmptyResponse),
        ("p", [b"not an image"], "r", ImageError),
        ("p", "picture.png", "r", InvalidRequest),
        ("p", [object()], "r", ImageError),
        ("\ud800", [], "r", InvalidText),
        ("p", [], "\ud800", InvalidText),
        ([{"role": "user", "content": object()}], [], "r", InvalidRequest),
    ],
)
def test_mistakes_arrive_as_their_class(
    url: str, prompt: Any, images: Sequence[Any], response: str, error: type[BeholderError]
) -> None:
    with RewardClient(url) as client, pytest.raises(error):
        client.score(prompt, images, response)


def test_a_string_is_not_taken_for_a_list_of_responses(url: str) -> None:
    with RewardClient(url) as client, pytest.raises(InvalidRequest, match="responses"):
        client.rank("p", [], "one response")


def test_a_refused_image_is_named_by_its_place(url: str, golden_image: Path) -> None:
    with RewardClient(url) as client, pytest.raises(ImageError, match=r"images\[1\]"):
        client.score("p", [golden_image, b"not an image"], "r")


def test_an_image_that_is_too_large_for_the_service_is_told_while_it_is_sent(url: str) -> None:
    """A connection that the service closed on a client that still sends would be reset, and the answer lost."""
    with RewardClient(url, retries=0) as client, pytest.raises(RequestTooLarge, match="smaller images"):
        client.score("p", [bytes(60 * 2**20)], "r")


def test_a_pinned_fingerprint_refuses_another_checkpoint(url: str) -> None:
    with RewardClient(url, fingerprint="0" * 64) as client, pytest.raises(FingerprintMismatch):
        client.score("p", [], "r")


def test_the_first_fingerprint_can_be_pinned() -> None:
    fingerprints = iter(["a" * 64, "a" * 64, "b" * 64])

    def answer(request: httpx.Request) -> httpx.Response:
        usage = {"prompt_tokens": 1, "cached_tokens": 0}
        return httpx.Response(200, json={"scores": [1.0], "fingerprint": next(fingerprints), "usage": usage})

    with RewardClient("http://t", fingerprint="first", transport=httpx.MockTransport(answer)) as client:
        assert client.score("p", [], "r").score == client.score("p", [], "r").score == 1.0
        with pytest.raises(FingerprintMismatch):
            client.score("p", [], "r")


def test_what_is_no_answer_pins_nothing() -> None:
    usage = {"prompt_tokens": 1, "cached_tokens": 0}
    good = {"scores": [1.0], "fingerprint": "a" * 64, "usage": usage}
    answers = iter([{"hello": "from a proxy"}, good])
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=next(answers)))
    with RewardClient("http://t", fingerprint="first", transport=transport) as client:
        with pytest.raises(EngineError):
            client.score("p", [], "r")
        assert client.score("p", [], "r").fingerprint == "a" * 64


@pytest.mark.parametrize(("prompt", "images"), [(None, []), (7, []), ("p", None)])
def test_what_is_no_prompt_and_no_list_is_refused(prompt: Any, images: Any) -> None:
    with RewardClient("http://unused") as client, pytest.raises(InvalidRequest):
        client.score(prompt, images, "r")


def test_truncation_is_told() -> None:
    body = {"fingerprint": "f", "usage": {"prompt_tokens": 1, "cached_tokens": 0}}
    one = {**body, "scores": [1.0], "truncated": [True]}
    two = {**body, "scores": [1.0, 2.0], "truncated": [True, False], "ranks": [1, 0], "order": [1, 0], "best": 1}
    answers = iter([one, two])
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=next(answers)))
    with RewardClient("http://t", transport=transport) as client:
        assert client.score("p", [], "r").truncated is True
        assert client.rank("p", [], ["r", "s"]).truncated == [True, False]


def test_a_missing_file_is_named_before_anything_is_sent() -> None:
    with RewardClient("http://unused") as client, pytest.raises(ImageNotFound, match=r"no/such\.png"):
        client.score("p", [Path("no/such.png")], "r")


def test_nobody_listening_is_engine_unavailable() -> None:
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    url = f"http://secret:password@127.0.0.1:{port}"
    with RewardClient(url, retries=1) as client, pytest.raises(EngineUnavailable, match=str(port)) as raised:
        client.score("p", [], "r")
    assert "password" not in str(raised.value)


@pytest.mark.parametrize("urls", [[], "localhost:8000", ["http://t", "http://t/"], "http://", "http://[::1"])
def test_unusable_urls_are_refused(urls: Any) -> None:
    with pytest.raises(ConfigurationError):
        RewardClient(urls)


@pytest.mark.parametrize("options", [{"deadline_s": 0}, {"attempt_s": 0}, {"max_concurrency": 0}])
def test_unusable_limits_are_refused(options: Any) -> None:
    with pytest.raises(ConfigurationError, match="must be positive"):
        RewardClient("http://t", **options)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (httpx.Response(502, text="<html>bad gateway"), EngineUnavailable),
        (httpx.Response(200, text="welcome to nginx"), EngineError),
        (httpx.Response(400, json={"code": "of-the-future", "detail": "x"}), EngineError),
        (httpx.Response(503, json={"code": "overloaded", "detail": "full"}), EngineError),
        (httpx.Response(200, json={"scores": [1.0, 2.0]}), EngineError),
        (httpx.Response(200, json={"scores": []}), EngineError),
        (httpx.Response(200, json={"scores": [None]}), EngineError),
        (httpx.Response(200, json={"scores": [1.0]}), EngineError),
        (httpx.Response(200, json={"scores": [True]}), EngineError),
    ],
)
def test_what_is_not_an_answer_raises(answer: httpx.Response, error: type[BeholderError]) -> None:
    transport = httpx.MockTransport(lambda _: answer)
    with RewardClient("http://t", retries=0, transport=transport) as client, pytest.raises(error):
        client.score("p", [], "r")


def test_works_inside_a_running_event_loop(url: str) -> None:
    with RewardClient(url) as client:

        async def score() -> float:
            return client.score("p", [], "r").score

        assert asyncio.run(score()) == client.score("p", [], "r").score


def test_works_from_many_threads(url: str) -> None:
    with RewardClient(url) as client, ThreadPoolExecutor(8) as pool:
        scores = list(pool.map(lambda number: client.score("p", [], f"r{number % 4}").score, range(32)))
    assert scores == scores[:4] * 8


def test_works_in_a_forked_process(url: str) -> None:
    with RewardClient(url) as client:
        expected = client.score("p", [], "r").score
        context = multiprocessing.get_context("fork")
        answers = context.SimpleQueue()
        child = context.Process(target=lambda: answers.put(client.score("p", [], "r").score))
        child.start()
        child.join(30)
        assert child.exitcode == 0
        assert answers.get() == expected
        assert client.score("p", [], "r").score == expected


def test_no_thread_is_left_behind(url: str) -> None:
    before = client_threads()
    with RewardClient(url) as client:
        client.score("p", [], "r")
        assert client_threads() > before
    assert client_threads() == before


def client_threads() -> set[threading.Thread]:
    """Other tests' clients may live on."""
    return {thread for thread in threading.enumerate() if thread.name == "beholder-client"}


def test_a_client_that_is_dropped_unclosed_takes_its_thread_along(url: str) -> None:
    before = set(threading.enumerate())
    client = RewardClient(url)
    client.score("p", [], "r")
    del client
    gc.collect()
    deadline = time.monotonic() + 5
    while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left


def test_closing_ends_the_calls_of_other_threads(url: str, engine: StandInEngine) -> None:
    engine.gate.clear()
    client = RewardClient(url, deadline_s=60)
    before = engine.started
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(client.score, "p", [], "r")
        many = pool.submit(client.try_score_many, [("p", [], f"r{number}") for number in range(3)])
        while engine.started < before + 4:
            time.sleep(0.01)
        client.close()
        for call in (one, many):
            with pytest.raises(EngineUnavailable, match="closed by another thread"):
                call.result(5)
    engine.gate.set()
    with client:  # opened again
        assert client.score("p", [], "r").score


def test_closing_at_any_moment_leaves_no_call_waiting() -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.001)
        usage = {"prompt_tokens": 1, "cached_tokens": 0}
        return httpx.Response(200, json={"scores": [1.0], "fingerprint": "f", "usage": usage})

    client = RewardClient("http://t", transport=httpx.MockTransport(answer))

    def ask() -> float | None:
        try:
            return client.score("p", [], "r").score
        except EngineUnavailable:
            return None

    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(ask) for _ in range(200)]
        for _ in range(20):
            client.close()
            time.sleep(0.005)
        assert {call.result(20) for call in calls} <= {1.0, None}
    client.close()


@pytest.mark.parametrize("module", ["beholder", "beholder.client", "beholder.errors", "beholder.cli"])
def test_a_trainer_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*{{'torch', 'vllm', 'fastapi', 'transformers', 'PIL'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "")
