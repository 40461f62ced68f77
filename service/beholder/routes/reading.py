"""Read a request's body, and stop working for a client that has gone.

The body goes from bytes to a model in one pass (pydantic's own JSON parser): images make bodies large, and FastAPI's
way through a tree of dictionaries would copy them.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from fastapi import Request
from pydantic import TypeAdapter, ValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from beholder.errors import DeadlineExceeded, InvalidRequest, RequestTimeout, RequestTooLarge, UnsupportedEncoding
from beholder.problems import from_validation
from beholder.routes.context import context_of
from beholder.schemas import MAX_IMAGES

T = TypeVar("T")
FORM: Final = "multipart/form-data"
REQUEST_FIELD: Final = "request"
IMAGES_FIELD: Final = "images"
_BYTES: Final = "latin-1"
"""Text of it has a character for each byte, and gives the bytes back."""
QUICK_FORM_BYTES: Final = 64 * 1024
"""Forms up to this size are parsed on the event loop, in a few milliseconds even where they are made to be slow."""
QUICK_BODY_BYTES: Final = 512 * 1024
"""JSON up to this size is parsed on the event loop, in about two milliseconds."""
MAX_VALUES: Final = 100_000
"""JSON values in a body: as many are read in less than half a second, during which the event loop stands still."""
MAX_STRINGS: Final = 2 * MAX_VALUES
"""So many strings have that many values with a key each: what has more is not JSON."""
_SCANNED_BYTES: Final = 2**18
"""At a time: a regular expression lets no other thread run."""
_TO_STRING_OR_VALUE: Final = re.compile(rb'[^",\[{]*+([",\[{]?)')
_REST_OF_STRING: Final = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+("?)', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Form:
    """A multipart body: the JSON in its field `request`, as it was sent, and the files of its fields `images`."""

    request: bytes
    files: list[bytes]


class _FormParser(MultiPartParser):
    """Keeps every byte of a field, as a file has them: Starlette guesses an encoding, and JSON has UTF-8 alone."""

    def on_part_end(self) -> None:
        if self._current_part.file is None:
            self.items.append((self._current_part.field_name, self._current_part.data.decode(_BYTES)))
        else:
            super().on_part_end()


def is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == FORM


async def read_model(request: Request, adapter: TypeAdapter[T]) -> T:
    """The body, with samples, as a model.

    Raises RequestTooLarge, RequestTimeout, UnsupportedEncoding, InvalidRequest, InvalidText.
    """
    return await parse_beside(await read_body(request), adapter)


async def parse_beside(body: bytes, adapter: TypeAdapter[T]) -> T:
    """`parse`, in a thread where it may take long. Raises InvalidRequest, InvalidText."""
    if len(body) <= QUICK_BODY_BYTES and _separators(body) < MAX_VALUES:
        return parse(body, adapter)
    return await asyncio.to_thread(parse, body, adapter)


def parse(body: bytes, adapter: TypeAdapter[T]) -> T:
    """Raises InvalidRequest, InvalidText."""
    _require_few_values(body)
    try:
        return adapter.validate_json(body)
    except ValidationError as error:
        raise from_validation(error) from None


async def read_body(request: Request, limit: int | None = None) -> bytes:
    """All bytes, at most `limit` (or what the settings say).

    Raises RequestTooLarge, RequestTimeout, UnsupportedEncoding.
    """
    settings = context_of(request).settings
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise UnsupportedEncoding("the body has a Content-Encoding: send it uncompressed")
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            return await _read(request, limit or settings.max_body_bytes)
    except TimeoutError:
        raise RequestTimeout(f"the body was not sent within {settings.body_timeout_s:g} s: send it faster") from None


async def read_form(request: Request) -> Form:
    """A multipart body, with samples. Raises RequestTooLarge, RequestTimeout, UnsupportedEncoding, InvalidRequest."""
    body = await read_body(request)
    if len(body) <= QUICK_FORM_BYTES:
        return await _parse_form(request.headers, body)
    return await asyncio.to_thread(lambda: asyncio.run(_parse_form(request.headers, body)))


async def until_gone(request: Request, work: Coroutine[Any, Any, T], deadline_s: float) -> T:
    """The result of `work`, which is cancelled when the client disconnects or the deadline passes.

    Raises DeadlineExceeded, ClientDisconnect.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({task, gone}, timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientDisconnect
        raise DeadlineExceeded(f"the request was not answered within {deadline_s:g} s: send fewer samples or retry")
    finally:
        for pending in (task, gone):
            pending.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


def _require_few_values(body: bytes) -> None:
    """Before the body is parsed, which cannot be interrupted. Raises InvalidRequest.

    Commas and opening brackets are counted, first with those in strings, which is quick, then without.
    """
    if _separators(body) < MAX_VALUES:
        return
    values = strings = position = 0
    in_string = False
    while values < MAX_VALUES and strings <= MAX_STRINGS:
        pattern = _REST_OF_STRING if in_string else _TO_STRING_OR_VALUE
        found = pattern.match(body, position, position + _SCANNED_BYTES)
        if found is None or found.end() == position:
            return
        position = found.end()
        if found[1] == b'"':
            in_string = not in_string
            strings += in_string
        elif found[1]:
            values += 1
    raise InvalidRequest(f"the body has more than {MAX_VALUES} values: send fewer samples")


def _separators(body: bytes) -> int:
    return sum(map(body.count, (b",", b"[", b"{")))


async def _parse_form(headers: Headers, body: bytes) -> Form:
    """Raises InvalidRequest."""

    async def chunks() -> AsyncGenerator[bytes, None]:
        yield body

    parser = _FormParser(headers, chunks(), max_files=MAX_IMAGES, max_fields=1, max_part_size=len(body) + 1)
    parser.spool_max_size = len(body) + 1  # stays in memory, which holds it anyway
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, UnicodeError, AssertionError) as error:
        raise InvalidRequest(f"the form cannot be read: {getattr(error, 'message', type(error).__name__)}") from None
    try:
        return await _form(form.multi_items())
    finally:
        await form.close()


async def _form(items: list[tuple[str, UploadFile | str]]) -> Form:
    bodies, files = [], []
    for name, value in items:
        if name == REQUEST_FIELD:
            bodies.append(value.encode(_BYTES) if isinstance(value, str) else await value.read())
        elif name == IMAGES_FIELD and not isinstance(value, str):
            files.append(await value.read())
        else:
            raise InvalidRequest(f"the form has `{REQUEST_FIELD}` (JSON) and files named `{IMAGES_FIELD}`, no others")
    if len(bodies) != 1:
        raise InvalidRequest(f"the form needs one field `{REQUEST_FIELD}` with the JSON of a request")
    return Form(bodies[0], files)


async def _read(request: Request, limit: int) -> bytes:
    refusal = f"the body is larger than {limit} bytes: send fewer or smaller images"
    if int(request.headers.get("content-length") or 0) > limit:
        raise RequestTooLarge(refusal)
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise RequestTooLarge(refusal)
        chunks.append(chunk)
    return b"".join(chunks)


async def _disconnect(request: Request) -> None:
    """Returns when the client is gone. Only after the body was read: before, receive gives its chunks."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
