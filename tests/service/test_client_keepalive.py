"""TCP asks whether the other end of a connection is still there, which no test of HTTP alone can see."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from beholder.client import AsyncRewardClient
from beholder.client.keepalive import KEEP_ALIVE
from beholder.errors import EngineUnavailable
from tests.service.vanishing import serve

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="a process's sockets are found as Linux lists them"),
]
Options = dict[str, int]


class Listening:
    """A service, or a proxy that answers in place of one; `asked` are the first lines, `options` those of the
    connections that came, as the client has set them."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.options: list[Options] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        self.options.append(options_of(writer.get_extra_info("peername")))
        self.asked.append(line.decode().strip())
        if line.startswith(b"POST"):
            await serve(reader, writer)
        writer.close()


def options_of(address: tuple[str, int]) -> Options:
    """Of this process's socket at `address`."""
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            found = socket.socket(fileno=os.dup(int(descriptor.name)))
        except OSError:  # not a socket, or closed by now
            continue
        with found:
            if found.family == socket.AF_INET and found.getsockname() == address:
                options = {name: found.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in KEEP_ALIVE}
                return {**options, "SO_KEEPALIVE": found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)}
    raise AssertionError(f"no socket at {address}")


@pytest.fixture
def listening() -> Listening:
    return Listening()


@pytest.fixture
async def url(listening: Listening) -> AsyncIterator[str]:
    async with await asyncio.start_server(listening, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_every_connection_is_asked_for(listening: Listening, url: str) -> None:
    async with AsyncRewardClient(url) as client:
        await client.score("p", [], "r")
    assert listening.options == [{**KEEP_ALIVE, "SO_KEEPALIVE": 1}]


@pytest.mark.parametrize(("scheme", "line"), [("http", "POST http://away.invalid/score"), ("https", "CONNECT away.")])
async def test_those_to_a_proxy_of_the_environment_too(
    listening: Listening, url: str, monkeypatch: pytest.MonkeyPatch, scheme: str, line: str
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(f"{scheme}_proxy", url)
    async with AsyncRewardClient(f"{scheme}://away.invalid", retries=0) as client:
        if scheme == "http":
            await client.score("p", [], "r")
        else:
            with pytest.raises(EngineUnavailable):
                await client.score("p", [], "r")
    assert listening.asked[0].startswith(line)
    assert listening.options == [{**KEEP_ALIVE, "SO_KEEPALIVE": 1}]


@pytest.mark.slow
def test_what_is_gone_is_told_from_what_is_slow() -> None:
    """In a network of its own, which goes down. Without the options each of the calls would last until its deadline."""
    if subprocess.run(["unshare", "-rn", "ip", "link", "set", "lo", "up"], capture_output=True).returncode:
        pytest.skip("no network namespace can be made here")
    command = ["unshare", "-rn", sys.executable, "-m", "tests.service.vanishing"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True, timeout=100)
    took = json.loads(done.stdout)
    assert took["slow"] >= 3
    assert 1 < took["owing"] < 15
    assert 1 < took["sending"] < 15
