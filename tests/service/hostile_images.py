"""Files that are not what they say, break off, or are far larger than they look."""

import base64
import io
import struct
import zipfile
import zlib
from typing import Any, Final

from PIL import Image

from tests.pictures import encode, png

PNG: Final = png()
SIGNATURE: Final = PNG[:8]


def chunk(kind: bytes, data: bytes = b"", crc: int | None = None) -> bytes:
    return (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) if crc is None else crc)
    )


def header(width: int, height: int, crc: int | None = None) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), crc)


def png_of(*chunks: bytes) -> bytes:
    return SIGNATURE + b"".join(chunks) + chunk(b"IEND")


def rows(width: int, height: int) -> bytes:
    """The picture data of a black image, compressed."""
    return chunk(b"IDAT", zlib.compress(bytes((3 * width + 1) * height), 9))


def jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(encode(Image.new("RGB", (16, 16)), "JPEG"))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def jpeg_of_scans(count: int) -> bytes:
    """A grey progressive JPEG with its last scan again and again."""
    data = encode(Image.new("L", (64, 64), 128), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * (count - data.count(b"\xff\xda")) + data[-2:]


def gif_claiming(width: int, height: int) -> bytes:
    data = bytearray(encode(Image.new("P", (16, 16)), "GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    place = data.index(b"\x2c") + 5
    data[place : place + 4] = struct.pack("<HH", width, height)
    return bytes(data)


def webp_claiming(width: int, height: int) -> bytes:
    extended = b"VP8X" + struct.pack("<I", 10) + b"\x10\0\0\0"
    extended += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBP" + extended + encode(Image.new("RGB", (16, 16)), "WEBP", lossless=True)[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def gif_of(frames: int) -> bytes:
    pictures = [Image.new("RGB", (4, 4), (number % 250, number % 7, 0)) for number in range(frames)]
    return encode(pictures[0], "GIF", save_all=True, append_images=pictures[1:])


def text_bomb(kind: bytes) -> bytes:
    """64 MB of text in 64 kB."""
    payload = b"Comment\0\0" + zlib.compress(bytes(64 * 2**20), 9)
    return png_of(header(8, 8), chunk(kind, payload), rows(8, 8))


def jpeg_after(header: bytes) -> bytes:
    """A whole JPEG with this before its own header."""
    return JPEG[:2] + header + JPEG[2:]


def segment(marker: int, data: bytes = b"") -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


def gif_after(blocks: bytes) -> bytes:
    """A whole GIF with these before its own blocks."""
    start = 13 + 3 * 2 ** ((GIF[10] & 7) + 1)
    return GIF[:start] + blocks + GIF[start:]


def webp_of(*chunks: bytes) -> bytes:
    body = b"WEBP" + WEBP[12:] + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def zipped(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.png", data)
    return buffer.getvalue()


JPEG: Final = encode(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG")
WEBP: Final = encode(Image.effect_noise((64, 64), 50).convert("RGB"), "WEBP")
GIF: Final = gif_of(3)
SVG: Final = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'

_SIZE: Final = 2**20
FRAGMENTED: Final = {
    "jpeg: exif in segments of one byte": jpeg_after(segment(0xE1, b"Exif\0\0a") * (_SIZE // 11)),
    "jpeg: exif in segments of a kilobyte": jpeg_after(segment(0xE1, b"Exif\0\0" + bytes(1000)) * 1100),
    "jpeg: much exif": jpeg_after(segment(0xE1, b"Exif\0\0" + bytes(9000)) * 110),
    "jpeg: empty application segments": jpeg_after(segment(0xE5) * (_SIZE // 4)),
    "jpeg: fill": jpeg_after(b"\xff" * _SIZE),
    "jpeg: bytes between the segments": jpeg_after(bytes(_SIZE)),
    "jpeg: what only some decoders pass over": jpeg_after((b"\xff\xfd\xff\xff" + b"\xff" * 65_533) * 16),
    "jpeg: an end before all that": jpeg_after(b"\xff\xd9" + b"\xff" * _SIZE),
    "jpeg: quantization tables": jpeg_after(segment(0xDB, (b"\0" + b"\1" * 64) * 1008) * 16),
    "png: empty chunks": png_of(header(8, 8), chunk(b"abCd") * (_SIZE // 12), rows(8, 8)),
    "png: small texts": png_of(header(8, 8), chunk(b"iTXt", b"a\0\0\0\0\0b") * (_SIZE // 19), rows(8, 8)),
    "gif: a comment in blocks of one byte": gif_after(b"\x21\xfe" + b"\1a" * (_SIZE // 2) + b"\0"),
    "gif: many comments": gif_after(b"\x21\xfe\1a\0" * (_SIZE // 5)),
    "webp: empty chunks": webp_of(b"abcd\0\0\0\0" * (_SIZE // 8)),
}

BAD, LARGE = (422, "invalid-image"), (413, "image-too-large")
FILES: Final[dict[str, tuple[bytes, tuple[int, str]]]] = {
    "nothing": (b"", BAD),
    "random bytes": (bytes(range(256)) * 8, BAD),
    "text": (b"hello", BAD),
    "svg": (SVG, BAD),
    "svg with an XML head": (b'<?xml version="1.0"?>' + SVG, BAD),
    "html before a png": (b"<html><script>alert(1)</script>" + PNG, BAD),
    "pdf around a jpeg": (b"%PDF-1.7\n1 0 obj stream\n" + JPEG + b"\nendstream", BAD),
    "zip with a png": (zipped(PNG), BAD),
    "script that begins like a gif": (b"GIF89a/*" + bytes(20) + b"*/=1;alert(1)", BAD),
    "png that goes on as a jpeg": (SIGNATURE + JPEG, BAD),
    "jpeg marker before a png": (b"\xff\xd8\xff\xe0" + PNG, BAD),
    "bmp": (encode(Image.new("RGB", (8, 8)), "BMP"), BAD),
    "tiff": (encode(Image.new("RGB", (8, 8)), "TIFF"), BAD),
    "ico": (encode(Image.new("RGB", (16, 16)), "ICO"), BAD),
    "ppm": (encode(Image.new("RGB", (8, 8)), "PPM"), BAD),
    "tga": (encode(Image.new("RGB", (8, 8)), "TGA"), BAD),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (r) file\n", BAD),
    "psd": (b"8BPS\0\1" + bytes(40), BAD),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40), BAD),
    "jpeg 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40), BAD),
    "png: signature alone": (SIGNATURE, BAD),
    "png: header alone": (SIGNATURE + header(8, 8), BAD),
    "png: no picture data": (png_of(header(8, 8)), BAD),
    "png: cut in the picture data": (PNG[: len(PNG) // 2], BAD),
    "png: without its end": (PNG[:-12], BAD),
    "png: too little picture data": (png_of(header(512, 512), rows(8, 8)), BAD),
    "png: broken compression": (png_of(header(8, 8), chunk(b"IDAT", b"nonsense" * 9)), BAD),
    "png: wrong checksum": (png_of(header(8, 8, crc=1), rows(8, 8)), BAD),
    "png: no width": (png_of(header(0, 8), rows(8, 8)), BAD),
    "png: chunk longer than the file": (SIGNATURE + header(8, 8) + b"\x7f\xff\xff\xffIDATx", BAD),
    "png: 100 million black pixels in 300 kB": (png_of(header(10_000, 10_000), rows(10_000, 10_000)), LARGE),
    "png: claims 10 billion pixels": (png_of(header(100_000, 100_000), rows(8, 8)), LARGE),
    "png: claims all there can be": (png_of(header(2**31 - 1, 2**31 - 1), rows(8, 8)), LARGE),
    "png: one line": (png_of(header(60_000, 1), rows(60_000, 1)), BAD),
    "png: one column": (png_of(header(1, 60_000), rows(1, 60_000)), BAD),
    "png: 4 billion frames": (
        png_of(header(8, 8), chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)), rows(8, 8)),
        LARGE,
    ),
    "png: text bomb": (text_bomb(b"zTXt"), BAD),
    "jpeg: cut in half": (JPEG[: len(JPEG) // 2], BAD),
    "jpeg: without its end": (JPEG[:-2], BAD),
    "jpeg: start alone": (b"\xff\xd8\xff", BAD),
    "jpeg: claims 4 billion pixels": (jpeg_claiming(65_535, 65_535), LARGE),
    "jpeg: no width": (jpeg_claiming(0, 16), BAD),
    "jpeg: no picture": (JPEG[: JPEG.index(b"\xff\xda")] + b"\xff\xd9", BAD),
    "gif: cut": (GIF[: len(GIF) // 2], BAD),
    "gif: without its end": (GIF[:-1], BAD),
    "gif: claims 4 billion pixels": (gif_claiming(65_535, 65_535), LARGE),
    "gif: 1500 frames": (gif_of(1500), LARGE),
    "jpeg: 101 scans": (jpeg_of_scans(101), LARGE),
    "jpeg: 50,000 scans": (jpeg_of_scans(50_000), LARGE),
    "webp: cut": (WEBP[: len(WEBP) // 2], BAD),
    "webp: says it is longer": (WEBP[:4] + struct.pack("<I", len(WEBP) * 2) + WEBP[8:], BAD),
    "webp: claims 268 million pixels": (webp_claiming(16_384, 16_384), LARGE),
    "webp: claims all there can be": (webp_claiming(2**24, 2**24), LARGE),
    **{name: (data, LARGE) for name, data in FRAGMENTED.items()},
    "more bytes than are accepted": (PNG + bytes(20 * 2**20), LARGE),
}

INVALID = (422, "invalid-request")
INPUTS: Final[dict[str, tuple[Any, tuple[int, str]]]] = {
    "not base64": ("?" * 40, BAD),
    "base64 with line breaks": (base64.encodebytes(PNG).decode(), BAD),
    "data URL without base64": ("data:image/png," + PNG.hex(), BAD),
    "data URL of html": ("data:text/html;base64," + base64.b64encode(PNG).decode(), BAD),
    "data URL in a data URL": ("data:image/png;base64,data:image/png;base64,AAAA", BAD),
    "file URL as text": ("file:///etc/passwd", BAD),
    "path as text": ("/etc/passwd", BAD),
    "link as text": ("http://169.254.169.254/latest/meta-data/", BAD),
    "link while links are off": ({"url": "https://example.com/a.png"}, (422, "image-url-refused")),
    "file link": ({"url": "file:///etc/passwd"}, (422, "image-url-refused")),
    "unknown reference": ({"sha256": "0" * 64}, (422, "image-unknown")),
    "reference that climbs": ({"sha256": "../../../../etc/passwd"}, INVALID),
    "reference with a line break": ({"sha256": "0" * 64 + "\n"}, INVALID),
    "two kinds at once": ({"sha256": "0" * 64, "url": "https://example.com"}, INVALID),
    "no kind": ({}, INVALID),
    "a path key": ({"path": "/etc/passwd"}, INVALID),
    "a number": (7, INVALID),
    "null": (None, INVALID),
    "a list": ([base64.b64encode(PNG).decode()], INVALID),
}
