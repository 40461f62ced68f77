"""Generated requests against a served fake engine: only what the API's document says ever comes back.

BEHOLDER_FUZZ_EXAMPLES is how many are generated for each of the operations. BEHOLDER_FUZZ_URL asks a service that runs
already (with a real model) instead of the fake engine.
"""

import base64
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from beholder.app import create_app
from beholder.checkpoint import Checkpoint
from beholder.engine.fake import FakeEngine
from beholder.models import Model
from beholder.prompts import PromptRenderer
from beholder.server import bind, make_server
from beholder.settings import Settings
from tests.pictures import png
from tests.service.hostile_images import FILES, GIF, JPEG, WEBP
from tests.service.test_hostile_texts import TEXTS as HOSTILE
from tests.service.test_server import Served

pytest.importorskip("schemathesis")

import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import positive_data_acceptance

EXAMPLES = int(os.environ.get("BEHOLDER_FUZZ_EXAMPLES", "15"))
PICTURES = [png(), png(33, 17, mode="RGBA", colour=(1, 2, 3, 128)), JPEG, GIF, WEBP]
SMALL_ATTACKS = [data for data, _ in FILES.values() if len(data) < 10_000]
statuses: Counter[int] = Counter()

images = st.sampled_from([*PICTURES * 4, *SMALL_ATTACKS]).map(lambda data: base64.b64encode(data).decode())
schemathesis.openapi.format("image", images | images.map(lambda text: f"data:image/png;base64,{text}"))
schemathesis.openapi.format("binary", st.sampled_from([*PICTURES * 4, *SMALL_ATTACKS]))


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: Any) -> Any:
    """Some paths name pictures that are sent."""
    name = (path_parameters or {}).get("sha256")
    if isinstance(name, str) and len(name) == 64:
        picture = PICTURES[int(hashlib.sha256(name.encode()).hexdigest(), 16) % len(PICTURES)]
        return {**path_parameters, "sha256": hashlib.sha256(picture).hexdigest()}
    return path_parameters


@pytest.fixture(scope="module")
def url(checkpoint: Checkpoint, renderer: PromptRenderer) -> Iterator[str]:
    with running(checkpoint, renderer) as url:
        yield url
    print(f"\n{sum(statuses.values())} requests: {json.dumps(dict(statuses.most_common()))}")


@contextmanager
def running(checkpoint: Checkpoint, renderer: PromptRenderer) -> Iterator[str]:
    if url := os.environ.get("BEHOLDER_FUZZ_URL"):
        yield url
        return
    chosen = Settings(checkpoint=checkpoint.folder, engine="fake", drain_delay_s=0)
    app = create_app(chosen, [Model(chosen, FakeEngine(chosen, checkpoint), checkpoint, renderer)])
    served = Served(make_server(app, chosen), bind("127.0.0.1", 0))
    try:
        yield served.url
    finally:
        served.stop()


# schemathesis' own list has neither 413 nor 431, with which what is too long is refused.
REFUSALS = ["400", "401", "404", "405", "413", "422", "429", "431", "503"]
refused = {"negative_data_rejection": {"expected-statuses": REFUSALS}}
schema = schemathesis.openapi.from_path(
    Path(__file__).parents[2] / "docs" / "openapi.json", config=SchemathesisConfig.from_dict({"checks": refused})
)


@pytest.mark.timeout(1800)
@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=EXAMPLES < 100)
def test_every_answer_is_documented(case: Any, url: str) -> None:
    """No status, type or shape but those documented; broken requests are refused; no 5xx but 503."""
    response = case.call(base_url=url, timeout=30)
    statuses[response.status_code] += 1
    assert response.status_code < 500 or response.status_code == 503, response.text
    case.validate_response(response, excluded_checks=[positive_data_acceptance])
    if response.status_code >= 400:
        assert not {"scores", "rewards"} & response.json().keys()


texts = st.text(max_size=40) | st.sampled_from(sorted(HOSTILE.values()))
responses = texts.map(lambda text: f"{text}.")
turns = st.lists(st.tuples(texts, texts), max_size=2)


@st.composite
def contexts(draw: st.DrawFn) -> dict[str, Any]:
    """A prompt, or messages with several turns, and as many images as places."""
    pictures = draw(st.lists(st.sampled_from(PICTURES).map(lambda data: base64.b64encode(data).decode()), max_size=2))
    if draw(st.booleans()):
        return {"prompt": draw(texts), "images": pictures}
    parts: list[dict[str, str]] = [{"type": "image"}] * len(pictures)
    parts.append({"type": "text", "text": draw(texts)})
    messages: list[dict[str, Any]] = [{"role": "system", "content": draw(texts)}] if draw(st.booleans()) else []
    for question, answer in draw(turns):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    messages.append({"role": "user", "content": draw(st.permutations(parts))})
    return {"messages": messages, "images": pictures}


def chatml(chat: tuple[list[tuple[str, str]], str]) -> str:
    history, last = chat
    roles = ("user", "assistant")
    spoken = [(role, text) for turn in history for role, text in zip(roles, turn, strict=True)]
    rendered = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in [*spoken, ("user", last)])
    return f"{rendered}<|im_start|>assistant\n"


prompts = st.tuples(turns, texts).map(chatml)
pairs = st.lists(st.tuples(prompts, responses), max_size=4)
BODIES: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "/score": st.builds(lambda context, response: {**context, "response": response}, contexts(), responses)
    | st.lists(st.builds(lambda c, r: {**c, "response": r}, contexts(), responses), min_size=1, max_size=4).map(
        lambda items: {"items": items}
    ),
    "/rank": st.builds(
        lambda context, texts, top_n: {**context, "responses": texts, "top_n": top_n},
        contexts(),
        st.lists(responses, min_size=1, max_size=4),
        st.none() | st.integers(1, 9),
    ),
    "/classify": pairs.map(lambda found: {"input": [prompt + text for prompt, text in found]}),
    "/v1/rerank": st.builds(lambda query, texts: {"query": query, "documents": texts}, texts, st.lists(responses)),
    "/v2/rerank": st.builds(lambda query, texts: {"query": query, "documents": texts}, texts, st.lists(responses)),
    "/trainers/openrlhf": pairs.map(
        lambda found: {"query": [prompt + text for prompt, text in found], "prompts": [prompt for prompt, _ in found]}
    ),
    "/trainers/llama-factory": pairs.map(lambda found: {"messages": [prompt + text for prompt, text in found]}),
    "/trainers/slime": st.builds(lambda prompt, text: {"prompt": prompt, "response": text}, prompts, responses),
}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", BODIES)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=EXAMPLES < 100)
@given(data=st.data())
def test_what_makes_sense_is_answered(data: st.DataObject, path: str, url: str) -> None:
    """Any text, any picture, any turns: 200 and the documented shape, with as many scores as were asked for."""
    case = schema[path]["POST"].Case(body=data.draw(BODIES[path]), media_type="application/json")
    response = case.call(base_url=url, timeout=30)
    statuses[response.status_code] += 1
    if response.status_code != 200:
        # A marker in a text names no image, a placeholder in a templated one has none; a long text may be too long.
        codes = ("image-unknown", "image-mismatch", "prompt-too-long")
        assert response.json()["code"] in codes, response.text
    case.validate_response(response)
