"""What the scoring routes read."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from beholder.errors import InvalidRequest, InvalidText
from beholder.problems import MOST_FAULTS, InvalidBody, from_validation
from beholder.prompts import IMAGE, Turn
from beholder.routes.scoring import RANK, SCORE
from beholder.schemas import MAX_BATCH, ScoreBatch, ScoreItem


def read(body: object) -> ScoreItem | ScoreBatch:
    return SCORE.validate_json(json.dumps(body))


def refusal(text: str | bytes) -> InvalidRequest:
    with pytest.raises(ValidationError) as caught:
        SCORE.validate_json(text)
    return from_validation(caught.value)


def test_a_prompt_is_one_turn_with_its_images_first() -> None:
    item = read({"prompt": "p", "images": ["a", "b"], "response": "r"})
    assert isinstance(item, ScoreItem)
    assert item.conversation(2) == (Turn("user", (IMAGE, IMAGE, "p")),)


def test_messages_keep_roles_and_the_places_of_images() -> None:
    parts = [{"type": "text", "text": "before"}, {"type": "image"}, {"type": "text", "text": "after"}]
    item = read({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": parts}], "response": "r"})
    assert isinstance(item, ScoreItem)
    assert item.conversation(1) == (Turn("system", ("s",)), Turn("user", ("before", IMAGE, "after")))


def test_items_make_a_batch() -> None:
    assert isinstance(read({"items": [{"prompt": "p", "response": "r"}]}), ScoreBatch)


@pytest.mark.parametrize(
    ("body", "at", "words"),
    [
        ({"response": "r"}, "body", "`prompt` or `messages`"),
        ({"prompt": "p", "messages": [], "response": "r"}, "messages", "at least 1"),
        ({"prompt": "p", "response": 1}, "response", "valid string"),
        ({"prompt": "p", "response": "r", "temperature": 1}, "temperature", "Extra inputs"),
        ({"items": []}, "items", "at least 1"),
        ({"items": [{"prompt": "p"}]}, "items.0.response", "Field required"),
        ({"items": [{"prompt": "p", "response": "r"}], "prompt": "p"}, "prompt", "Extra inputs"),
        ({"prompt": "p", "response": "r", "images": "a"}, "images", "valid array"),
        ([], "body", "object"),
        ({"messages": [{"role": "tool", "content": "x"}], "response": "r"}, "messages.0.role", "'system'"),
        ({"messages": [{"role": "user", "content": []}], "response": "r"}, "messages.0.content.parts", "at least 1"),
        ({"messages": [{"role": "assistant", "content": "x"}], "response": "r"}, "body", "last of `messages`"),
    ],
)
def test_refusals_name_the_place(body: Any, at: str, words: str) -> None:
    error = refusal(json.dumps(body))
    assert str(error).startswith(f"{at}: ")
    assert words in str(error)


def test_many_faults_are_counted_and_not_listed() -> None:
    faults = {f"extra{index}": 1 for index in range(MOST_FAULTS + 1)}
    error = refusal(json.dumps({"prompt": "p", "response": "r", **faults}))
    assert isinstance(error, InvalidBody)
    assert error.errors == [{"at": "body", "problem": "1001 faults, too many to name: send what /docs shows"}]
    del faults["extra0"]
    error = refusal(json.dumps({"prompt": "p", "response": "r", **faults}))
    assert str(error).startswith("extra1: ")
    assert "(and 999 more)" in str(error)


def test_a_batch_is_bounded() -> None:
    body = {"prompt": "p", "responses": ["r"] * (MAX_BATCH + 1)}
    with pytest.raises(ValidationError, match=f"at most {MAX_BATCH}"):
        RANK.validate_json(json.dumps(body))


@pytest.mark.parametrize("text", [r'{"prompt":"p","response":"\ud800"}', b'{"prompt":"p","response":"\xff"}'])
def test_text_that_is_not_unicode_has_its_own_code(text: str | bytes) -> None:
    assert type(refusal(text)) is InvalidText


@pytest.mark.parametrize("text", ["", "{", "nonsense", "[" * 5000])
def test_what_is_not_json_is_refused(text: str) -> None:
    error = refusal(text)
    assert error.code == "invalid-request"
    assert "Invalid JSON" in str(error)


def test_a_null_character_is_text() -> None:
    item = SCORE.validate_json(r'{"prompt":"p","response":"a\u0000b"}')
    assert isinstance(item, ScoreItem)
    assert item.response == "a\0b"
