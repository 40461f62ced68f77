"""Image places in strings of the policy's chat template.

A prompt has one for each image; the policy's processor makes of it as many as the image has tokens.
"""

import re
from typing import Final

from beholder.errors import DataError

_EXPANDED: Final = {
    "<|image_pad|>": r"<\|image_pad\|>",  # Qwen
    "<|image|>": r"(?:<\|image>)?<\|image\|>(?:<image\|>)?",  # Gemma 4, GLM
    "<start_of_image>": r"(?:\n\n<start_of_image>)?<image_soft_token>(?:<end_of_image>\n\n)?",  # Gemma 3
    "<IMG_CONTEXT>": r"(?:<img>)?<IMG_CONTEXT>(?:</img>)?",  # InternVL
    "<image>": "<image>",  # LLaVA
}
"""Each placeholder, and what may stand once or more in place of a run of it."""
_RUNS: Final = re.compile("|".join(f"(?:{re.escape(token)})+" for token in _EXPANDED))
_TEMPLATED: Final = tuple(token for token in _EXPANDED if token != "<image>")  # that one is a tag of data sets, too


def has_image_place(text: str) -> bool:
    """Whether a template has left the place of an image in the text."""
    return any(token in text for token in _TEMPLATED)


def after_prompt(query: str, prompt: str) -> str:
    """What `query` has behind `prompt`, whose image places may be expanded there. Raises DataError."""
    if query.startswith(prompt):
        return query[len(prompt) :]
    expanded = re.match(_pattern(prompt), query)
    if expanded is None:
        raise DataError("the query does not begin with its prompt: where the response begins is unknown")
    return query[expanded.end() :]


def _pattern(prompt: str) -> str:
    pieces = []
    end = 0
    for run in _RUNS.finditer(prompt):
        token = next(token for token in _EXPANDED if run[0].startswith(token))
        pieces += [re.escape(prompt[end : run.start()]), f"(?:{_EXPANDED[token]})+"]
        end = run.end()
    return "".join([*pieces, re.escape(prompt[end:])])
