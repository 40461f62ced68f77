"""Files to pixels, as training and serving both read them."""

import io
import re
import time
import zlib
from random import Random
from typing import Any

import pytest
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import MARKER

from beholder.errors import ImageTooLarge
from beholder.images import ImageLimits, load_image, raise_pillows_limit
from beholder.images.structure import _JPEG_MARKER, is_whole
from tests.pictures import encode
from tests.service.hostile_images import (
    FRAGMENTED,
    chunk,
    gif_after,
    header,
    jpeg_after,
    jpeg_of_scans,
    png_of,
    segment,
    webp_of,
)

RED, WHITE, HALF_RED = (255, 0, 0), (255, 255, 255), (255, 127, 127)


def pixel(data: bytes, place: tuple[int, int] = (0, 0)) -> Any:
    image = load_image(data).pixels
    assert image.mode == "RGB"
    return image.getpixel(place)


def palette(transparent: bool) -> bytes:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 255, 0, 0] + [0] * 762)
    return encode(image, "PNG", **({"transparency": 1} if transparent else {}))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encode(Image.new("RGB", (4, 4), RED), "PNG"), RED),
        (encode(Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "PNG"), WHITE),
        (encode(Image.new("RGBA", (4, 4), (255, 0, 0, 128)), "PNG"), HALF_RED),
        (encode(Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "WEBP", lossless=True, exact=True), WHITE),
        (encode(Image.new("LA", (4, 4), (0, 0)), "PNG"), WHITE),
        (encode(Image.new("L", (4, 4), 77), "PNG"), (77, 77, 77)),
        (encode(Image.new("1", (4, 4), 1), "PNG"), WHITE),
        (encode(Image.new("I;16", (4, 4), 77 * 256 + 5), "PNG"), (77, 77, 77)),
        (encode(Image.new("I;16", (4, 4), 65_535), "PNG"), WHITE),
        (palette(False), RED),
        (palette(True), WHITE),
        (encode(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "JPEG", quality=100), RED),
    ],
    ids=[
        "rgb",
        "clear",
        "half",
        "webp",
        "grey+alpha",
        "grey",
        "1 bit",
        "16 bit",
        "16 bit max",
        "palette",
        "key",
        "cmyk",
    ],
)
def test_every_kind_of_pixel_becomes_rgb(data: bytes, expected: tuple[int, int, int]) -> None:
    assert pixel(data) == pytest.approx(expected, abs=2)


