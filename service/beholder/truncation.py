"""Shorten a conversation that is too long, where the settings allow it.

The beginning of the longest text goes first; the response and the images stay whole: a cut response would be another
one, and its score a wrong one.
"""

from dataclasses import replace
from typing import Final

from beholder.errors import PromptTooLong
from beholder.prompts import Conversation, PromptRenderer

ATTEMPTS: Final = 4
"""Text that is cut may encode to a few tokens more or fewer than were counted."""


def shorten(renderer: PromptRenderer, conversation: Conversation, error: PromptTooLong) -> Conversation | None:
    """`conversation` with as many tokens fewer as `error` says are too many; None when it cannot be."""
    if error.tokens is None or error.limit is None:
        return None
    conversation = first_cut(renderer, conversation, error.limit)
    excess = error.tokens - error.limit
    while excess > 0:
        turn_index, part_index, text = _longest(conversation)
        if not text:
            return None
        shorter, dropped = renderer.drop_tokens(text, excess)
        conversation = _replace(conversation, turn_index, part_index, shorter)
        excess -= dropped
    return conversation


def first_cut(renderer: PromptRenderer, conversation: Conversation, limit: int) -> Conversation:
    """`conversation` without characters that cannot be among `limit` tokens, and so need not be encoded."""
    most = renderer.most_characters(limit)
    characters = sum(len(part) for turn in conversation for part in turn.parts if isinstance(part, str))
    excess = 0 if most is None else characters - most
    while excess > 0:
        turn_index, part_index, text = _longest(conversation)
        conversation = _replace(conversation, turn_index, part_index, text[excess:])
        excess -= len(text)
    return conversation


def _longest(conversation: Conversation) -> tuple[int, int, str]:
    """Place of the longest text, and the text."""
    texts = [
        (turn_index, part_index, part)
        for turn_index, turn in enumerate(conversation)
        for part_index, part in enumerate(turn.parts)
        if isinstance(part, str)
    ]
    return max(texts, key=lambda item: len(item[2]), default=(0, 0, ""))


def _replace(conversation: Conversation, turn_index: int, part_index: int, text: str) -> Conversation:
    turn = conversation[turn_index]
    parts = (*turn.parts[:part_index], text, *turn.parts[part_index + 1 :])
    return (*conversation[:turn_index], replace(turn, parts=parts), *conversation[turn_index + 1 :])
