"""Shorten a conversation that is too long, where the settings allow it.

The beginning of the longest text goes first; the response and the images stay whole: a cut response would be another
one, and its score a wrong one.
"""

import asyncio
import heapq
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Final

from beholder.engine import EngineScore
from beholder.errors import PromptTooLong
from beholder.images import LoadedImage
from beholder.prompts import Conversation, Prompt, PromptRenderer, without_images

ATTEMPTS: Final = 4
"""Text that is cut may encode to a few tokens more or fewer than were counted."""

_Place = tuple[int, int]
"""Where a text stands: the index of its turn, and of the part in the turn."""


def shorten(
    renderer: PromptRenderer,
    conversation: Conversation,
    error: PromptTooLong,
    abandoned: Callable[[], bool] = lambda: False,
) -> Conversation | None:
    """`conversation` with as many tokens fewer as `error` says are too many; None when it cannot be, or when
    `abandoned` says that nobody waits for it any more."""
    if error.tokens is None or error.limit is None:
        return None
    conversation = first_cut(renderer, conversation, error.limit)
    excess = error.tokens - error.limit
    longest = [(-len(text), place, text) for place, text in _texts(conversation).items()]
    heapq.heapify(longest)
    cut: dict[_Place, str] = {}
    while excess > 0:
        if abandoned() or not longest or not longest[0][2]:
            return None
        _, place, text = longest[0]
        cut[place], dropped = renderer.drop_tokens(text, excess)
        heapq.heapreplace(longest, (-len(cut[place]), place, cut[place]))
        excess -= dropped
    return _with_texts(conversation, cut)


async def score_fitting(
    score_prompt: Callable[[Prompt], Awaitable[EngineScore]],
    renderer: PromptRenderer,
    conversation: Conversation,
    response: str,
    prompt: Prompt,
    *,
    truncate: bool,
) -> EngineScore:
    """The score of `prompt`, which is that of `conversation` and `response`; or, where it is too long and to `truncate`
    is allowed, that of a shorter one.

    Images are known to be as large only once the engine has expanded them, so this may take several tries. Raises
    PromptTooLong when none fits.
    """
    try:
        return await score_prompt(prompt)
    except PromptTooLong as error:
        if not truncate:
            raise
        return await _score_shortened(score_prompt, renderer, conversation, response, prompt.images, error)


async def _score_shortened(
    score_prompt: Callable[[Prompt], Awaitable[EngineScore]],
    renderer: PromptRenderer,
    conversation: Conversation,
    response: str,
    images: tuple[LoadedImage, ...],
    error: PromptTooLong,
) -> EngineScore:
    """At last raises `error`."""
    if not images:  # what the model does not read has left the prompt already: its slots go too
        conversation = without_images(conversation)
    abandoned = threading.Event()
    try:
        for _ in range(ATTEMPTS):
            cut = await asyncio.to_thread(shorten, renderer, conversation, error, abandoned.is_set)
            if cut is None:
                break
            conversation = cut
            shorter = await asyncio.to_thread(renderer.render, conversation, response, images)
            try:
                return replace(await score_prompt(shorter), truncated=True)
            except PromptTooLong as again:
                error = again
        raise error
    finally:
        abandoned.set()
        del error  # its traceback holds this frame: a cycle


def first_cut(renderer: PromptRenderer, conversation: Conversation, limit: int) -> Conversation:
    """`conversation` without characters that cannot be among `limit` tokens, and so need not be encoded."""
    most = renderer.most_characters(limit)
    texts = _texts(conversation)
    excess = 0 if most is None else sum(map(len, texts.values())) - most
    cut: dict[_Place, str] = {}
    for place, text in sorted(texts.items(), key=lambda item: -len(item[1])):
        if excess <= 0:
            break
        cut[place] = text[excess:]
        excess -= len(text)
    return _with_texts(conversation, cut)


def _texts(conversation: Conversation) -> dict[_Place, str]:
    return {
        (turn_index, part_index): part
        for turn_index, turn in enumerate(conversation)
        for part_index, part in enumerate(turn.parts)
        if isinstance(part, str)
    }


def _with_texts(conversation: Conversation, texts: Mapping[_Place, str]) -> Conversation:
    """`conversation` with these in place of its own."""
    return tuple(
        replace(turn, parts=tuple(texts.get((turn_index, index), part) for index, part in enumerate(turn.parts)))
        for turn_index, turn in enumerate(conversation)
    )
