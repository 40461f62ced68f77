"""Links to images: what is fetched, and the ways to be led elsewhere that are refused."""

import asyncio
import gzip
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

import httpx
import pytest

from beholder.errors import (
    ConfigurationError,
    ImageError,
    ImageTooLarge,
    ImageUrlFailed,
    ImageUrlRefused,
    Overloaded,
)
from beholder.images import urls as image_urls
from beholder.images.urls import UrlFetcher, UrlPolicy, is_public
from tests.pictures import png

pytestmark = pytest.mark.anyio
PICTURE = png()
PUBLIC = "93.184.215.14"
HOSTS = ("images.example.com", "*.cdn.example.com", "127.0.0.1", "2130706433", "localhost", "rebind.example.com")
POLICY = UrlPolicy(HOSTS, http=True, timeout_s=0.5, max_redirects=2, max_bytes=100_000)


class Web:
    """Name servers and hosts of a test. `asked` are the requests that were sent, with the address each went to."""

    def __init__(self) -> None:
        self.addresses: dict[str, list[list[str]]] = {}
        self.pages: dict[str, Callable[[], httpx.Response]] = {}
        self.asked: list[httpx.Request] = []

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        answers = self.addresses.get(host, [[PUBLIC]])
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def handle(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        page = self.pages.get(request.url.path)
        return page() if page else httpx.Response(200, stream=httpx.ByteStream(PICTURE))

    def fetcher(self, policy: UrlPolicy = POLICY) -> UrlFetcher:
        return UrlFetcher(policy, self.resolve, transport=httpx.MockTransport(self.handle))


@pytest.fixture
def web() -> Web:
    return Web()


async def test_an_image_is_fetched_from_the_address_that_was_checked(web: Web) -> None:
    assert await web.fetcher().fetch("https://images.example.com/a.png?size=1#part") == PICTURE
    (request,) = web.asked
    assert str(request.url) == f"https://{PUBLIC}/a.png?size=1"
    assert request.headers["host"] == "images.example.com"
    assert request.extensions["sni_hostname"] == "images.example.com"
    assert not {"authorization", "cookie", "referer"} & set(request.headers)


@pytest.mark.parametrize("name", ["xn--mnchen-3ya.de", "m\u00fcnchen.de", "*.xn--mnchen-3ya.de", "*.m\u00fcnchen.de"])
async def test_hosts_with_other_letters_are_asked_in_ascii(web: Web, name: str) -> None:
    host = name.replace("m\u00fcnchen", "xn--mnchen-3ya").replace("*", "a")
    assert await web.fetcher(UrlPolicy((name,))).fetch(f"https://{host}/a.png") == PICTURE
    (request,) = web.asked
    assert request.headers["host"] == request.extensions["sni_hostname"] == host


def test_a_name_that_no_host_has_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"image_url_hosts: 'm\u00fc nchen\.de'"):
        UrlFetcher(UrlPolicy(("m\u00fc nchen.de",)))


async def test_hosts_below_a_star_are_allowed(web: Web) -> None:
    assert await web.fetcher().fetch("https://a.b.cdn.example.com/") == PICTURE


async def test_a_name_that_changes_between_check_and_use_gains_nothing(web: Web) -> None:
    web.addresses["rebind.example.com"] = [[PUBLIC], ["127.0.0.1"]]
    assert await web.fetcher().fetch("http://rebind.example.com/") == PICTURE
    assert web.asked[0].url.host == PUBLIC
    with pytest.raises(ImageUrlRefused, match="not public"):
        await web.fetcher().fetch("http://rebind.example.com/")
    assert len(web.asked) == 1


async def test_a_name_with_one_private_address_is_refused(web: Web) -> None:
    web.addresses["images.example.com"] = [[PUBLIC, "10.0.0.1"]]
    with pytest.raises(ImageUrlRefused, match="not public"):
        await web.fetcher().fetch("https://images.example.com/")


