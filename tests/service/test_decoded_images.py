"""Decoded images: each decoded once while there is room, those in use never dropped, the bound never passed."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from beholder.errors import ImageError, ImageTooLarge, Overloaded
from beholder.images import LoadedImage
from beholder.images.decoded import Admit, DecodedImages

NAMES = [f"{number:064x}" for number in range(8)]
SIDE = 40
ONE = SIDE**2  # pixels


class Decoder:
    """Decodes pictures of SIDE x SIDE pixels and counts them."""

    def __init__(self) -> None:
        self.decoded: list[str] = []

    def __call__(self, sha256: str, side: int = SIDE) -> "DecodeOne":
        return DecodeOne(self, sha256, side)


class DecodeOne:
    def __init__(self, decoder: Decoder, sha256: str, side: int) -> None:
        self._decoder, self._sha256, self._side = decoder, sha256, side

    def __call__(self, admit: Admit) -> LoadedImage:
        admit(self._side**2)
        self._decoder.decoded.append(self._sha256)
        return LoadedImage(Image.new("RGB", (self._side, self._side)), self._sha256)


def test_an_image_that_comes_back_is_not_decoded_again() -> None:
    images, decoder = DecodedImages(10 * ONE), Decoder()
    for known in (False, True):
        with images.request() as held:
            image, was_known = images.get(held, NAMES[0], decoder(NAMES[0]))
            assert (image.sha256, was_known) == (NAMES[0], known)
    assert decoder.decoded == [NAMES[0]]


def test_the_least_recently_used_gives_way() -> None:
    images, decoder = DecodedImages(3 * ONE), Decoder()
    for name in (*NAMES[:3], NAMES[0], NAMES[3]):
        with images.request() as held:
            images.get(held, name, decoder(name))
    with images.request() as held:
        assert images.get(held, NAMES[0], decoder(NAMES[0]))[1]
        assert not images.get(held, NAMES[1], decoder(NAMES[1]))[1]


def test_what_a_request_holds_is_never_dropped() -> None:
    images, decoder = DecodedImages(3 * ONE), Decoder()
    with images.request() as long:
        images.get(long, NAMES[0], decoder(NAMES[0]))
        for name in NAMES[1:]:
            with images.request() as short:
                images.get(short, name, decoder(name))
        assert images.get(long, NAMES[0], decoder(NAMES[0]))[1]
    assert decoder.decoded == NAMES


def test_all_requests_together_are_bounded() -> None:
    images, decoder = DecodedImages(3 * ONE), Decoder()
    with images.request() as first, images.request() as second:
        for name in NAMES[:2]:
            images.get(first, name, decoder(name))
        images.get(second, NAMES[2], decoder(NAMES[2]))
        with pytest.raises(Overloaded, match=f"at most {3 * ONE}"):
            images.get(second, NAMES[3], decoder(NAMES[3]))
    with images.request() as third:  # and everything was given back
        for name in NAMES[3:6]:
            images.get(third, name, decoder(name))


def test_a_request_that_is_too_large_alone_is_told_so() -> None:
    images, decoder = DecodedImages(3 * ONE), Decoder()
    with images.request() as held:
        for name in NAMES[:3]:
            images.get(held, name, decoder(name))
        with pytest.raises(ImageTooLarge, match="split it"):
            images.get(held, NAMES[3], decoder(NAMES[3]))
    with images.request() as held, pytest.raises(ImageTooLarge):
        images.get(held, NAMES[4], decoder(NAMES[4], side=2 * SIDE))


def test_known_images_count_for_the_request_too() -> None:
    images, decoder = DecodedImages(3 * ONE), Decoder()
    with images.request() as other:
        images.get(other, NAMES[0], decoder(NAMES[0]))
    with images.request() as held:
        for name in NAMES[:3]:
            images.get(held, name, decoder(name))
        with pytest.raises(ImageTooLarge):
            images.get(held, NAMES[3], decoder(NAMES[3]))


def test_a_broken_image_takes_nothing() -> None:
    images, decoder = DecodedImages(ONE), Decoder()

    def broken(admit: Admit) -> LoadedImage:
        admit(ONE)
        raise ImageError("broken")

    with images.request() as held:
        for _ in range(3):
            with pytest.raises(ImageError, match="broken"):
                images.get(held, NAMES[0], broken)
        images.get(held, NAMES[1], decoder(NAMES[1]))


def test_what_is_decoded_for_a_request_that_ended_is_held_by_nobody() -> None:
    """A thread cannot be cancelled: it goes on decoding when its client has gone."""
    images, decoder = DecodedImages(ONE), Decoder()
    began, ended = threading.Event(), threading.Event()

    def slow(admit: Admit) -> LoadedImage:
        admit(ONE)
        began.set()
        ended.wait()
        return decoder(NAMES[0])(lambda _: None)

    with ThreadPoolExecutor(1) as pool:
        with images.request() as held:
            decoding = pool.submit(images.get, held, NAMES[0], slow)
            began.wait()
        ended.set()
        decoding.result()
        assert images.known(held, NAMES[0]), "it is there for the next"
        assert pool.submit(images.get, held, NAMES[1], decoder(NAMES[1])).exception(), "but no other is begun"
    with images.request() as next_held:
        images.get(next_held, NAMES[2], decoder(NAMES[2]))


def test_the_smallest_pictures_are_bounded_in_number() -> None:
    images, decoder = DecodedImages(3 * ONE), Decoder()
    for name in NAMES:
        with images.request() as held:
            images.get(held, name, decoder(name, side=1))
    with images.request() as held:
        assert sum(images.known(held, name) is not None for name in NAMES) == 3 * ONE // 1024


def test_one_thread_decodes_for_all_that_wait() -> None:
    images, decoder = DecodedImages(10 * ONE), Decoder()
    ready = threading.Barrier(4)

    def use(_: int) -> bool:
        with images.request() as held:
            ready.wait()
            return images.get(held, NAMES[0], decoder(NAMES[0]))[1]

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(use, range(4))) == [False, True, True, True]
    assert decoder.decoded == [NAMES[0]]
