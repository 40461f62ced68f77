"""A key in the base URL lets in whoever has it, and is in no log, error or repr."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from beholder.checkpoint import Checkpoint
from beholder.cli import main
from beholder.client import AsyncRewardClient, RewardClient
from beholder.client.base_urls import parse_base_url
from beholder.errors import ConfigurationError, Unauthorized
from beholder.prompts import PromptRenderer
from beholder.settings import Settings
from tests.service.serving import served
from tests.service.stand_in import StandInEngine

KEY = "s3cret/ü"
IN_URL = "s3cret%2F%C3%BC"


@pytest.fixture
def address(
    settings: Settings, engine: StandInEngine, checkpoint: Checkpoint, renderer: PromptRenderer
) -> Iterator[str]:
    """Host and port of a service that is locked."""
    locked = settings.model_copy(update={"api_keys": (SecretStr(KEY),)})
    with served(locked, engine, checkpoint, renderer) as url:
        yield url.removeprefix("http://")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"prompt": "?", "responses": ["A"]}))
    return path


def test_a_client_sends_the_key_and_logs_it_nowhere(address: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with RewardClient(f"http://x:{IN_URL}@{address}", api_key="another") as client:
        assert client.score("p", [], "r").score
    with RewardClient(f"http://x:s3cret-no@{address}") as client, pytest.raises(Unauthorized) as raised:
        client.score("p", [], "r")
    assert f"http://{address}/score" in caplog.text
    assert "s3cret" not in caplog.text + str(raised.value)


def test_score_file_sends_the_key(address: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["score-file", str(data), str(data.with_name("out.jsonl")), "--no-progress", "--url"]
    assert main([*command, f"http://x:s3cret-no@{address}"]) == 1
    problem = capsys.readouterr().err
    assert "401" in problem
    assert "s3cret" not in problem
    assert main([*command, f"http://x:{IN_URL}@{address}"]) == 0


def test_load_test_sends_the_key(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--requests", "4", "--size", "40x30", "--json"]
    assert main(["load-test", f"http://x:{IN_URL}@{address}", *flags]) == 0
    assert json.loads(capsys.readouterr().out)["statuses"] == {"200": 4}
    assert main(["load-test", f"http://x:s3cret-no@{address}", *flags]) == 1
    assert "s3cret" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("url", ["ftp://x:s3cret@t", "x:s3cret@t", "http://x:s3cret/more@t", "http://x:s3cret@", ""])
def test_an_unusable_url_is_refused_without_its_key(url: str) -> None:
    with pytest.raises(ConfigurationError, match="is not the URL of a service") as raised:
        parse_base_url(url)
    assert "s3cret" not in str(raised.value)


def test_a_url_twice_is_refused_without_its_key() -> None:
    with pytest.raises(ConfigurationError, match="each once") as raised:
        AsyncRewardClient(["http://x:s3cret@t", "http://t"])
    assert "s3cret" not in str(raised.value)


def test_a_parsed_url_shows_no_key() -> None:
    base = parse_base_url("https://x:s3cret@t:1/path/")
    assert str(base) == "https://t:1/path"
    assert "s3cret" not in repr(base)
    assert base.headers["Authorization"].startswith("Basic ")
