"""Bodies that are slow to read: refused early, or read while the event loop answers others."""

import json
import sys
import threading
import time
from typing import Any

import httpx
import pytest
from starlette.formparsers import MultiPartParser

from beholder.compatibility import MAX_TEXTS
from beholder.errors import InvalidRequest
from beholder.routes import reading
from beholder.routes.reading import MAX_VALUES, parse
from beholder.routes.scoring import RANK, SCORE
from beholder.routes.trainers import OPENRLHF, SLIME
from beholder.schemas import RankRequest
from tests.service.test_http import assert_problem

pytestmark = pytest.mark.anyio
QUESTION = {"prompt": "p", "responses": ["r"]}
MANY = MAX_VALUES + 1
BODIES = {
    "unknown keys": '{"prompt": "p", ' + "".join(f'"{index}": 1, ' for index in range(MANY)) + '"response": "r"}',
    "numbers": '{"prompt": "p", "response": [' + "0," * MANY + "0]}",
    "texts": '{"prompt": "p", "response": [' + '"a",' * MANY + '"a"]}',
    "nests": '{"prompt": "p", "response": ' + "[" * MANY,
    "objects": '{"items": [' + "{}," * MANY + "{}]}",
    "texts that no comma divides": '{"prompt": "' + "," * MANY + '"' + '""' * 2 * MANY,
    "values after a text that does not end well": '{"prompt": "\\\\", "response": [' + "0," * MANY + "0]}",
}


@pytest.mark.parametrize("name", BODIES)
def test_many_values_are_refused_before_they_are_read(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"more than {MAX_VALUES} values"):
        parse(BODIES[name].encode(), SCORE)


@pytest.mark.parametrize("text", ["a, [b], {c}" * MANY, '",' * MANY, "\\," * MANY, '\\"\n,' * MANY])
def test_what_is_in_texts_counts_for_none(text: str) -> None:
    body = parse(json.dumps({**QUESTION, "prompt": text}).encode(), RANK)
    assert isinstance(body, RankRequest)
    assert body.prompt == text


def test_as_many_values_with_a_key_each_are_read() -> None:
    label = {str(index): "a, b" for index in range(MAX_VALUES - 10)}
    body = parse(json.dumps({"prompt": "p", "response": "r", "label": label}).encode(), SLIME)
    assert len(body.label) == MAX_VALUES - 10


def test_the_most_texts_of_a_trainer_are_read() -> None:
    texts = ["p, [q]"] * MAX_TEXTS
    parse(json.dumps({"query": texts, "prompts": texts, "labels": texts}).encode(), OPENRLHF)


def test_texts_are_counted_over_the_bounds_of_what_is_scanned_at_a_time() -> None:
    for length in range(2**18 - 20, 2**18 + 5):
        prompt = "a" * length + '\\",' * MANY
        body = parse(json.dumps({**QUESTION, "prompt": prompt}).encode(), RANK)
        assert isinstance(body, RankRequest)
        assert body.prompt == prompt


def test_a_text_without_end_is_read_in_linear_time() -> None:
    started = time.perf_counter()
    with pytest.raises(InvalidRequest, match="Invalid JSON"):
        parse(b'{"prompt": "' + b'\\",' * 1_000_000, SCORE)
    assert time.perf_counter() - started < 5


def form(request: bytes) -> tuple[bytes, dict[str, str]]:
    head = b'--bb\r\nContent-Disposition: form-data; name="request"\r\n\r\n'
    return head + request + b"\r\n--bb--\r\n", {"Content-Type": "multipart/form-data; boundary=bb"}


def threads_of(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[threading.Thread]:
    """The threads in which that function is called from now on."""
    threads: list[threading.Thread] = []
    function = getattr(owner, name)

    def watched(*arguments: Any, **named: Any) -> Any:
        threads.append(threading.current_thread())
        return function(*arguments, **named)

    monkeypatch.setattr(owner, name, watched)
    return threads


async def test_a_large_form_is_parsed_beside_the_loop(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = threads_of(monkeypatch, MultiPartParser, "parse")
    content, headers = form(b"\r\n--bb-b" * 100_000)
    assert_problem(await client.post("/rank", content=content, headers=headers), 422, "invalid-request")
    assert len(threads) == 1
    assert threading.current_thread() not in threads


def test_a_long_text_is_scanned_in_steps() -> None:
    """Between which the loop has its turns: a regular expression lets no other thread run."""
    body = json.dumps({**QUESTION, "prompt": ",\n" * 5_000_000}).encode()
    called: list[str] = []
    sys.setprofile(lambda frame, event, function: called.append(function.__name__) if event == "c_call" else None)
    try:
        parse(body, RANK)
    finally:
        sys.setprofile(None)
    assert called.count("match") >= len(body) // 2**18


async def test_a_large_body_is_read_beside_the_loop(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = threads_of(monkeypatch, reading, "parse")
    content = json.dumps({**QUESTION, "prompt": ",\n" * 5_000_000}).encode()
    assert_problem(await client.post("/rank", content=content), 422, "prompt-too-long")
    assert len(threads) == 1
    assert threading.current_thread() not in threads


async def test_a_large_form_scores_as_a_small_one(client: httpx.AsyncClient) -> None:
    request = json.dumps(QUESTION).encode()
    answers = []
    for content, headers in (form(request), form(request + b" " * 100_000)):
        answers.append((await client.post("/rank", content=content, headers=headers)).json()["scores"])
    assert answers[0] == answers[1]