async def test_redirects_are_followed_and_checked(web: Web) -> None:
    web.pages["/moved"] = lambda: httpx.Response(302, headers={"location": "/here", "set-cookie": "a=b"})
    assert await web.fetcher().fetch("https://images.example.com/moved") == PICTURE
    assert [request.url.path for request in web.asked] == ["/moved", "/here"]
    assert "cookie" not in web.asked[1].headers


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://127.0.0.1/",
        "http://localhost/",
        "http://rebind.example.com/",
        "https://elsewhere.example.org/",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        "gopher://images.example.com/",
        "//user:secret@images.example.com/",
        "https://images.example.com:8080/",
        "/moved",
        "\x00",
        "http://[bad/x.png",
        "//[::1",
        "https://images.example.com:abc/",
    ],
)
async def test_redirects_that_are_refused(web: Web, location: str) -> None:
    web.addresses |= {"localhost": [["127.0.0.1"]], "127.0.0.1": [["127.0.0.1"]]}
    web.addresses["rebind.example.com"] = [["::ffff:10.0.0.1"]]
    web.pages["/moved"] = lambda: httpx.Response(302, headers={"location": location})
    with pytest.raises((ImageUrlRefused, ImageUrlFailed)):
        await web.fetcher().fetch("https://images.example.com/moved")
    assert {request.url.host for request in web.asked} == {PUBLIC}


@pytest.mark.parametrize(
    "url",
    [
        "https://elsewhere.example.org/a.png",
        "https://cdn.example.com/",
        "https://images.example.com.evil.org/",
        "https://evilimages.example.com/",
        "https://images.example.com@evil.org/",
        "https://evil.org#@images.example.com/",
        "https://evil.org\\@images.example.com/",
        "https://user:secret@images.example.com/",
        "https://images.example.com:22/",
        "https://images.example.com:99999/",
        "ftp://images.example.com/",
        "file:///etc/passwd",
        "file://images.example.com/etc/passwd",
        "data:image/png;base64,AAAA",
        "javascript:alert(1)",
        "https:///a.png",
        "https://",
        "//images.example.com/",
        "images.example.com",
        "",
        "https://images.example.com/a b",
        "https://images.example.com/\r\nHost: evil",
        "https://im\u00e4ges.example.com/",
        "https://images\uff0eexample.com/",
        "https://images.example.com/" + "a" * 5000,
        "https://[::1",
        "https://[fe80::1%25eth0]/",
        "https://xn--/a.png",
        "https://xn--a.example.com/",
        "https://xn--mnchen-3ya.de.evil.org/",
    ],
)
async def test_urls_that_are_refused(web: Web, url: str) -> None:
    with pytest.raises(ImageUrlRefused):
        await web.fetcher().fetch(url)
    assert not web.asked


async def test_plain_http_needs_a_setting(web: Web) -> None:
    with pytest.raises(ImageUrlRefused, match="must begin with https://"):
        await web.fetcher(UrlPolicy(HOSTS)).fetch("http://images.example.com/")


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "localhost"])
async def test_even_an_allowed_name_must_be_public(web: Web, host: str) -> None:
    web.addresses[host] = [["127.0.0.1"]]
    with pytest.raises(ImageUrlRefused, match="not public"):
        await web.fetcher().fetch(f"http://{host}/")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "198.18.0.1",
        "192.0.0.192",
        "192.0.2.1",
        "168.63.129.16",
        "::ffff:168.63.129.16",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:a9fe:a9fe",
        "64:ff9b::7f00:1",
        "64:ff9b::10.0.0.1",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2002:a00:1::1",
        "2001:0:7f00:1::1",
        "fc00::1",
        "fd12::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
        "nonsense",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield b"x" * 10_000


