"""Texts of any length: what cannot fit is not encoded, and what is leaves the event loop free."""

import asyncio
import json
import random
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from beholder.checkpoint import Checkpoint
from beholder.errors import PromptTooLong
from beholder.prompts import IMAGE, Conversation, Prompt, PromptRenderer, Turn, single_turn
from beholder.scoring import PART_CHARACTERS, QUICK_CHARACTERS, Sample, _characters
from beholder.settings import Settings
from beholder.token_bound import TokenBound, token_bound
from beholder.truncation import first_cut, shorten
from tests.service.stand_in import StandInEngine, serving
from tests.service.test_http import assert_problem

pytestmark = pytest.mark.anyio
BYTES = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
MERGES = [("a", "a"), ("aa", "aa"), ("Ġ", "Ġ"), ("Ã", "©")]
VOCABULARY = {**BYTES, **{left + right: len(BYTES) + index for index, (left, right) in enumerate(MERGES)}}


class CountingRenderer(PromptRenderer):
    """Counts the prompts that it encodes."""

    encoded = 0

    def token_ids(self, conversation: Conversation, response: str) -> tuple[int, ...]:
        self.encoded += 1
        return super().token_ids(conversation, response)


@pytest.fixture
def counting(settings: Settings) -> CountingRenderer:
    renderer = CountingRenderer.from_folder(settings.checkpoint)
    assert isinstance(renderer, CountingRenderer)
    return renderer


@pytest.fixture
async def client(
    settings: Settings, engine: StandInEngine, checkpoint: Checkpoint, counting: CountingRenderer
) -> AsyncIterator[httpx.AsyncClient]:
    hurried = settings.model_copy(update={"request_deadline_s": 0.5})
    async with serving(hurried, engine, checkpoint, counting) as client:
        counting.encoded = 0
        yield client


def spelling(**parts: Any) -> Tokenizer:
    """A tokenizer that spells in bytes, with these parts in place of its own."""
    tokenizer = Tokenizer(models.BPE(VOCABULARY, MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


def bound_of(tokenizer: Tokenizer) -> TokenBound | None:
    return token_bound(json.loads(tokenizer.to_str()))


def texts() -> list[str]:
    draw = random.Random(0)
    kinds: list[Callable[[], str]] = [
        lambda: "a" * draw.randrange(9),
        lambda: " " * draw.randrange(9),
        lambda: "e\u0301" * draw.randrange(5),
        lambda: "\u03b1\u0313\u0301\u0345",  # composed to one character
        lambda: chr(draw.randrange(0x20, 0xD800)),
        lambda: chr(draw.randrange(0x10000, 0x20000)),
    ]
    return ["".join(draw.choice(kinds)() for _ in range(draw.randrange(1, 60))) for _ in range(300)]


@pytest.mark.parametrize(
    "normalizer",
    [
        None,
        normalizers.NFC(),
        normalizers.NFKC(),
        normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase(), normalizers.NFC()]),
        normalizers.Sequence([normalizers.Prepend("_"), normalizers.Replace(" ", "_")]),
    ],
)
def test_no_text_has_fewer_tokens_than_its_least(normalizer: Any) -> None:
    tokenizer = spelling(normalizer=normalizer) if normalizer else spelling()
    bound = bound_of(tokenizer)
    assert bound is not None
    for text in [*texts(), "\u03b1\u0313\u0301\u0345" * 50, "a" * 400]:
        tokens = len(tokenizer.encode(text).ids)
        assert bound.least_tokens([text]) <= tokens
        assert len(text) <= bound.most_characters(tokens)


@pytest.mark.parametrize(
    "tokenizer",
    [
        spelling(normalizer=normalizers.StripAccents()),
        spelling(normalizer=normalizers.Replace("aa", "")),
        spelling(pre_tokenizer=pre_tokenizers.Whitespace()),
        spelling(pre_tokenizer=pre_tokenizers.Split(" ", "removed")),
        spelling(model=models.WordLevel({"a": 0}, unk_token="a")),
        spelling(model=models.BPE({"a": 0}, [])),
        Tokenizer(models.BPE(VOCABULARY, MERGES)),
    ],
)
def test_where_characters_may_be_dropped_there_is_no_bound(tokenizer: Tokenizer) -> None:
    assert bound_of(tokenizer) is None


