"""The samples that every contender scores: those of `beholder load-test`, as requests and as rendered prompts."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from beholder.images import load_image
from beholder.load_test.mix import Item, Mix, items
from beholder.prompts import Prompt, PromptRenderer, single_turn
from benchmarks.stock_vllm import classify_body

RESPONSE_TOKENS = 300


def mix_for(checkpoint: Path, prompts: int = 25) -> Mix:
    """`prompts` with 8 responses each of about RESPONSE_TOKENS tokens, and pictures of 336 x 252."""
    mix = Mix(prompts=prompts)
    renderer = PromptRenderer.from_folder(checkpoint)
    while _response_tokens(renderer, mix) < RESPONSE_TOKENS:
        mix = replace(mix, response_words=mix.response_words + 5)
    return mix


def _response_tokens(renderer: PromptRenderer, mix: Mix) -> float:
    """Mean over a round."""
    responses = [text for item in items(mix, 0) for text in responses_of(item)]
    empty = len(renderer.token_ids(single_turn("p", 0), "x")) - 1
    return sum(len(renderer.token_ids(single_turn("p", 0), text)) - empty for text in responses) / len(responses)


def responses_of(item: Item) -> list[str]:
    body = json.loads(item.body)
    return list(body["responses"]) if "responses" in body else [body["response"]]


def prompts_of(renderer: PromptRenderer, item: Item) -> list[Prompt]:
    """One a response, the picture decoded."""
    images = [] if item.image is None else [_decoded(item.image)]
    conversation = single_turn(json.loads(item.body)["prompt"], len(images))
    return [renderer.render(conversation, response, images) for response in responses_of(item)]


_decoded = lru_cache(maxsize=1024)(load_image)


def stock_items(requests: Sequence[Item]) -> list[Item]:
    """The same samples as requests to stock vLLM's /classify, which takes one response and the picture by value."""
    return [
        Item("/classify", json.dumps(classify_body(*_parts(item), response)).encode(), 1, item.image)
        for item in requests
        for response in responses_of(item)
    ]


def _parts(item: Item) -> tuple[str, list[bytes]]:
    return json.loads(item.body)["prompt"], [] if item.image is None else [item.image]
