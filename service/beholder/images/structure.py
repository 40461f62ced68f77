"""What an image file says before it is decoded: whether it is whole, of how many parts it is made, and how often a
decoder goes over its pixels.

Pillow shows a file that breaks off after the last pixel that it needs. A file that was cut in transit would be scored
as an image that nobody sent, so each format's own end must be there. Bytes after that end are left alone: cameras write
them.
"""

import re
from collections.abc import Iterator
from itertools import islice
from typing import Final

PNG: Final = b"\x89PNG\r\n\x1a\n"
_PNG_OVERHEAD: Final = 12  # length, type, CRC
_GIF: Final = (b"GIF87a", b"GIF89a")
_GIF_HEADER: Final = 13
_GIF_IMAGE, _GIF_EXTENSION, _GIF_END = 0x2C, 0x21, 0x3B
_WEBP_HEADER: Final = 12
_JPEG: Final = b"\xff\xd8"
_JPEG_MARKER: Final = re.compile(rb"\xff([\xc0-\xc7\xc9-\xcf\xd9-\xdf\xe0-\xef\xfe])")
"""One that has a length behind it, or the end: not a stuffed byte, a restart, fill, or what no decoder knows."""
_JPEG_SCAN, _JPEG_END, _JPEG_TABLES = b"\xda", b"\xd9", b"\xdb"
_JPEG_TABLE: Final = 65  # bytes of the smallest quantization table
_JPEG_FILL: Final = 16
"""Bytes between segments that count as one."""
_JPEG_EXIF: Final = re.compile(rb"\xff\xe1..Exif\0\0", re.DOTALL)
_EXIF_PARTS: Final = 10
"""How many segments one of EXIF counts as: for each Pillow copies all EXIF before it, and few files have two."""
_SEARCHED_BYTES: Final = 2**20
_MAX_JPEG_SEGMENTS: Final = 10_000
"""The most segments of a whole file, scans included. An empty one takes 4 bytes: a hostile file could have millions."""

_MAX_JPEG_HEADER: Final = 1000
"""Cameras write tens, a large colour profile or a depth map some hundred."""
_MAX_PARTS: Final = 10_000
"""The most parts of a small file in another format; a large one may have as many more as its picture data needs."""
_PNG_PART, _GIF_PART = 2048, 128
"""Bytes. The picture data comes in chunks of 8 kB from libpng, in blocks of 255 bytes from all encoders of GIF."""


def is_fragmented(data: bytes) -> bool:
    """Whether the file is made of more parts (segments, chunks, blocks) than a picture is.

    Pillow goes through them in Python before it says anything of the picture: of 20 MB of them for a minute.
    """
    if data.startswith(_JPEG):
        return _jpeg_header_parts(data) > _MAX_JPEG_HEADER
    if data.startswith(PNG):
        return _has_more(_png_chunks(data), _MAX_PARTS + len(data) // _PNG_PART)
    if data.startswith(_GIF):
        return _has_more(_gif_blocks(data), _MAX_PARTS + len(data) // _GIF_PART)
    return _is_webp(data) and _has_more(_webp_chunks(data), _MAX_PARTS)


def is_whole(data: bytes) -> bool:
    """False for a PNG, JPEG, WebP or GIF without its end, and for anything else."""
    if data.startswith(PNG):
        return b"IEND" in _png_chunks(data)
    if data.startswith(_JPEG):
        return _jpeg(data)
    if _is_webp(data):
        return len(data) >= int.from_bytes(data[4:8], "little") + 8
    if data.startswith(_GIF):
        return _GIF_END in _gif_blocks(data)
    return False


def scans(data: bytes) -> int:
    """How often a decoder goes over all pixels: the scans of a JPEG, 1 for other formats."""
    if not data.startswith(_JPEG):
        return 1
    return sum(marker == _JPEG_SCAN for marker, _, _ in _jpeg_segments(data))


def _has_more(parts: Iterator[object], most: int) -> bool:
    return next(islice(parts, most, None), None) is not None


def _png_chunks(data: bytes) -> Iterator[bytes]:
    """The type of each that is whole, until the end."""
    position = len(PNG)
    while position + _PNG_OVERHEAD <= len(data):
        length = int.from_bytes(data[position : position + 4])
        kind = data[position + 4 : position + 8]
        position += length + _PNG_OVERHEAD
        if position <= len(data):
            yield kind
        if kind == b"IEND":
            return


def _is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def _webp_chunks(data: bytes) -> Iterator[bytes]:
    """The type of each; one of odd length has a byte behind it."""
    position = _WEBP_HEADER
    while position < len(data):
        yield data[position : position + 4]
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        position += 8 + length + length % 2


def _jpeg(data: bytes) -> bool:
    """The first end is the picture's: phones and stereo cameras put a film or another picture behind it."""
    markers = [marker for marker, _, _ in _jpeg_segments(data)]
    return _JPEG_SCAN in markers and markers[-1] == _JPEG_END


def _jpeg_header_parts(data: bytes) -> int:
    """Segments before the first scan, the bytes between them, and their quantization tables: Pillow takes each alone.

    It does not end where the picture ends without a scan.
    """
    parts, position = 0, len(_JPEG)
    for marker, start, end in _jpeg_segments(data):
        if marker == _JPEG_END:
            break
        parts += 1 + (start - position) // _JPEG_FILL
        if marker == _JPEG_SCAN:
            return parts
        if marker == _JPEG_TABLES:
            parts += (end - start) // _JPEG_TABLE
        if _JPEG_EXIF.match(data, start):
            parts += _EXIF_PARTS
        position = end
    return parts + len(data) - position


def _jpeg_segments(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The marker of each segment and scan, until the end, and where it starts and ends. Segments are passed over by
    their length, for a thumbnail in them has an end too; a scan's data has no marker."""
    position = len(_JPEG)
    for _ in range(_MAX_JPEG_SEGMENTS):
        if (marker := _next_jpeg_marker(data, position)) is None:
            return
        if marker[1] == _JPEG_END:
            yield marker[1], marker.start(), marker.end()
            return
        position = marker.end() + max(2, int.from_bytes(data[marker.end() : marker.end() + 2]))
        yield marker[1], marker.start(), position


def _next_jpeg_marker(data: bytes, position: int) -> re.Match[bytes] | None:
    """In steps, since no other thread runs during a search."""
    for start in range(position, len(data), _SEARCHED_BYTES):
        if marker := _JPEG_MARKER.search(data, start, start + _SEARCHED_BYTES + 1):
            return marker
    return None


def _gif_blocks(data: bytes) -> Iterator[int]:
    """Each block's kind, and 0 for each block of bytes in it, up to the end or the first that is no block."""
    try:
        position = _GIF_HEADER + _colours(data[10])
        while (kind := data[position]) in (_GIF_IMAGE, _GIF_EXTENSION):
            yield kind
            position += 11 + _colours(data[position + 9]) if kind == _GIF_IMAGE else 2
            while (size := data[position]) != 0:
                yield 0
                position += size + 1
            position += 1
        yield kind
    except IndexError:
        return


def _colours(flags: int) -> int:
    """Bytes of the colour table that the flags announce."""
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0
