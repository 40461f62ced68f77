"""`beholder load-test` against the real server with the fake engine: every request counted, for what it was."""

import argparse
import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from beholder import server
from beholder.app import create_app
from beholder.checkpoint import Checkpoint
from beholder.cli import main
from beholder.client.base_urls import parse_base_url
from beholder.engine.fake import FakeEngine
from beholder.errors import ConfigurationError, EngineUnavailable
from beholder.load_test.command import _size
from beholder.load_test.connection import Connection
from beholder.load_test.mix import Mix, items
from beholder.load_test.running import Load, run
from beholder.load_test.summary import Summary, as_text, summarise
from beholder.models import Model
from beholder.prompts import PromptRenderer
from beholder.server import bind, make_server
from beholder.settings import load_settings
from tests.service.test_server import Served

pytestmark = pytest.mark.anyio
SMALL = Mix(prompts=3, responses=4, prompt_words=3, response_words=5, width=40, height=30)
Serve = Callable[..., str]


@pytest.fixture
def serve(checkpoint: Checkpoint, renderer: PromptRenderer) -> Iterator[Serve]:
    running = []

    def start(**settings: Any) -> str:
        chosen = load_settings({"checkpoint": checkpoint.folder, "engine": "fake", "drain_delay_s": 0, **settings})
        app = create_app(chosen, [Model(chosen, FakeEngine(chosen, checkpoint), checkpoint, renderer)])
        running.append(Served(make_server(app, chosen), bind("127.0.0.1", 0)))
        return running[-1].url

    yield start
    for served in running:
        served.stop()


async def measured(url: str, mix: Mix, load: Load) -> Summary:
    return summarise(await run(url, mix, load, progress=False))


@pytest.mark.parametrize(
    "mix",
    [
        SMALL,
        replace(SMALL, route="rank", images="value"),
        replace(SMALL, images="none"),
        replace(SMALL, unique_images=True),
    ],
)
async def test_every_request_is_answered_once(serve: Serve, mix: Mix) -> None:
    summary = await measured(serve(), mix, Load(concurrency=5, seconds=None, requests=30))
    assert summary.statuses == {"200": 30}
    assert summary.scores_from_cache == 0
    assert 0 < summary.latency_ms["p50"] <= summary.latency_ms["max"]
    samples = 30 * (mix.responses if mix.route == "rank" else 1)
    assert summary.samples_per_second == pytest.approx(samples / summary.seconds)


async def test_repeated_samples_are_seen_in_the_cache(serve: Serve) -> None:
    mix = replace(SMALL, repeats=2)
    summary = await measured(serve(), mix, Load(concurrency=1, seconds=None, requests=24))
    assert summary.scores_from_cache == 12


async def test_refusals_are_counted_and_the_first_is_shown(serve: Serve) -> None:
    summary = await measured(serve(max_in_flight=1), Mix(route="rank", prompts=1), Load(2, seconds=None, requests=4))
    assert summary.statuses == {"422": 4}
    assert "at most 1 are accepted" in as_text(summary)


async def test_a_service_that_goes_away_is_no_answer(serve: Serve) -> None:
    url = serve(engine_args={"die_after": 5})
    summary = await measured(url, SMALL, Load(concurrency=1, seconds=None, requests=40))
    assert sum(summary.statuses.values()) == 40
    assert summary.statuses["200"] == 5
    assert set(summary.statuses) <= {"0", "200", "503"}


async def test_what_is_not_answered_in_time_has_failed(serve: Serve) -> None:
    url = serve(engine_args={"delay_s": 5})
    summary = await measured(url, SMALL, Load(concurrency=2, seconds=0.2, answer_s=0.3))
    assert summary.seconds < 3
    assert summary.statuses == {"0": 2}
    assert "did not answer within 0.3 s" in (summary.first_problem or "")


async def test_a_late_answer_is_not_taken_for_the_next_ones(serve: Serve) -> None:
    base = parse_base_url(serve(engine_args={"delay_s": 0.4}))
    async with Connection(base, answer_s=0.2) as connection:
        with pytest.raises(EngineUnavailable, match="did not answer"):
            await connection.request("POST", "/score", b'{"prompt": "p", "response": "r"}')
        await asyncio.sleep(0.4)
        status, body = await connection.request("GET", "/livez", b"")
    assert (status, b"scores" in body) == (200, False)


async def test_a_path_of_the_base_url_goes_before_the_routes(serve: Serve) -> None:
    summary = await measured(f"{serve()}/gateway/rm/", replace(SMALL, images="none"), Load(1, seconds=None, requests=1))
    assert summary.statuses == {"404": 1}


async def test_a_connection_stays_open_from_request_to_request(serve: Serve) -> None:
    async with Connection(parse_base_url(serve())) as connection:
        streams = []
        for _ in range(3):
            await connection.request("POST", "/score", b'{"prompt": "p", "response": "r"}')
            streams.append(connection._streams)
        assert streams[0] is not None
        assert streams == [streams[0]] * 3


async def test_a_connection_that_the_server_has_closed_is_opened_again(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "KEEP_ALIVE_S", 0.05)
    async with Connection(parse_base_url(serve())) as connection:
        for _ in range(2):
            status, _ = await connection.request("GET", "/livez", b"")
            assert status == 200
            await asyncio.sleep(0.3)


async def test_an_open_loop_sends_at_its_rate_and_counts_the_wait(serve: Serve) -> None:
    url = serve(engine_args={"delay_s": 0.2, "concurrency": 1})
    summary = await measured(url, SMALL, Load(concurrency=2, rate=200, seconds=None, requests=8))
    assert summary.late >= 5
    assert summary.latency_ms["max"] > 1000 * 0.2 * 7


async def test_a_duration_ends_the_run(serve: Serve) -> None:
    summary = await measured(serve(), SMALL, Load(concurrency=2, seconds=0.3))
    assert summary.requests > 2
    assert set(summary.statuses) == {"200"}


def test_rounds_repeat_no_sample() -> None:
    bodies = [item.body for number in range(3) for item in items(SMALL, number)]
    assert len(bodies) == len(set(bodies)) == 3 * SMALL.requests_a_round


async def test_no_url_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="not the URL"):
        await run("127.0.0.1:8000", SMALL, Load(), progress=False)


@pytest.mark.parametrize("size", ["336", "x", "3x-4", "axb", "0x4"])
def test_sizes(size: str) -> None:
    assert _size("4x3") == (4, 3)
    with pytest.raises(argparse.ArgumentTypeError, match="is not a size"):
        _size(size)


@pytest.mark.parametrize(
    "flag",
    ["--seconds=0", "--rate=0", "--rate=nan", "--concurrency=0", "--responses=0", "--repeats=0", "--requests=-1"],
)
def test_what_would_never_end_is_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["load-test", "http://unused", flag])
    assert f"argument {flag.partition('=')[0]}: " in capsys.readouterr().err


def test_the_command_prints_json_and_fails_when_requests_do(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--requests", "6", "--size", "40x30", "--json"]
    assert main(["load-test", serve(), *flags]) == 0
    assert json.loads(capsys.readouterr().out)["statuses"] == {"200": 6}
    assert main(["load-test", serve(engine_args={"failure_rate": 1}), *flags]) == 1
    assert "first_problem" in json.loads(capsys.readouterr().out)