async def trickle() -> AsyncIterator[bytes]:
    while True:
        yield b"x"
        await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("page", "error"),
    [
        (lambda: httpx.Response(200, content=endless()), ImageTooLarge),
        (lambda: httpx.Response(200, headers={"content-length": "999999999"}, content=endless()), ImageTooLarge),
        (lambda: httpx.Response(200, content=trickle()), ImageUrlFailed),
        (
            lambda: httpx.Response(
                200, headers={"content-encoding": "gzip"}, stream=httpx.ByteStream(gzip.compress(PICTURE))
            ),
            ImageUrlFailed,
        ),
        (lambda: httpx.Response(404), ImageUrlFailed),
        (lambda: httpx.Response(500), ImageUrlFailed),
        (lambda: httpx.Response(204), ImageUrlFailed),
        (lambda: httpx.Response(301), ImageUrlFailed),
    ],
)
async def test_what_hosts_may_do_to_us(web: Web, page: Callable[[], httpx.Response], error: type[ImageError]) -> None:
    web.pages["/"] = page
    with pytest.raises(error):
        async with asyncio.timeout(5):
            await web.fetcher().fetch("https://images.example.com/")


async def test_a_name_server_that_does_not_answer_is_given_up() -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        await asyncio.sleep(10)
        return [PUBLIC]

    fetcher = UrlFetcher(POLICY, resolve, transport=httpx.MockTransport(Web().handle))
    with pytest.raises(ImageUrlFailed, match=r"within 0\.5 s"):
        await fetcher.fetch("https://images.example.com/")


async def test_name_servers_that_hang_hold_no_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait() and [])
    fetcher = UrlFetcher(replace(POLICY, timeout_s=30))
    fetches = [asyncio.ensure_future(fetcher.fetch("https://images.example.com/")) for _ in range(40)]
    try:
        await asyncio.sleep(0)
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "decoded"), 10) == "decoded"
        with pytest.raises(ImageUrlFailed, match="within"):
            await UrlFetcher(POLICY).fetch("https://images.example.com/")
    finally:
        over.set()
        await asyncio.gather(*fetches, return_exceptions=True)


async def test_addresses_are_found() -> None:
    assert await image_urls.resolve("127.0.0.1", 80) == ["127.0.0.1"]


async def test_authorities_are_read_once(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    web.addresses["images.example.com"] = [["127.0.0.1"]]
    monkeypatch.setitem(image_urls.PORTS, "https", 1)  # nobody listens there
    fetcher = UrlFetcher(POLICY, web.resolve, is_public=lambda address: True)
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", lambda *_, **__: pytest.fail("read again"))
    with pytest.raises(ImageUrlFailed, match="ConnectError"):
        await fetcher.fetch("https://images.example.com:1/")


async def test_bytes_are_admitted_before_they_are_kept(web: Web) -> None:
    web.pages["/"] = lambda: httpx.Response(200, content=endless())
    admitted: list[int] = []

    def admit(count: int) -> None:
        if sum(admitted) + count > 30_000:
            raise Overloaded("no room")
        admitted.append(count)

    with pytest.raises(Overloaded):
        await web.fetcher().fetch("https://images.example.com/", admit)
    assert sum(admitted) == 30_000


async def test_errors_do_not_tell_what_is_inside(web: Web) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection to 10.9.8.7 refused")

    fetcher = UrlFetcher(POLICY, web.resolve, transport=httpx.MockTransport(refuse))
    with pytest.raises(ImageUrlFailed) as caught:
        await fetcher.fetch("https://images.example.com/")
    assert "10.9.8.7" not in str(caught.value)


async def test_the_socket_goes_to_the_checked_address(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(PICTURE) + PICTURE)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    monkeypatch.setitem(image_urls.PORTS, "http", port)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    web.addresses["images.example.com"] = [["127.0.0.1"]]
    fetcher = UrlFetcher(POLICY, web.resolve, is_public=lambda address: True)
    async with server:
        assert await fetcher.fetch(f"http://images.example.com:{port}/a.png") == PICTURE
    assert b"\r\nhost: images.example.com" in heads[0].lower()
