"""Images: from bytes, base64, references and URLs to verified RGB pixels.

loading.py    bytes -> pixels and their sha256, as training and serving both see them
structure.py  what a file's parts say before Pillow reads it
sources.py    where a request's images are: base64, a reference to one sent before, a URL
store.py      images sent before, by sha256: in memory, or in a folder that replicas share
urls.py       fetching, from hosts that are allowed
decoded.py    pixels kept for the next request, and the bound on those in memory
"""

from beholder.images.loading import (
    ImageLimits,
    LoadedImage,
    blank_image,
    decode_base64,
    load_image,
    load_image_file,
    raise_pillows_limit,
)

__all__ = [
    "ImageLimits",
    "LoadedImage",
    "blank_image",
    "decode_base64",
    "load_image",
    "load_image_file",
    "raise_pillows_limit",
]