@pytest.mark.parametrize("key", [1000, 3, 0, 65_535])
def test_of_16_bits_what_equals_the_key_is_transparent(key: int) -> None:
    """3 is what 1000 is scaled to; its neighbours are scaled alike."""
    values = [1000, 1001, 999, 3, 0, 255, 65_535, 65_534]
    image = Image.new("I;16", (len(values), 1))
    for place, value in enumerate(values):
        image.putpixel((place, 0), value)
    pixels = load_image(encode(image, "PNG", transparency=key)).pixels
    greys = [255 if value == key else value // 256 for value in values]
    assert [pixels.getpixel((place, 0)) for place in range(len(values))] == [(grey,) * 3 for grey in greys]


def test_a_turned_photograph_is_turned_back() -> None:
    image = Image.new("RGB", (40, 20), RED)
    image.paste((0, 0, 255), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter, clockwise
    data = encode(image, "PNG", exif=exif)
    assert load_image(data).pixels.size == (20, 40)
    assert (pixel(data), pixel(data, (0, 39))) == ((0, 0, 255), RED)


def whole_to_rgb(data: bytes) -> Image.Image:
    """What `load_image` says it does, of all pixels at once."""
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
    if upright.mode == "I;16":
        key = upright.info.pop("transparency", None)
        alpha = Image.new("L", upright.size)
        alpha.putdata([255 * (value != key) for value in upright.get_flattened_data()])
        upright = upright.point(lambda value: value / 256).convert("L")
        upright.putalpha(alpha)
    if upright.has_transparency_data:
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright.convert("RGBA"))
    return upright.convert("RGB")


def pictures() -> dict[str, bytes]:
    """Of every kind of pixel, turned where the format can say so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    colours = Image.merge("RGB", [Image.effect_noise((60, 40), 90) for _ in range(3)])
    alpha = Image.effect_noise((60, 40), 90)
    clear = colours.copy()
    clear.putalpha(alpha)
    grey = Image.merge("LA", (colours.getchannel(0), alpha))
    deep = Image.new("I;16", (60, 40))
    deep.putdata([value * 999 % 65_536 for value in range(2400)])
    kinds = {"RGB": colours, "RGBA": clear, "LA": grey, "L": alpha, "1": alpha.convert("1"), "I;16": deep}
    files = {mode: encode(image, "PNG", exif=exif) for mode, image in kinds.items()}
    palette = colours.quantize(64)
    files["palette"] = encode(palette, "PNG", exif=exif)
    files["palette with alpha"] = encode(palette, "PNG", transparency=bytes(range(0, 256, 4)))
    files["key"] = encode(colours, "PNG", transparency=colours.getpixel((3, 3)))
    files["deep key"] = encode(deep, "PNG", transparency=999, exif=exif)
    files["JPEG"] = encode(colours, "JPEG", exif=exif)
    files["CMYK"] = encode(colours.convert("CMYK"), "JPEG", exif=exif)
    files["WEBP"] = encode(clear, "WEBP", exif=exif)
    files["GIF"] = encode(palette, "GIF", transparency=5)
    return files


PICTURES = pictures()


@pytest.mark.parametrize("name", PICTURES)
def test_pixels_are_converted_in_stripes_as_they_are_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beholder.images.loading._STRIPE_PIXELS", 60 * 7)
    pixels, expected = load_image(PICTURES[name]).pixels, whole_to_rgb(PICTURES[name])
    assert (pixels.size, pixels.mode) == (expected.size, "RGB")
    assert pixels.tobytes() == expected.tobytes()


def test_no_conversion_stops_other_threads_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow converts and lays one image over another without letting any other thread run."""
    converted: list[int] = []
    convert = Image.Image.convert

    def spy(self: Image.Image, *arguments: Any, **named: Any) -> Image.Image:
        converted.append(self.width * self.height)
        return convert(self, *arguments, **named)

    monkeypatch.setattr(Image.Image, "convert", spy)
    for mode in ("P", "RGBA", "CMYK"):
        picture = Image.new(mode, (3000, 1000))
        options = {"transparency": b"\1"} if mode == "P" else {}
        converted.clear()
        load_image(encode(picture, "JPEG" if mode == "CMYK" else "PNG", **options))
        assert sum(converted) >= 3_000_000
        assert max(converted) <= 2**20


NOISE = Image.effect_noise((96, 64), 60).convert("RGB")
EXIF = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + encode(NOISE.resize((24, 16)), "JPEG")
JPEGS = {
    "baseline": encode(NOISE, "JPEG"),
    "progressive": encode(NOISE, "JPEG", progressive=True),
    "restart markers": encode(NOISE, "JPEG", restart_marker_blocks=2),
    "CMYK": encode(NOISE.convert("CMYK"), "JPEG"),
    "a thumbnail inside": encode(NOISE, "JPEG", exif=EXIF),
    "markers in a comment": encode(NOISE, "JPEG", comment=b"\xff\xd9\xff\xda"),
}


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_is_whole_with_its_own_end_whatever_follows(name: str) -> None:
    data = JPEGS[name]
    film = Random(0).randbytes(200_000) + b"\xff\xda\xff"  # what a phone's motion photo has behind the picture
    assert load_image(data + film).pixels.tobytes() == load_image(data).pixels.tobytes()
    assert not any(is_whole(data[:length]) for length in range(len(data)))


def test_a_jpeg_may_have_many_scans() -> None:
    assert load_image(jpeg_of_scans(100)).pixels.getpixel((0, 0)) == (128, 128, 128)


def test_of_several_pictures_in_a_jpeg_the_first_counts() -> None:
    data = encode(NOISE, "MPO", save_all=True, append_images=[NOISE.rotate(180)])
    assert load_image(data).pixels.tobytes() == load_image(encode(NOISE, "JPEG")).pixels.tobytes()


@pytest.mark.parametrize(
    "filling", [b"\xff", b"\xff\0", b"\xff\xe1\0\2", b"\xff\xe1\0\0", b"\xff\xd8", b"\xff\xda\0\2\0"]
)
def test_whether_a_file_is_whole_is_known_soon(filling: bytes) -> None:
    started = time.monotonic()
    assert not is_whole(b"\xff\xd8" + filling * (4_000_000 // len(filling)))
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("name", FRAGMENTED)
def test_a_file_of_far_too_many_parts_is_refused_before_pillow_reads_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("Pillow reads it"))
    with pytest.raises(ImageTooLarge, match="far more parts"):
        load_image(FRAGMENTED[name])


def rows_in_chunks(side: int, size: int) -> bytes:
    """A PNG with its picture data, not compressed, in chunks of `size` bytes."""
    data = zlib.compress(bytes((3 * side + 1) * side), 0)
    return png_of(header(side, side), *(chunk(b"IDAT", data[at : at + size]) for at in range(0, len(data), size)))


METADATA = b"http://ns.adobe.com/xmp/extension/\0" + bytes(65_000)
USUAL = {
    "a camera's JPEG": jpeg_after(
        segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0") + segment(0xE1, EXIF) + segment(0xEC) * 40
    ),
    "the largest colour profile": jpeg_after(
        b"".join(segment(0xE2, b"ICC_PROFILE\0" + bytes([part, 255]) + bytes(9)) for part in range(1, 256))
    ),
    "20 MB of metadata": jpeg_after(segment(0xE1, METADATA) * 300),
    "a PNG in chunks of 2 kB": rows_in_chunks(2500, 2048),
    "a GIF with metadata in short blocks": gif_after(b"\x21\xff\x0bXMP DataXMP" + (b"\x20" + b" " * 32) * 9000 + b"\0"),
    "a GIF in blocks of 254 bytes": gif_after(b"\x21\xfe" + (b"\xfe" + bytes(254)) * 80_000 + b"\0"),
    "a WebP with metadata": webp_of(*(b"EXIF\4\0\0\0abcd",) * 9),
}


@pytest.mark.parametrize("name", USUAL)
def test_a_file_may_have_as_many_parts_as_encoders_write(name: str) -> None:
    assert load_image(USUAL[name]).pixels.size


def test_a_segment_is_what_pillow_takes_for_one() -> None:
    """Where the two disagreed, a segment could hide any number of others."""
    ours = {0xFF00 + marker for marker in range(256) if re.fullmatch(_JPEG_MARKER, bytes((0xFF, marker)))}
    assert ours - {0xFFD9} == {marker for marker, (_, _, handler) in MARKER.items() if handler}


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, (0, 255, 0), (0, 0, 255))]
    for form in ("GIF", "WEBP", "PNG"):
        data = encode(
            frames[0], form, save_all=True, append_images=frames[1:], **({"lossless": True} if form == "WEBP" else {})
        )
        with Image.open(io.BytesIO(data)) as opened:
            assert getattr(opened, "n_frames", 1) == 3
        assert pixel(data) == RED
        with pytest.raises(ImageTooLarge, match="3 frames"):
            load_image(data, ImageLimits(max_frames=2))


def test_pillows_own_limit_is_named_and_can_be_raised_to_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    data, limits = encode(Image.new("RGB", (100, 30)), "WEBP"), ImageLimits(max_pixels=3_000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)  # Pillow refuses above twice that
    with pytest.raises(ImageTooLarge, match=r"PIL\.Image\.MAX_IMAGE_PIXELS.* 2000 pixels"):
        load_image(data, limits)
    with pytest.raises(ImageTooLarge, match=r"more than the 500 pixels that are accepted$"):
        load_image(data, ImageLimits(max_pixels=500))
    raise_pillows_limit(limits)
    assert load_image(data, limits).pixels.size == (100, 30)
    raise_pillows_limit(ImageLimits(max_pixels=10))
    assert Image.MAX_IMAGE_PIXELS == 3_000
    with pytest.raises(ImageTooLarge, match="at most 2999 pixels"):
        load_image(data, ImageLimits(max_pixels=2_999))


def test_pixels_are_announced_before_they_are_decoded() -> None:
    announced: list[int] = []
    load_image(encode(Image.new("RGB", (7, 3)), "PNG"), admit=announced.append)
    assert announced == [21]
