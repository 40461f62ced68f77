"""The base URL of a service, and the key that may stand in it: http://x:KEY@host.

The key is sent with each request, and stands in no URL that is asked, logged or shown.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx

from beholder.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class BaseUrl:
    """`url` has neither user nor password; `headers` say what stood there, as HTTP does."""

    url: httpx.URL
    headers: Mapping[str, str] = field(repr=False)

    def __str__(self) -> str:
        return str(self.url).rstrip("/")


def parse_base_url(text: str) -> BaseUrl:
    """Raises ConfigurationError on what is not a URL of http or https."""
    try:
        url = httpx.URL(text.strip().rstrip("/"))
    except (httpx.InvalidURL, TypeError):  # which may quote the key as a port
        raise _refusal(text) from None
    if url.scheme not in ("http", "https") or not url.host:
        raise _refusal(text)
    return BaseUrl(url.copy_with(userinfo=b""), _headers(url))


def _headers(url: httpx.URL) -> dict[str, str]:
    if not url.userinfo:
        return {}
    credentials = f"{url.username}:{url.password}".encode()
    return {"Authorization": f"Basic {base64.b64encode(credentials).decode()}"}


def _refusal(text: str) -> ConfigurationError:
    before, _, host = text.rpartition("@")
    shown = f"...@{host}" if before else host
    return ConfigurationError(f"{shown!r} is not the URL of a service: write http://host:port")
