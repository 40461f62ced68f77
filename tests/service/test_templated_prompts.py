"""Prompts that a policy's template rendered: places of images that nobody sent, thoughts, and ends of a response."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from beholder.checkpoint import Checkpoint
from beholder.markers import FRAMES, PLACEHOLDERS
from beholder.policy_template import ENDS, NAMES, NO_THOUGHTS, THOUGHTS, PolicyTemplate, open_template
from beholder.prompts import PromptRenderer
from beholder.settings import Settings
from tests.pictures import png
from tests.service.recorded import CHAT, PROMPT, RESPONSES
from tests.service.stand_in import Serve, StandInEngine, serving
from tests.service.test_http import assert_problem

pytestmark = pytest.mark.anyio
PICTURE = png()
SHA256 = hashlib.sha256(PICTURE).hexdigest()
MARKER = f"<image:sha256:{SHA256}>"
QWEN = "<|vision_start|><|image_pad|><|vision_end|>"
IMAGE_TAG = (
    "{% for m in messages %}{{ m.role }}: {% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{{ '<image>\n' if p.type == 'image' else p.text }}{% endfor %}{% endif %}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""As LLaVA's templates write images."""
SPACED = (
    "{% for m in messages %}{{ m.role }}{{ ':' if m.content[0].type == 'image' else ': ' }}{% for p in m.content %}"
    "{{ '<image>' if p.type == 'image' else p.text }}{% endfor %};{% endfor %}"
)
"""As Idefics' writes them: before text alone it has a space."""


def chatml(question: str, answered: str = "Of what?") -> str:
    """A prompt of two questions, the first answered."""
    turns = (("user", "Which colour?"), ("assistant", answered), ("user", question))
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns) + "<|im_start|>assistant\n"


def requests(prompt: str, response: str) -> dict[str, dict[str, Any]]:
    """The same sample on every route that reads templated strings."""
    return {
        "/trainers/openrlhf": {"query": [f"{prompt}{response}<|im_end|>"], "prompts": [prompt]},
        "/trainers/llama-factory": {"messages": [f"{prompt}{response}<|im_end|>"]},
        "/trainers/slime": {"prompt": prompt, "response": f"{response}<|im_end|>"},
        "/classify": {"input": f"{prompt}{response}<|im_end|>\n", "use_activation": False},
    }


ROUTES = list(requests("", ""))


def score_in(answer: Any) -> float:
    match answer:
        case {"rewards": [score]} | {"scores": [score]} | {"data": [{"probs": [score]}]} | score:
            return float(score)


async def assert_all_score_as(client: httpx.AsyncClient, prompt: str, response: str, item: dict[str, Any]) -> None:
    """Every route says what /score says of the structured `item`."""
    expected = (await client.post("/score", json=item)).json()["scores"][0]
    for path, body in requests(prompt, response).items():
        answer = await client.post(path, json=body)
        assert answer.status_code == 200, (path, answer.text)
        assert score_in(answer.json()) == expected, path


