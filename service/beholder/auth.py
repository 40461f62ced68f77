"""API keys: who may ask, and how much at once.

Keys come from the settings and from a file, which is read again when it changes, so that keys are rotated without a
restart. A key comes as a bearer token, or as the password of Basic: most trainers cannot set a header, but take a URL
such as http://x:KEY@host. Comparison takes the same time whatever is presented.
"""

import base64
import binascii
import hashlib
import hmac
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from beholder.errors import BeholderError, ConfigurationError, KeyOverloaded, Unauthorized
from beholder.problems import error_problem

RELOAD_S: Final = 1.0
OPEN: Final = frozenset({"/livez", "/readyz"})
_log = logging.getLogger(__name__)
_Stamp = tuple[int, int, int]


class KeyRing:
    """The accepted keys, kept as sha256. A file with no key in it lets nobody in."""

    def __init__(self, keys: Sequence[str], file: Path | None) -> None:
        self._own = [_digest(key.encode()) for key in keys]
        self._file = file
        self._read: list[bytes] = []
        self._stamp: _Stamp | None = None
        self._next_look = 0.0
        if file is not None:
            try:
                self._reload(file)
            except OSError as error:
                raise ConfigurationError(f"api_keys_file: {file}: {error.strerror}") from None
            if not (self._own or self._read):
                raise ConfigurationError(f"api_keys_file: {file} has no key: write one a line")

    @property
    def required(self) -> bool:
        return bool(self._own) or self._file is not None

    def identify(self, authorization: bytes) -> bytes:
        """The digest of the key in an Authorization header. Raises Unauthorized."""
        presented = _presented(authorization)
        if presented is None:
            raise Unauthorized("send an API key: `Authorization: Bearer KEY`, or Basic with the key as password")
        self._refresh()
        digest = _digest(presented)
        matches = [hmac.compare_digest(digest, key) for key in (*self._own, *self._read)]
        if not any(matches):
            raise Unauthorized("this API key is not accepted")
        return digest

    def _refresh(self) -> None:
        if self._file is None or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + RELOAD_S
        try:
            self._reload(self._file)
        except OSError as error:
            _log.warning("api_keys_file: %s: %s: the keys read before stay", self._file, error.strerror)

    def _reload(self, file: Path) -> None:
        status = file.stat()
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if stamp == self._stamp:
            return
        lines = (line.strip() for line in file.read_bytes().splitlines())
        self._read = [_digest(line) for line in lines if line and not line.startswith(b"#")]
        self._stamp = stamp


class Gate:
    """Lets requests in that have a key, and no more of one key than may be in flight. Plain ASGI."""

    def __init__(
        self, app: ASGIApp, keys: KeyRing, max_per_key: int | None, shed_status: int, open_paths: frozenset[str] = OPEN
    ) -> None:
        self._app = app
        self._keys = keys
        self._max_per_key = max_per_key
        self._shed_status = shed_status
        self._open = open_paths
        self._in_flight: Counter[bytes] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._open or not self._keys.required:
            await self._app(scope, receive, send)
            return
        try:
            key = self._keys.identify(dict(scope["headers"]).get(b"authorization", b""))
            with self._counted(key):
                await self._app(scope, receive, send)
        except BeholderError as error:
            await error_problem(error, self._shed_status, scope)(scope, receive, send)

    @contextmanager
    def _counted(self, key: bytes) -> Iterator[None]:
        if self._max_per_key is not None and self._in_flight[key] >= self._max_per_key:
            raise KeyOverloaded(f"this API key has {self._in_flight[key]} requests in flight, its limit: retry")
        self._in_flight[key] += 1
        try:
            yield
        finally:
            self._in_flight[key] -= 1
            if not self._in_flight[key]:
                del self._in_flight[key]


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _presented(authorization: bytes) -> bytes | None:
    """The key of a header; None where there is none that can be read."""
    scheme, _, value = authorization.partition(b" ")
    value = value.strip()
    if scheme.lower() == b"bearer":
        return value or None
    if scheme.lower() != b"basic":
        return None
    try:
        _, _, password = base64.b64decode(value, validate=True).partition(b":")
    except binascii.Error:
        return None
    return password or None
