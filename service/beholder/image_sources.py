"""Where a request's images come from, and how each becomes a verified picture.

An image is sent with the request (base64, a data URL, a part of a form), was sent before (a sha256), or is fetched (a
URL). Decoded pixels are counted while the request that needs them lasts, so that hostile images cannot fill memory:
a PNG of 150 kB may hold 200 MB of pixels.
"""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from beholder.errors import BeholderError, ImageTooLarge, ImageUnknown, ImageUrlRefused, Overloaded
from beholder.image_store import ImageStore
from beholder.image_urls import UrlFetcher
from beholder.images import ImageLimits, LoadedImage, decode_base64, load_image
from beholder.metrics import Metrics


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


@dataclass(slots=True)
class Pixels:
    """What a request's images take, at most; counted by PixelBudget."""

    held: int = 0


class PixelBudget:
    """How many pixels all requests together may hold decoded. Called from threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._lock = threading.Lock()

    @contextmanager
    def request(self) -> Iterator[Pixels]:
        """The account of one request; its pixels are given back at the end."""
        pixels = Pixels()
        try:
            yield pixels
        finally:
            with self._lock:
                self._held -= pixels.held

    def take(self, pixels: Pixels, count: int) -> None:
        """Raises ImageTooLarge when the request alone is too large, Overloaded when all together are."""
        with self._lock:
            if pixels.held + count > self._limit:
                raise ImageTooLarge(f"the request's images have more than {self._limit} pixels: split it")
            if self._held + count > self._limit:
                raise Overloaded(f"the images in flight have {self._held} pixels, at most {self._limit} may be: retry")
            self._held += count
            pixels.held += count


@dataclass(frozen=True)
class ImageLoader:
    """What loading needs, for one process. `fetcher` is None where URLs are off; `max_fetched` bytes a request."""

    limits: ImageLimits
    store: ImageStore
    fetcher: UrlFetcher | None
    max_fetched: int
    budget: PixelBudget
    metrics: Metrics

    @contextmanager
    def request(self) -> Iterator["RequestImages"]:
        """The images of one request, whose pixels count until the end of the block."""
        with self.budget.request() as pixels:
            yield RequestImages(self, pixels)


@dataclass
class RequestImages:
    """Loads each image of a request once. `fetch` on the event loop first, then `load` in a thread."""

    loader: ImageLoader
    pixels: Pixels
    _fetched: dict[str, bytes] = field(default_factory=dict)
    _loaded: dict[ImageSource, LoadedImage] = field(default_factory=dict)

    async def fetch(self, source: ImageSource) -> None:
        """Get the bytes of a link; nothing for other sources. Raises ImageUrlRefused, ImageUrlFailed, ImageTooLarge."""
        if not isinstance(source, Link) or source.url in self._fetched:
            return
        if self.loader.fetcher is None:
            raise ImageUrlRefused("image URLs are switched off here: send the image itself, or PUT it and its sha256")
        with self._counting():
            data = await self.loader.fetcher.fetch(source.url)
            if sum(map(len, self._fetched.values())) + len(data) > self.loader.max_fetched:
                raise ImageTooLarge(f"the request's links lead to more than {self.loader.max_fetched} bytes: split it")
            self._fetched[source.url] = data

    def load(self, source: ImageSource) -> LoadedImage:
        """The picture. Raises ImageError, Overloaded."""
        if source not in self._loaded:
            with self._counting():
                self._loaded[source] = load_image(self._bytes(source), self.loader.limits, self._admit)
            self.loader.metrics.images.labels("ok").inc()
        return self._loaded[source]

    def _bytes(self, source: ImageSource) -> bytes:
        match source:
            case Inline(text):
                return decode_base64(text, self.loader.limits)
            case Upload(data):
                return data
            case Link(url):
                return self._fetched[url]
            case Stored(sha256):
                return self._stored(sha256)

    def _stored(self, sha256: str) -> bytes:
        data = self.loader.store.get(sha256)
        # A shared folder is written by others too; wrong bytes would be scored under this hash.
        if data is None or hashlib.sha256(data).hexdigest() != sha256:
            raise ImageUnknown(f"no image with sha256 {sha256} is stored: send it with PUT /images/{sha256}", sha256)
        return data

    def _admit(self, count: int) -> None:
        self.loader.budget.take(self.pixels, count)

    @contextmanager
    def _counting(self) -> Iterator[None]:
        try:
            yield
        except BeholderError as error:
            self.loader.metrics.images.labels(error.code).inc()
            raise
