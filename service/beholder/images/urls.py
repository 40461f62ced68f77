"""Fetch images from URLs without being led anywhere else.

A client that may name a URL may try to read what only this machine reaches. So: hosts from an allow-list only; every
address that the name resolves to must be public; the connection goes to the address that was checked, not to the name
(which might resolve differently a moment later); each redirect is checked like the first URL; bytes and time are
bounded; no credentials, cookies, proxies or compression.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final
from urllib.parse import urljoin, urlsplit

import httpx

from beholder.errors import ConfigurationError, ImageTooLarge, ImageUrlFailed, ImageUrlRefused

MAX_URL: Final = 4096
REDIRECTS: Final = (301, 302, 303, 307, 308)
PORTS: Final = {"https": 443, "http": 80}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port -> addresses."""

Admit = Callable[[int], None]
"""Called with a number of bytes before they are kept; raises when there is no room for them."""

_RESOLVING: Final = ThreadPoolExecutor(8, "resolve")
"""Lookups cannot be interrupted: where a name server hangs, they must not hold the threads that decode images. Those
still under way when the process ends are left behind like its other threads (cli.py)."""
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_NOT_PUBLIC: Final = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "168.63.129.16/32")))
"""What Python takes for global, in some versions or in all: special addresses of the IETF, of which 192.0.0.192 is
Oracle's metadata service, and the machine that Azure's virtual ones run on."""
_GLOBAL_UNICAST: Final = ipaddress.ip_network("2000::/3")


@dataclass(frozen=True, slots=True)
class UrlPolicy:
    """`hosts` are names, or `*.name` for all names below; `http` allows http:// beside https://."""

    hosts: tuple[str, ...]
    http: bool = False
    timeout_s: float = 10
    max_redirects: int = 3
    max_bytes: int = 20 * 2**20


@dataclass(frozen=True, slots=True)
class _Target:
    """A URL that may be asked, and the one address to ask."""

    url: httpx.URL
    host: str
    address: str


async def resolve(host: str, port: int) -> Sequence[str]:
    """All addresses of a name."""
    loop = asyncio.get_running_loop()
    found = await loop.run_in_executor(_RESOLVING, partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM))
    return [str(item[4][0]) for item in found]


def is_public(text: str) -> bool:
    """Whether an address is of the open internet, also through the addresses that it embeds."""
    try:
        address: Address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return all(map(_is_open, _embedded(address)))


def _is_open(address: Address) -> bool:
    if any(address in network for network in _NOT_PUBLIC):
        return False
    return address.is_global and not address.is_multicast and (address.version == 4 or address in _GLOBAL_UNICAST)