@pytest.fixture
async def tagged(serve: Serve, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service whose policy writes `<image>` for an image."""
    path = tmp_path / "llava.jinja"
    path.write_text(IMAGE_TAG)
    async with serve(policy_template=str(path)) as client:
        yield client


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("place", [*PLACEHOLDERS, QWEN, "[IMG]", "[IMG][IMG_BREAK][IMG][IMG_END]", "<|image_pad|>" * 9])
async def test_a_picture_that_was_not_sent_is_not_left_out(client: httpx.AsyncClient, path: str, place: str) -> None:
    body = requests(chatml(f"{place}Which colour?"), "Red.")[path]
    detail = assert_problem(await client.post(path, json=body), 422, "image-mismatch")["detail"]
    assert "PUT /images/{sha256}" in detail
    assert "<image:sha256:HEX>" in detail


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "question", [f"{MARKER}{QWEN}Which?", f"{QWEN}Which?{MARKER}", f"<|vision_start|>{MARKER}Which?", MARKER + "[IMG]"]
)
async def test_a_marker_beside_a_placeholder_does_not_stand_for_it(
    client: httpx.AsyncClient, path: str, question: str
) -> None:
    await client.put(f"/images/{SHA256}", content=PICTURE)
    body = requests(chatml(question), "Red.")[path]
    assert_problem(await client.post(path, json=body), 422, "image-mismatch")


@pytest.mark.parametrize(("begin", "end"), [("", ""), *FRAMES.items()])
async def test_a_marker_in_a_placeholders_stead_is_the_image_alone(
    client: httpx.AsyncClient, begin: str, end: str
) -> None:
    """What the policy's template puts around an image is not the reward model's."""
    await client.put(f"/images/{SHA256}", content=PICTURE)
    parts = [{"type": "image"}, {"type": "text", "text": "Is it as "}, {"type": "image"}]
    messages = [*CHAT[1:3], {"role": "user", "content": parts}]
    item = {"messages": messages, "images": [{"sha256": SHA256}] * 2, "response": "Red."}
    await assert_all_score_as(client, chatml(f"{begin}{MARKER}{end}Is it as {begin}{MARKER}{end}"), "Red.", item)


@pytest.mark.parametrize("text", [QWEN, "[IMG]", "<image>", "<IMG_CONTEXT>"])
async def test_what_a_policy_writes_is_text(client: httpx.AsyncClient, text: str) -> None:
    """In its response and in its earlier turns."""
    messages = [CHAT[1], {"role": "assistant", "content": text}, CHAT[3]]
    item = {"messages": messages, "response": f"Red.{text}"}
    await assert_all_score_as(client, chatml("Of grass.", answered=text), f"Red.{text}", item)


@pytest.mark.parametrize(
    "text", ["<image>", "An SVG: <image href='a.png'/>", "[IMG]http://a.example/b.png[/IMG]", "<img></img>", "[INST]"]
)
async def test_a_question_about_markup_is_text(client: httpx.AsyncClient, text: str) -> None:
    item = {"messages": [*CHAT[1:3], {"role": "user", "content": text}], "response": "Red."}
    await assert_all_score_as(client, chatml(text), "Red.", item)


async def test_a_structured_request_has_text_alone(client: httpx.AsyncClient) -> None:
    (score,) = (await client.post("/score", json={"prompt": QWEN, "response": "Red."})).json()["scores"]
    chat = [{"role": "user", "content": QWEN}]
    for path, body in {
        "/rank": {"prompt": QWEN, "responses": ["Red."]},
        "/trainers/slime": {"prompt": chat, "response": "Red."},
        "/classify": {"messages": [*chat, {"role": "assistant", "content": "Red."}], "use_activation": False},
        "/v1/rerank": {"query": QWEN, "documents": ["Red."], "use_activation": False},
    }.items():
        answer = (await client.post(path, json=body)).json()
        assert (answer["results"][0]["relevance_score"] if path == "/v1/rerank" else score_in(answer)) == score, path


async def test_an_image_tag_is_a_place_where_the_policys_template_writes_it(tagged: httpx.AsyncClient) -> None:
    prompt = "user: <image>\nWhich colour?</s>assistant: "
    body = {"query": [f"{prompt}Red.</s>"], "prompts": [prompt]}
    assert_problem(await tagged.post("/trainers/openrlhf", json=body), 422, "image-mismatch")
    assert_problem(
        await tagged.post("/trainers/llama-factory", json={"messages": body["query"]}), 422, "image-mismatch"
    )


async def test_an_image_tag_is_a_place_where_it_is_the_reward_models_own(
    settings: Settings, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    from beholder_training.bases import make_base

    make_base(tmp_path / "llava", "llava")
    renderer = PromptRenderer.from_folder(tmp_path / "llava")
    engine = StandInEngine.passing_golden(checkpoint, renderer)
    async with serving(settings, engine, checkpoint, renderer) as client:
        for path, body in requests(chatml("<image>\nWhich colour?"), "Red.").items():
            assert_problem(await client.post(path, json=body), 422, "image-mismatch")


@pytest.mark.parametrize(
    ("source", "place"),
    [
        (IMAGE_TAG, "<image>"),
        (SPACED, "<image>"),
        ("{% for m in messages %}{{ m.role }} {{ m.content }};{% endfor %}", ""),
        ("{% for m in messages %}{{ m.role }} {{ m.content + '' }};{% endfor %}", ""),
    ],
)
def test_a_template_says_what_it_writes_for_an_image(source: str, place: str) -> None:
    assert PolicyTemplate(source).image_place == place


def test_a_template_that_marks_answers_for_training_is_read() -> None:
    template = PolicyTemplate(
        "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}{% generation %}{{ m.content }};"
        "{% endgeneration %}{% else %}{{ m.content }};{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    assert template.exchange("user: a;assistant: b;") == ((("user", "a"),), "b")


@pytest.mark.parametrize("name", NAMES)
def test_a_response_ends_with_one_of_its_templates_ends(name: str) -> None:
    template = open_template(name)
    prompt = template._render([("user", "Which colour?")])
    for end in ("", *ENDS[name]):
        assert template.response(f"Red.{end}") == "Red."
        assert template.exchange(f"{prompt}Red.{end}") == ((("user", "Which colour?"),), "Red.")
    for end in ENDS[name]:
        for other in ENDS[name]:
            assert template.response(f"{other}Red.{other}{end}") == f"{other}Red.{other}"
        assert template.response(f"Red.{end} ") == f"Red.{end} "
    unknown = next(ends[0] for known, ends in ENDS.items() if known != name)
    assert template.response(f"Red.{unknown}") == f"Red.{unknown}"


async def test_a_text_that_ended_scores_as_without_its_end(client: httpx.AsyncClient) -> None:
    (score,) = (await client.post("/score", json={"messages": CHAT, "response": RESPONSES[0]})).json()["scores"]
    response = f"{RESPONSES[0]}<|endoftext|>"
    for path, body in {
        "/trainers/openrlhf": {"query": [PROMPT + response], "prompts": [PROMPT]},
        "/trainers/llama-factory": {"messages": [PROMPT + response]},
        "/trainers/slime": {"prompt": PROMPT, "response": response},
    }.items():
        assert score_in((await client.post(path, json=body)).json()) == score, path


@pytest.mark.parametrize("opening", THOUGHTS)
async def test_thoughts_that_the_prompt_opens_are_no_turn(client: httpx.AsyncClient, opening: str) -> None:
    prompt, response = PROMPT + opening, "It grows.\n</think>\n\nGreen."
    (score,) = (await client.post("/score", json={"messages": CHAT, "response": response})).json()["scores"]
    openrlhf = {"query": [f"{prompt}{response}<|im_end|>"], "prompts": [prompt]}
    assert score_in((await client.post("/trainers/openrlhf", json=openrlhf)).json()) == score
    slime = {"prompt": prompt, "response": f"{response}<|im_end|>"}
    assert score_in((await client.post("/trainers/slime", json=slime)).json()) == score


async def test_of_a_whole_string_only_empty_thoughts_are_the_prompts(client: httpx.AsyncClient) -> None:
    """Others the policy wrote, or may have written."""
    thought = "<think>\nIt grows.\n</think>\n\nGreen."
    items = [{"messages": CHAT, "response": response} for response in ("Green.", thought)]
    scores = (await client.post("/score", json={"items": items})).json()["scores"]
    whole = {"messages": [f"{PROMPT}{NO_THOUGHTS}Green.<|im_end|>", f"{PROMPT}{thought}<|im_end|>"]}
    assert (await client.post("/trainers/llama-factory", json=whole)).json()["scores"] == scores


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("name", ["qwen3", "qwen3_instruct_2507", "qwen3_5_think", "qwen3_5_nothink", "qwen3_vl"])
def test_prompts_of_published_templates_are_read_as_chatml(name: str, thinking: bool) -> None:
    trl = pytest.importorskip("trl")
    from transformers.utils.chat_template_utils import render_jinja_template

    source = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()
    rendered = render_jinja_template(
        conversations=[CHAT], chat_template=source, add_generation_prompt=True, enable_thinking=thinking
    )
    assert open_template("chatml").prompt(rendered[0][0]) == tuple((turn["role"], turn["content"]) for turn in CHAT)
