"""A data set in which every kind of bad record occurs, between good ones."""

import json
from pathlib import Path
from typing import Any

from tests.pictures import png

PAIR = {"prompt": "What is it?", "img_path": "good.png", "chosen": "A red one.", "rejected": "A blue one."}


def rated(*responses: tuple[str, Any]) -> dict[str, Any]:
    """A completions record of (response, rating)."""
    annotations = [{"Helpfulness": {"Rating": rating}} for _, rating in responses]
    return {**PAIR, "completions": {"annotations": annotations, "response": [text for text, _ in responses]}}


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in PAIR.items() if name != key}


BAD: list[tuple[str, Any]] = [
    ("not-json", b"{oops"),
    ("not-utf8", b'{"prompt": "caf\xe9"}'),
    ("not-an-object", [1, 2]),
    ("unknown-layout", {"prompt": "?", "img_path": "good.png"}),
    ("missing-prompt", without("prompt")),
    ("missing-prompt", {**PAIR, "prompt": "   "}),
    ("missing-response", without("rejected")),
    ("missing-response", {**PAIR, "chosen": 3}),
    ("missing-response", {"prompt": "?", "responses": []}),
    ("bad-conversation", {"image": "good.png", "conversations": [{"from": "human", "value": "?"}]}),
    ("bad-conversation", {"conversations": "hello", "rejected_conversations": None}),
    ("mismatched-completions", {**PAIR, "completions": {"annotations": [], "response": ["A", "B"]}}),
    ("mismatched-completions", {**PAIR, "completions": 7}),
    ("empty-response", {**PAIR, "rejected": " \n"}),
    ("empty-response", rated(("", 5), ("B", 1))),
    ("duplicate-response", {**PAIR, "rejected": PAIR["chosen"]}),
    ("duplicate-response", rated(("A", 5), ("A", 3), ("B", 1))),
    ("non-numeric-rating", rated(("A", "N/A"), ("B", "1"), ("C", "4"))),
    ("non-numeric-rating", rated(("A", "nan"), ("B", "1"), ("C", "4"))),
    ("ties-only", rated(("A", "3"), ("B", "3"))),
    ("bad-best", {"prompt": "?", "responses": ["A", "B"], "best": 2}),
    ("invalid-text", {**PAIR, "chosen": "lone \ud800 surrogate"}),
    ("bad-image-field", {**PAIR, "img_path": 3}),
    ("bad-image-field", {**PAIR, "img_path": ["good.png", None]}),
    ("unknown-image-field", {**{key: PAIR[key] for key in ("prompt", "chosen", "rejected")}, "image_file": "good.png"}),
    ("unknown-image-field", {"video": "clip.mp4", "prompt": "?", "chosen": "A", "rejected": "B"}),
    ("unknown-image-field", {**PAIR, "audios": ["sound.wav"]}),
    ("missing-image", {**PAIR, "img_path": "none.png"}),
    ("unreadable-image", {**PAIR, "img_path": "text.png"}),
    ("unreadable-image", {**PAIR, "img_path": "cut.png"}),
    ("unreadable-image", {**PAIR, "img_path": "thin.png"}),
    ("too-large-image", {**PAIR, "img_path": "bomb.png"}),
    ("too-long", {**PAIR, "chosen": "word " * 3000}),
]
"""(kind, record or raw line) in the order of the file's lines, each followed by a good line."""


def write_hostile(folder: Path) -> Path:
    """hostile.jsonl with its images: bad records on the odd lines, good ones on the even."""
    (folder / "good.png").write_bytes(png())
    (folder / "text.png").write_text("no picture")
    (folder / "cut.png").write_bytes(png()[:60])
    (folder / "thin.png").write_bytes(png(400, 1))
    (folder / "bomb.png").write_bytes(_claims(60_000, 60_000))
    lines = []
    for _, record in BAD:
        lines += [record if isinstance(record, bytes) else json.dumps(record).encode(), json.dumps(PAIR).encode()]
    (folder / "hostile.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return folder / "hostile.jsonl"


def _claims(width: int, height: int) -> bytes:
    """A small PNG whose header says that it is `width` by `height`."""
    import struct
    import zlib

    data = png()
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
