"""What an image file says before it is decoded: whether it is whole, and how often a decoder goes over its pixels.

Pillow shows a file that breaks off after the last pixel that it needs. A file that was cut in transit would be scored
as an image that nobody sent, so each format's own end must be there. Bytes after that end are left alone: cameras write
them.
"""

import re
from collections.abc import Iterator
from typing import Final

PNG: Final = b"\x89PNG\r\n\x1a\n"
_PNG_OVERHEAD: Final = 12  # length, type, CRC
_GIF_HEADER: Final = 13
_GIF_IMAGE, _GIF_EXTENSION, _GIF_END = 0x2C, 0x21, 0x3B
_JPEG: Final = b"\xff\xd8"
_JPEG_MARKER: Final = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")
"""One that has a length behind it, or the end: not a stuffed byte, a restart or fill."""
_JPEG_SCAN, _JPEG_END = b"\xda", b"\xd9"
_MAX_JPEG_SEGMENTS: Final = 10_000
"""Cameras write tens. An empty one has 4 bytes, so a hostile file could have millions."""


def is_whole(data: bytes) -> bool:
    """False for a PNG, JPEG, WebP or GIF without its end, and for anything else."""
    if data.startswith(PNG):
        return _png(data)
    if data.startswith(_JPEG):
        return _jpeg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return len(data) >= int.from_bytes(data[4:8], "little") + 8
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return _gif(data)
    return False


def scans(data: bytes) -> int:
    """How often a decoder goes over all pixels: the scans of a JPEG, 1 for other formats."""
    if not data.startswith(_JPEG):
        return 1
    return sum(marker == _JPEG_SCAN for marker in _jpeg_markers(data))


def _png(data: bytes) -> bool:
    position = len(PNG)
    while position + _PNG_OVERHEAD <= len(data):
        length = int.from_bytes(data[position : position + 4])
        kind = data[position + 4 : position + 8]
        position += length + _PNG_OVERHEAD
        if kind == b"IEND":
            return position <= len(data)
    return False


def _jpeg(data: bytes) -> bool:
    """The first end is the picture's: phones and stereo cameras put a film or another picture behind it."""
    markers = list(_jpeg_markers(data))
    return _JPEG_SCAN in markers and markers[-1] == _JPEG_END


def _jpeg_markers(data: bytes) -> Iterator[bytes]:
    """Of each segment and scan, until the end. Segments are passed over by their length, for a thumbnail in them has
    an end too; a scan's data has no marker."""
    position = 2
    for _ in range(_MAX_JPEG_SEGMENTS):
        if (marker := _JPEG_MARKER.search(data, position)) is None:
            return
        yield marker[1]
        if marker[1] == _JPEG_END:
            return
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])


def _gif(data: bytes) -> bool:
    try:
        position = _GIF_HEADER + _colours(data[10])
        while (kind := data[position]) != _GIF_END:
            if kind == _GIF_IMAGE:
                position += 11 + _colours(data[position + 9])
            elif kind == _GIF_EXTENSION:
                position += 2
            else:
                return False
            while (size := data[position]) != 0:
                position += size + 1
            position += 1
    except IndexError:
        return False
    return True


def _colours(flags: int) -> int:
    """Bytes of the colour table that the flags announce."""
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0
