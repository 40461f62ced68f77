"""Where a request's images come from, and how each becomes a verified picture.

An image is sent with the request (base64, a data URL, a part of a form), was sent before (a sha256), or is fetched (a
URL).
"""

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from beholder.errors import BeholderError, ImageError, ImageTooLarge, ImageUnknown, ImageUrlRefused, Overloaded
from beholder.images import ImageLimits, LoadedImage, decode_base64, load_image
from beholder.images.decoded import Admit, DecodedImages, Held
from beholder.images.store import ImageStore
from beholder.images.urls import UrlFetcher
from beholder.metrics import Metrics

QUICK_CHARACTERS: Final = 2**17
"""A request's base64 up to this length is hashed on the event loop, in a third of a millisecond."""


@dataclass(frozen=True, slots=True)
class Inline:
    """A data URL or base64."""

    text: str


@dataclass(frozen=True, slots=True)
class Upload:
    """A file's bytes."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Stored:
    """An image that was sent before."""

    sha256: str


@dataclass(frozen=True, slots=True)
class Link:
    """An image that is to be fetched."""

    url: str


ImageSource = Inline | Upload | Stored | Link


class FetchedBytes:
    """Bytes that links led to, of all requests that hold them, at most `limit`. Called from any thread."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Raises Overloaded."""
        with self._lock:
            if self._held + count > self._limit:
                raise Overloaded(f"the links in flight lead to more than {self._limit} bytes: retry")
            self._held += count

    def give_back(self, count: int) -> None:
        with self._lock:
            self._held -= count


@dataclass(frozen=True)
class ImageLoader:
    """What loading needs, for one process. `fetcher` is None where URLs are off; `max_fetched` bytes a request."""

    limits: ImageLimits
    store: ImageStore
    fetcher: UrlFetcher | None
    max_fetched: int
    decoded: DecodedImages
    metrics: Metrics
    fetched: FetchedBytes

    @contextmanager
    def request(self) -> Iterator["RequestImages"]:
        """The images of one request, which stay decoded (and what links led to counted) until the end of the block."""
        with self.decoded.request() as held:
            images = RequestImages(self, held)
            try:
                yield images
            finally:
                self.fetched.give_back(images.fetched_bytes)


@dataclass
class RequestImages:
    """Loads each image of a request once. `fetch` on the event loop first, then `load` in a thread."""

    loader: ImageLoader
    held: Held
    fetched_bytes: int = 0
    _fetched: dict[str, bytes] = field(default_factory=dict)
    _loaded: dict[ImageSource, LoadedImage] = field(default_factory=dict)
    _quick_left: int = QUICK_CHARACTERS

    async def fetch(self, source: ImageSource) -> None:
        """Get the bytes of a link; nothing for other sources.

        Raises ImageUrlRefused, ImageUrlFailed, ImageTooLarge, Overloaded.
        """
        if not isinstance(source, Link) or source.url in self._fetched:
            return
        if self.loader.fetcher is None:
            raise ImageUrlRefused("image URLs are switched off here: send the image itself, or PUT it and its sha256")

        def admit(count: int) -> None:
            if self.fetched_bytes + count > self.loader.max_fetched:
                raise ImageTooLarge(f"the request's links lead to more than {self.loader.max_fetched} bytes: split it")
            self.loader.fetched.take(count)
            self.fetched_bytes += count

        with self._counting():
            self._fetched[source.url] = await self.loader.fetcher.fetch(source.url, admit)

    def load_known(self, source: ImageSource) -> bool:
        """Load what is decoded already, on the event loop: less work than a thread is. False where it is not."""
        if source in self._loaded:
            return True
        sha256 = self._quick_sha256(source)
        image = None if sha256 is None else self.loader.decoded.known(self.held, sha256)
        if image is None:
            return False
        self._loaded[source] = image
        self.loader.metrics.images.labels("known").inc()
        return True

    def _quick_sha256(self, source: ImageSource) -> str | None:
        match source:
            case Stored(sha256) if self.loader.store.in_memory and self.loader.store.holds(sha256):
                return sha256
            case Inline(text) if len(text) <= self._quick_left:
                self._quick_left -= len(text)
                try:
                    return hashlib.sha256(decode_base64(text, self.loader.limits)).hexdigest()
                except ImageError:
                    return None  # `load` says what is wrong, and where
        return None

    def load(self, source: ImageSource) -> LoadedImage:
        """The picture. Raises ImageError, Overloaded."""
        if source not in self._loaded:
            with self._counting():
                self._loaded[source], known = self._load(source)
            self.loader.metrics.images.labels("known" if known else "ok").inc()
        return self._loaded[source]

    def _load(self, source: ImageSource) -> tuple[LoadedImage, bool]:
        match source:
            case Inline(text):
                return self._decoded(decode_base64(text, self.loader.limits))
            case Upload(data):
                return self._decoded(data)
            case Link(url):
                return self._decoded(self._fetched[url])
            case Stored(sha256):
                return self._stored(sha256)

    def _decoded(self, data: bytes) -> tuple[LoadedImage, bool]:
        return self.loader.decoded.get(self.held, hashlib.sha256(data).hexdigest(), self._decoder(lambda: data))

    def _stored(self, sha256: str) -> tuple[LoadedImage, bool]:
        if not self.loader.store.holds(sha256):
            raise _unknown(sha256)
        return self.loader.decoded.get(self.held, sha256, self._decoder(lambda: self._read(sha256)))

    def _read(self, sha256: str) -> bytes:
        data = self.loader.store.get(sha256)
        if data is None:
            raise _unknown(sha256)
        return data

    def _decoder(self, read: Callable[[], bytes]) -> Callable[[Admit], LoadedImage]:
        return lambda admit: load_image(read(), self.loader.limits, admit)

    @contextmanager
    def _counting(self) -> Iterator[None]:
        try:
            yield
        except BeholderError as error:
            self.loader.metrics.images.labels(error.code).inc()
            raise


def _unknown(sha256: str) -> ImageUnknown:
    return ImageUnknown(f"no image with sha256 {sha256} is stored: send it with PUT /images/{sha256}", sha256)