def test_encoding_without_offsets_gives_the_same_ids(renderer: PromptRenderer) -> None:
    for text in [*texts(), "".join(texts())]:
        assert list(renderer._encode_text(text)) == renderer._backend.encode(text, add_special_tokens=False).ids


def test_other_threads_run_while_a_long_text_is_encoded(renderer: PromptRenderer) -> None:
    ticks, encoded = 0, threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not encoded.is_set():
            time.sleep(0.001)
            ticks += 1

    thread = threading.Thread(target=tick)
    thread.start()
    before = ticks
    renderer.token_ids(single_turn("the red one " * 50_000, 0), "b")
    during = ticks - before
    encoded.set()
    thread.join()
    assert during > 10


async def test_what_cannot_fit_is_not_encoded(client: httpx.AsyncClient, counting: CountingRenderer) -> None:
    body = {"prompt": "the red one " * 300_000, "responses": ["a", "b"]}
    problem = assert_problem(await client.post("/rank", json=body), 422, "prompt-too-long")
    assert problem["tokens"] > problem["max_tokens"]
    assert "responses[0]: the conversation has at least" in problem["detail"]
    assert counting.encoded == 0


async def test_the_first_sample_that_is_too_long_ends_the_request(
    client: httpx.AsyncClient, counting: CountingRenderer
) -> None:
    body = {"prompt": "the red one " * 2_000, "responses": ["response"] * 50}
    assert_problem(await client.post("/rank", json=body), 422, "prompt-too-long")
    assert counting.encoded == 1


async def test_nothing_is_encoded_for_a_request_that_was_given_up(
    client: httpx.AsyncClient, counting: CountingRenderer, engine: StandInEngine
) -> None:
    engine.max_tokens = 100_000
    items = [{"prompt": f"{index} the red one " * 10_000, "response": "r"} for index in range(60)]
    assert_problem(await client.post("/score", json={"items": items}), 504, "deadline-exceeded")
    await asyncio.sleep(0.2)  # the one that was being encoded
    encoded = counting.encoded
    await asyncio.sleep(0.3)
    assert counting.encoded == encoded < 60


async def test_what_cannot_fit_is_cut_before_it_is_encoded(
    settings: Settings, engine: StandInEngine, checkpoint: Checkpoint, renderer: PromptRenderer
) -> None:
    engine.max_tokens = 300
    seen: list[Prompt] = []
    score = engine.score

    async def spy(prompt: Prompt, *, fresh: bool = False) -> Any:
        seen.append(prompt)
        return await score(prompt, fresh=fresh)

    engine.score = spy  # type: ignore[method-assign]
    chosen = settings.model_copy(update={"overlong": "truncate", "request_deadline_s": 10})
    end = "word " * 1000 + "the end?"
    async with serving(chosen, engine, checkpoint, renderer) as client:
        seen.clear()
        for prompt in (end, "red " * 2_000_000 + end):
            body = {"prompt": prompt, "responses": ["short"] * 20}
            assert (await client.post("/rank", json=body)).json()["truncated"] == [True] * 20
        assert {prompt.token_ids for prompt in seen} == {seen[0].token_ids}
        refused = await client.post("/score", json={"prompt": "p", "response": "word " * 100_000})
        assert assert_problem(refused, 422, "prompt-too-long")["detail"].startswith("the response has at least")


