"""Requests and answers that the API's documentation shows. A test sends each request and reads each answer."""

from typing import Any, Final

RED_SQUARE: Final = (
    "iVBORw0KGgoAAAANSUhEUgAAACAAAAAgCAIAAAD8GO2jAAAAKklEQVR42u3NMQEAAAQAMATRP4pYSvBtBZbTHZ8qngkEAoFAIBAIBIIrC+AFAUQz66"
    "9uAAAAAElFTkSuQmCC"
)
"""A PNG of 32 x 32 pixels, base64."""
RED_SQUARE_SHA256: Final = "41de662af152b29c08511050c2a99e9387bf9e543ef08a46d8033dd6d49a9437"
FINGERPRINT: Final = "9f2c1e4b7a6d50839f2c1e4b7a6d50839f2c1e4b7a6d50839f2c1e4b7a6d5083"

_PROMPT: Final[dict[str, Any]] = {"prompt": "Which colour is it?", "images": [RED_SQUARE]}
_MESSAGES: Final[list[dict[str, Any]]] = [
    {"role": "system", "content": "Answer in one word."},
    {"role": "user", "content": [{"type": "text", "text": "This square "}, {"type": "image"}]},
    {"role": "assistant", "content": "What about it?"},
    {"role": "user", "content": "Which colour is it?"},
]
_COMMON: Final[dict[str, Any]] = {
    "model": "checkpoint",
    "fingerprint": FINGERPRINT,
    "usage": {"prompt_tokens": 58, "cached_tokens": 24},
}

SCORE_ITEM: Final[dict[str, Any]] = {**_PROMPT, "response": "Red."}
SCORE_BATCH: Final[dict[str, Any]] = {
    "items": [SCORE_ITEM, {"messages": _MESSAGES, "images": [RED_SQUARE], "response": "Blue."}]
}
RANK: Final[dict[str, Any]] = {**_PROMPT, "responses": ["Blue.", "Red."], "top_n": 1}
SCORE_ANSWER: Final[dict[str, Any]] = {"scores": [1.25], "cached": [False], "truncated": [False], **_COMMON}
RANK_ANSWER: Final[dict[str, Any]] = {
    "scores": [-0.5, 1.25],
    "normalized": [-0.4, 1.0],
    "cached": [False, False],
    "truncated": [False, False],
    **_COMMON,
    "ranks": [1, 0],
    "order": [1],
    "best": 1,
}
RECEIPT: Final[dict[str, Any]] = {
    "sha256": RED_SQUARE_SHA256,
    "bytes": 99,
    "width": 32,
    "height": 32,
    "expires_in_s": 21600.0,
}
PROBLEM: Final[dict[str, Any]] = {
    "type": "about:blank",
    "title": "Unprocessable Content",
    "status": 422,
    "code": "empty-response",
    "detail": "responses[1]: the response is empty: a reward needs a response",
    "request_id": "5b1c4fd2a9f04d3f8a0e6c1b2d3e4f50",
}

CLASSIFY: Final[dict[str, Any]] = {
    "model": "checkpoint",
    "input": "<|im_start|>user\nIs it?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n",
    "use_activation": False,
}
RERANK: Final[dict[str, Any]] = {"query": "Which colour is grass?", "documents": ["Red.", "Green."], "top_n": 1}
OPENRLHF: Final[dict[str, Any]] = {
    "query": ["<|im_start|>user\nIs it?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>"],
    "prompts": ["<|im_start|>user\nIs it?<|im_end|>\n<|im_start|>assistant\n"],
    "labels": ["yes"],
}
LLAMA_FACTORY: Final[dict[str, Any]] = {
    "model": "model",
    "messages": ["<|im_start|>user\nIs it?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>"],
}
SLIME: Final[dict[str, Any]] = {
    "prompt": [{"role": "user", "content": "Is it?"}],
    "response": "Yes.",
    "label": None,
}
