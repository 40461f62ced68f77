"""Decoded images, which requests share: an image that comes back is not decoded again while there is room for it.

All pixels, of images that requests hold and of those kept for the next, stay within one bound, so that hostile images
cannot fill memory: a PNG of 150 kB may hold 200 MB of pixels. Called from threads.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from beholder.errors import ImageTooLarge, Overloaded
from beholder.images import LoadedImage

Admit = Callable[[int], None]
"""Called with an image's number of pixels before they are decoded; raises when there is no room for them."""
_TURNS: Final = 64
_LEAST_PIXELS: Final = 1024
"""What an image counts at least: the smallest takes a kilobyte of Python's objects."""


class _RequestGone(Exception):
    """Nobody waits for the image any more: a thread cannot be cancelled, so it ends by this."""


@dataclass
class Held:
    """The images of one request, by sha256, and their pixels. `over`: it has ended and holds nothing any more."""

    images: dict[str, LoadedImage] = field(default_factory=dict)
    pixels: int = 0
    over: bool = False


@dataclass
class _Entry:
    image: LoadedImage
    pixels: int
    holders: int


class DecodedImages:
    """By the sha256 of their bytes. Those that no request holds give way, the least recently used first."""

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._pixels = 0
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._lock = threading.Lock()
        self._turns = [threading.Lock() for _ in range(_TURNS)]

    @contextmanager
    def request(self) -> Iterator[Held]:
        """What one request holds, until the end of the block."""
        held = Held()
        try:
            yield held
        finally:
            with self._lock:
                held.over = True
                for sha256 in held.images:
                    self._entries[sha256].holders -= 1

    def get(self, held: Held, sha256: str, decode: Callable[[Admit], LoadedImage]) -> tuple[LoadedImage, bool]:
        """The image, and whether it was there; otherwise `decode` makes it, in one thread for all that wait for it.

        Raises ImageTooLarge when the request's images alone have too many pixels, Overloaded when those of all requests
        have, and what `decode` raises.
        """
        with self._turns[int(sha256[:8], 16) % _TURNS]:
            known = self._hold(held, sha256)
            if known is not None:
                return known, True
            taken = 0

            def admit(count: int) -> None:
                nonlocal taken
                count = max(count, _LEAST_PIXELS)
                self._take(held, count)
                taken += count

            try:
                image = decode(admit)
            except BaseException:
                self._give_back(held, taken)
                raise
            with self._lock:
                # A request that ended meanwhile would never let go of it.
                self._entries[sha256] = _Entry(image, taken, holders=0 if held.over else 1)
                held.images[sha256] = image
            return image, False

    def known(self, held: Held, sha256: str) -> LoadedImage | None:
        """The image where it is decoded, without ever waiting. Raises ImageTooLarge."""
        return self._hold(held, sha256)

    def _hold(self, held: Held, sha256: str) -> LoadedImage | None:
        with self._lock:
            entry = self._entries.get(sha256)
            if entry is None:
                return None
            if sha256 not in held.images and not held.over:
                self._check_alone(held, entry.pixels)
                held.images[sha256] = entry.image
                held.pixels += entry.pixels
                entry.holders += 1
            self._entries.move_to_end(sha256)
            return entry.image

    def _take(self, held: Held, count: int) -> None:
        with self._lock:
            if held.over:
                raise _RequestGone
            self._check_alone(held, count)
            self._make_room(count)
            self._pixels += count
            held.pixels += count

    def _give_back(self, held: Held, count: int) -> None:
        with self._lock:
            self._pixels -= count
            held.pixels -= count

    def _check_alone(self, held: Held, count: int) -> None:
        if held.pixels + count > self._max_pixels:
            raise ImageTooLarge(f"the request's images have more than {self._max_pixels} pixels: split it")

    def _make_room(self, count: int) -> None:
        excess, idle = self._pixels + count - self._max_pixels, []
        for sha256, entry in self._entries.items():
            if excess <= 0:
                break
            if not entry.holders:
                idle.append(sha256)
                excess -= entry.pixels
        for sha256 in idle:
            self._pixels -= self._entries.pop(sha256).pixels
        if excess > 0:
            raise Overloaded(
                f"the images in flight have {self._pixels} pixels, at most {self._max_pixels} may be: retry"
            )
