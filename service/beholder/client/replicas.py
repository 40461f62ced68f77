"""Which of several base URLs a request goes to, which of them are down, and which images each has.

Rendezvous hashing: a URL's weight for a request is the hash of both, and the heaviest URL that answers is asked. So all
responses to one prompt and its images meet the same caches, and when a replica goes, only its own requests move.
"""

import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

from beholder.client.base_urls import parse_base_url
from beholder.errors import ConfigurationError

CONNECT_S: Final = 10.0
"""How long a replica may take to accept a connection."""
DOWN_S: Final = 5.0
"""How long a replica that did not answer is passed over while others do."""
STORE_REST_S: Final = 30.0
"""How long, at least, no image is sent ahead to a replica that could not store one."""
MAX_KNOWN_IMAGES: Final = 100_000
EXPIRY_MARGIN_S: Final = 5.0
_log = logging.getLogger(__name__)


class Replica:
    """One base URL, as `name` without a key that stands in it: when it is down, the images that it is known to have,
    and when it has no room for more."""

    def __init__(self, base_url: str) -> None:
        base = parse_base_url(base_url)
        self.name = str(base)
        self.headers = base.headers
        self._down_until = 0.0
        self._answers = True
        self._images: OrderedDict[str, float] = OrderedDict()
        self._store_rests_until = 0.0

    @property
    def down(self) -> bool:
        return time.monotonic() < self._down_until

    def mark_down(self, why: object) -> None:
        """A line of the log says so once: calls wait for it until their deadline."""
        self._down_until = time.monotonic() + DOWN_S
        if self._answers:
            _log.warning("%s is down: %s", self.name, why)
        self._answers = False

    def mark_asked(self) -> None:
        """One call finds out whether a replica that did not answer does again; the others pass it over meanwhile."""
        if not self._answers:
            self._down_until = time.monotonic() + CONNECT_S + DOWN_S

    def mark_up(self) -> None:
        self._down_until = 0.0
        if not self._answers:
            _log.warning("%s answers again", self.name)
        self._answers = True

    def has(self, sha256: str) -> bool:
        return self._images.get(sha256, 0) > time.monotonic()

    def remember(self, sha256: str, expires_in_s: float) -> None:
        self._images.pop(sha256, None)
        self._images[sha256] = time.monotonic() + expires_in_s - EXPIRY_MARGIN_S
        if len(self._images) > MAX_KNOWN_IMAGES:
            self._images.popitem(last=False)

    @property
    def store_rests(self) -> bool:
        return time.monotonic() < self._store_rests_until

    def rest_store(self, retry_after_s: float) -> None:
        """An image that it cannot store it would be sent twice, with the request again."""
        self._store_rests_until = time.monotonic() + max(retry_after_s, STORE_REST_S)

    def forget(self, images: Iterable[str]) -> None:
        for sha256 in images:
            self._images.pop(sha256, None)


def open_replicas(base_urls: str | Sequence[str]) -> list[Replica]:
    """Raises ConfigurationError on no URL, one twice, or one that is not http or https."""
    urls = [base_urls] if isinstance(base_urls, str) else list(base_urls)
    replicas = [Replica(url) for url in urls]
    names = [replica.name for replica in replicas]
    if not names or len(set(names)) < len(names):
        raise ConfigurationError(f"base URLs: give at least one, each once, not {names}")
    return replicas


def rendezvous(replicas: Sequence[Replica], key: str) -> list[Replica]:
    """The replicas in the order in which a request with `key` asks them."""

    def weight(replica: Replica) -> bytes:
        return hashlib.sha256(f"{replica.name}\n{key}".encode("utf-8", "surrogatepass")).digest()

    return sorted(replicas, key=weight, reverse=True)
