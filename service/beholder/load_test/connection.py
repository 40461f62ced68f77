"""A keep-alive HTTP/1.1 connection that costs little of the CPU that it is to measure: about a tenth of httpx."""

import asyncio
import ssl
from types import TracebackType
from typing import Any, Final, Self

import httptools

from beholder.client.base_urls import BaseUrl
from beholder.errors import EngineUnavailable

READ_BYTES: Final = 2**16
ANSWER_S: Final = 330.0
"""Longer than a service's own default deadline of a request, whose answer is to be seen."""


class Answer:
    """What httptools calls back with while it reads one answer."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.chunks: list[bytes] = []
        self.complete = self.stays_open = False

    def on_body(self, chunk: bytes) -> None:
        self.chunks.append(chunk)

    def on_message_complete(self) -> None:
        self.complete = True
        self.stays_open = self.parser.should_keep_alive()  # which the parser knows only until the callback ends


class Connection:
    """One request at a time; connects when it must. A key that stands in the URL goes before `api_key`. Errors are
    EngineUnavailable, also for what is not answered within `answer_s` seconds."""

    def __init__(self, base: BaseUrl, api_key: str | None = None, answer_s: float = ANSWER_S) -> None:
        url = base.url
        self._answer_s = answer_s
        self._prefix = url.path.rstrip("/")
        self._host, self._secure = url.host, url.scheme == "https"
        self._port = url.port or (443 if self._secure else 80)
        key = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        headers = {"Host": url.netloc.decode(), "Content-Type": "application/json", **key, **base.headers}
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def request(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer."""
        if self._streams is not None and self._streams[0].at_eof():
            self.close()  # the server does not keep an idle connection for ever
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\n{self._headers}Content-Length: {len(body)}\r\n\r\n"
        try:
            async with asyncio.timeout(self._answer_s):
                reader, writer = self._streams or await self._connect()
                writer.write(head.encode() + body)
                return await self._read(reader)
        except TimeoutError:
            self.close()  # or the answer, when it comes, would be taken for the next request's
            raise EngineUnavailable(
                f"http://{self._host}:{self._port} did not answer within {self._answer_s:g} s"
            ) from None
        except (OSError, httptools.HttpParserError) as error:
            self.close()
            raise EngineUnavailable(f"http://{self._host}:{self._port} broke off: {error}") from None
        except BaseException:
            self.close()  # the rest of this answer would be taken for the next one's
            raise

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context = ssl.create_default_context() if self._secure else None
        self._streams = await asyncio.open_connection(self._host, self._port, ssl=context)
        return self._streams

    async def _read(self, reader: asyncio.StreamReader) -> tuple[int, bytes]:
        answer: Any = Answer()
        while not answer.complete:
            data = await reader.read(READ_BYTES)
            if not data:
                raise ConnectionResetError("the connection was closed before the answer was complete")
            answer.parser.feed_data(data)
        if not answer.stays_open:
            self.close()
        return answer.parser.get_status_code(), b"".join(answer.chunks)
