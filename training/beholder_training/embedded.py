"""Images that a data file holds as bytes -> files in a content-addressed folder, written once.

Records then hold paths whatever their source, and the same picture in many rows is stored once.
"""

import hashlib
import os
from pathlib import Path

_SIGNATURES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp", b"GIF8": ".gif"}


def default_image_cache() -> Path:
    """$XDG_CACHE_HOME/beholder/images, by default under ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "beholder" / "images"


def store_image(data: bytes, folder: Path) -> Path:
    """The path of `data` under `folder`: ab/abcdef....png. Not decoded here: checking does that."""
    digest = hashlib.sha256(data).hexdigest()
    suffix = next((suffix for start, suffix in _SIGNATURES.items() if data.startswith(start)), ".img")
    path = folder / digest[:2] / f"{digest}{suffix}"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        scratch.write_bytes(data)
        scratch.replace(path)  # whole or not at all, also when processes write the same picture
    return path