def _embedded(address: Address) -> Sequence[Address]:
    """The address, or those of IPv4 that an IPv6 one stands for (mapped, 6to4, Teredo, NAT64)."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    if address in _NAT64:
        return [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address.sixtofour is not None:
        return [address.sixtofour]
    if address.teredo is not None:
        return address.teredo
    return [address]


def _redirected(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise ImageUrlFailed("the image's URL redirects to what cannot be read as a URL") from None


def _ascii(host: str) -> str:
    """A name of the policy as it stands in URLs, where other letters are spelled in ASCII (xn--)."""
    star, name = ("*.", host[2:]) if host.startswith("*.") else ("", host)
    if name.isascii():
        return star + name.lower()
    try:
        return star + httpx.URL(scheme="https", host=name).raw_host.decode()
    except httpx.InvalidURL:
        raise ConfigurationError(f"image_url_hosts: {host!r} is not the name of a host") from None


class UrlFetcher:
    """Fetches by one policy. `resolve`, `is_public` and `transport` are replaced in tests.

    Raises ConfigurationError for a host that cannot be one.
    """

    def __init__(
        self,
        policy: UrlPolicy,
        resolve: Resolve = resolve,
        is_public: Callable[[str], bool] = is_public,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._policy = policy
        self._hosts = tuple(map(_ascii, policy.hosts))
        self._resolve = resolve
        self._is_public = is_public
        self._transport = transport
        self._tls = httpx.create_ssl_context(trust_env=False)  # once: reading the authorities takes 20 ms

    async def fetch(self, url: str, admit: Admit = lambda count: None) -> bytes:
        """The bytes, for which `admit` is called as they come. Raises ImageUrlRefused, ImageUrlFailed, ImageTooLarge,
        and what `admit` raises."""
        try:
            async with asyncio.timeout(self._policy.timeout_s):
                return await self._follow(url, admit)
        except TimeoutError:
            raise ImageUrlFailed(f"the image's URL was not read within {self._policy.timeout_s:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
            raise ImageUrlFailed(f"the image's URL cannot be read ({type(error).__name__})") from None

    async def _follow(self, url: str, admit: Admit) -> bytes:
        for _ in range(self._policy.max_redirects + 1):
            target = await self._check(url)
            # A new client each time: nothing is carried over, neither cookies nor a connection to another address.
            async with httpx.AsyncClient(
                verify=self._tls,
                transport=self._transport,
                trust_env=False,
                follow_redirects=False,
                timeout=self._policy.timeout_s,
            ) as client:
                answer = await self._ask(client, target, admit)
                if isinstance(answer, bytes):
                    return answer
                url = _redirected(url, answer)
        raise ImageUrlRefused(f"the image's URL redirects more than {self._policy.max_redirects} times")

    async def _check(self, text: str) -> _Target:
        host, port = self._allowed(text)
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError):
            raise ImageUrlFailed("the image's host is unknown") from None
        if not addresses or not all(map(self._is_public, addresses)):
            raise ImageUrlRefused("the image's host has an address that is not public")
        return _Target(httpx.URL(text), host, addresses[0])

    def _allowed(self, text: str) -> tuple[str, int]:
        """Host and port of a URL that the policy lets through."""
        if len(text) > MAX_URL or not text.isascii() or any(ord(char) <= 32 or char in "\\\x7f" for char in text):
            raise ImageUrlRefused("the image's URL is too long, or has characters that must be percent-encoded")
        try:
            parts = urlsplit(text)
            port = parts.port
            asked = httpx.URL(text).raw_host.decode("ascii")
        except (ValueError, httpx.InvalidURL):
            raise ImageUrlRefused("the image's URL cannot be read as one") from None
        schemes = ("https", "http") if self._policy.http else ("https",)
        if parts.scheme not in schemes:
            raise ImageUrlRefused(f"the image's URL must begin with {' or '.join(f'{name}://' for name in schemes)}")
        if parts.username is not None or parts.password is not None:
            raise ImageUrlRefused("the image's URL must not hold credentials")
        if port not in (None, PORTS[parts.scheme]):
            raise ImageUrlRefused("the image's URL must not name a port")
        host = (parts.hostname or "").rstrip(".")
        if host != asked.rstrip(".") or not self._listed(host):
            raise ImageUrlRefused("the image's host is not one of those allowed here")
        return host, PORTS[parts.scheme]

    def _listed(self, host: str) -> bool:
        return any(
            host.endswith(name[1:]) and host != name[2:] if name.startswith("*.") else host == name
            for name in self._hosts
        )

    async def _ask(self, client: httpx.AsyncClient, target: _Target, admit: Admit) -> bytes | str:
        """The body, or where it redirects to. The connection goes to the address; the name is for TLS and the host."""
        request = client.build_request(
            "GET",
            target.url.copy_with(host=target.address, fragment=None),
            headers={"Host": target.host, "Accept": "image/*", "Accept-Encoding": "identity"},
            extensions={"sni_hostname": target.host},
        )
        response = await client.send(request, stream=True)
        try:
            if response.status_code in REDIRECTS and "location" in response.headers:
                return str(response.headers["location"])
            if response.status_code != httpx.codes.OK:
                raise ImageUrlFailed(f"the image's URL answered {response.status_code}")
            return await self._read(response, admit)
        finally:
            await response.aclose()

    async def _read(self, response: httpx.Response, admit: Admit) -> bytes:
        refusal = f"the image is larger than {self._policy.max_bytes} bytes: link a smaller one"
        if response.headers.get("content-encoding", "identity") != "identity":
            raise ImageUrlFailed("the image's host compresses what was asked for uncompressed")
        if int(response.headers.get("content-length", "0")) > self._policy.max_bytes:
            raise ImageTooLarge(refusal)
        data = bytearray()
        async for chunk in response.aiter_raw():
            if len(data) + len(chunk) > self._policy.max_bytes:
                raise ImageTooLarge(refusal)
            admit(len(chunk))
            data += chunk
        return bytes(data)