class Spaced(PromptRenderer):
    """A token is a word with the space before it; `longest` is the bound's."""

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.seen: list[int] = []

    def most_characters(self, tokens: int) -> int:
        return tokens * self.longest

    def drop_tokens(self, text: str, count: int) -> tuple[str, int]:
        """As of tokens without a place in the text, one of three is not counted."""
        self.seen.append(len(text))
        words = text.split(" ")
        return " ".join(words[count:]), min(len(words), max(1, count * 2 // 3))


def by_the_longest(conversation: Conversation, excess: int, drop: Callable[[str, int], tuple[str, int]]) -> Any:
    """The rule: what is too much goes from the longest text, again and again."""
    while excess > 0:
        places = [(turn, part) for turn, each in enumerate(conversation) for part in range(len(each.parts))]
        places = [(turn, part) for turn, part in places if isinstance(conversation[turn].parts[part], str)]
        turn, part = max(places, key=lambda place: len(str(conversation[place[0]].parts[place[1]])), default=(0, 0))
        if not places or not conversation[turn].parts[part]:
            return None
        parts = list(conversation[turn].parts)
        parts[part], dropped = drop(str(parts[part]), excess)
        conversation = (
            *conversation[:turn],
            replace(conversation[turn], parts=tuple(parts)),
            *conversation[turn + 1 :],
        )
        excess -= dropped
    return conversation


def conversations() -> list[Conversation]:
    draw = random.Random(1)

    def text() -> str:
        return " ".join("abcdefg"[: draw.randrange(8)] for _ in range(draw.randrange(12)))

    return [
        tuple(
            Turn("user", tuple(IMAGE if draw.random() < 0.2 else text() for _ in range(draw.randrange(5))))
            for _ in range(draw.randrange(4))
        )
        for _ in range(300)
    ]


def test_the_longest_text_is_cut_first_again_and_again() -> None:
    draw = random.Random(2)
    for conversation in conversations():
        limit, tokens = draw.randrange(20), draw.randrange(20, 60)
        renderer = Spaced(draw.randrange(1, 9))
        characters = sum(len(part) for turn in conversation for part in turn.parts if isinstance(part, str))
        excess = characters - renderer.most_characters(limit)
        first = by_the_longest(conversation, excess, lambda text, count: (text[count:], len(text)))
        assert first_cut(renderer, conversation, limit) == first
        expected = by_the_longest(first, tokens - limit, renderer.drop_tokens)
        assert shorten(renderer, conversation, PromptTooLong("long", tokens, limit)) == expected


MANY = tuple(Turn("user", ("w " * 50,) * 100) for _ in range(200))


def test_a_conversation_of_many_parts_is_shortened_soon() -> None:
    renderer = Spaced(longest=50)
    started = time.monotonic()
    assert first_cut(renderer, MANY, 10_000)[-1] == MANY[-1]
    assert shorten(renderer, MANY, PromptTooLong("long", 1_000_000, 40_000)) is not None
    assert time.monotonic() - started < 5
    assert len(renderer.seen) > 10_000


def test_nothing_is_shortened_for_a_request_that_was_given_up() -> None:
    renderer = Spaced(longest=50)
    error = PromptTooLong("long", 1_000_000, 40_000)
    assert shorten(renderer, MANY, error, lambda: len(renderer.seen) == 5) is None
    assert len(renderer.seen) == 5


async def test_a_request_that_is_given_up_ends_its_shortening(
    settings: Settings,
    engine: StandInEngine,
    checkpoint: Checkpoint,
    renderer: PromptRenderer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dropped = 0

    def slowly(text: str, count: int) -> tuple[str, int]:
        nonlocal dropped
        dropped += 1
        time.sleep(0.02)
        return "", 1

    monkeypatch.setattr(renderer, "drop_tokens", slowly)
    engine.max_tokens = 300
    chosen = settings.model_copy(update={"overlong": "truncate", "request_deadline_s": 0.5})
    content = [{"type": "text", "text": "red one"}] * 100
    turns = [{"role": role, "content": content} for role in ("user", "assistant")] * 5
    body = {"messages": [*turns, {"role": "user", "content": "p"}], "response": "r"}
    async with serving(chosen, engine, checkpoint, renderer) as client:
        assert_problem(await client.post("/score", json=body), 504, "deadline-exceeded")
        await asyncio.sleep(0.2)  # the text that was being cut
        done = dropped
        await asyncio.sleep(0.3)
    assert 0 < dropped == done


def test_empty_parts_are_work_too() -> None:
    part_count = QUICK_CHARACTERS // PART_CHARACTERS + 1
    samples = [Sample((Turn("user", ("",) * part_count),), (), "r")]
    assert _characters(samples) > QUICK_CHARACTERS
