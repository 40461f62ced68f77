"""Read a request's body, and stop working for a client that has gone.

The body goes from bytes to a model in one pass (pydantic's own JSON parser): images make bodies large, and FastAPI's
way through a tree of dictionaries would copy them.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from pydantic import TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect

from beholder.errors import DeadlineExceeded, RequestTooLarge
from beholder.problems import from_validation
from beholder.routes.context import context_of

T = TypeVar("T")


async def read_model(request: Request, adapter: TypeAdapter[T]) -> T:
    """The body as a model. Raises RequestTooLarge, InvalidRequest, InvalidText."""
    body = await _read_body(request, context_of(request).settings.max_body_bytes)
    try:
        return adapter.validate_json(body)
    except ValidationError as error:
        raise from_validation(error) from None


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


async def _read_body(request: Request, limit: int) -> bytes:
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
