"""One call and the replicas: attempts, failover, images sent ahead, and what the network does.

Bound to one event loop, as connections are.
"""

import asyncio
import weakref
from typing import Any, Final

import httpx

from beholder.client.answers import Failed, read_body
from beholder.client.attempts import Attempts
from beholder.client.inputs import EncodedImage
from beholder.client.keepalive import keep_alive
from beholder.client.replicas import Replica
from beholder.client.requests import Call, encode_body
from beholder.errors import (
    ConfigurationError,
    DeadlineExceeded,
    EngineError,
    EngineUnavailable,
    ImageError,
    ImageStoreFull,
    ImageStoreUnavailable,
    ImageUnknown,
)

_WATCHED: Final = {"trace": keep_alive}
_HEADERS: Final[dict[str, dict[str, str]]] = {
    "GET": {},
    "POST": {"Content-Type": "application/json"},
    "PUT": {"Content-Type": "application/octet-stream"},
}


class _Sending:
    """An image on its way to a replica: whoever waits for it shares what comes of it, a failure too."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.failed: Failed | None = None


class Channel:
    """Connections of one event loop, and the images on their way, each of which is sent once.

    `attempt_s` bounds one request; None leaves that to the deadline of the call.
    """

    def __init__(self, http: httpx.AsyncClient, attempt_s: float | None) -> None:
        self._http = http
        self._attempt_s = attempt_s
        self._sendings: weakref.WeakValueDictionary[tuple[str, str], _Sending] = weakref.WeakValueDictionary()

    async def close(self) -> None:
        await self._http.aclose()

    async def exchange(self, call: Call, attempts: Attempts, deadline: float) -> dict[str, Any]:
        """The answer of the first replica that gives one, before `deadline` on the loop's clock."""
        while True:
            replica = attempts.next()
            replica.mark_asked()
            try:
                answer = await self._attempt(replica, call)
            except Failed as failed:
                if failed.gone:
                    replica.mark_down(failed)
                else:
                    replica.mark_up()
                wait_s = attempts.wait_s(failed)
                if wait_s is None or asyncio.get_running_loop().time() + wait_s >= deadline:
                    raise failed.error.at(f"given up after {attempts.made} attempts") from None
                await asyncio.sleep(wait_s)
            else:
                replica.mark_up()
                return answer

    async def _attempt(self, replica: Replica, call: Call) -> dict[str, Any]:
        """One replica's answer. An image that it does not know is sent again, and at last with the request itself:
        behind one URL may be several stores, or one that cannot be used."""
        for _ in range(2):
            try:
                return await self._ask(replica, call, [await self._refer(replica, image)
                                                                for image in call.images])  # fmt: skip
            except ImageUnknown:
                pass
            except Failed as failed:
                if not isinstance(failed.error, ImageStoreUnavailable):
                    raise
            replica.forget(image.sha256 for image in call.images)
        return await self._ask(replica, call, [image.base64 for image in call.images])

    async def _ask(self, replica: Replica, call: Call, images: list[Any]) -> dict[str, Any]:
        if call.body is None:
            return await self._send(replica, "GET", call.path, b"")
        return await self._send(replica, "POST", call.path, encode_body({**call.body, "images": images}))

    async def _refer(self, replica: Replica, image: EncodedImage) -> Any:
        """What stands for the image in a request to `replica`, which has it then; the image itself when its store is
        full, or cannot be used."""
        sending = self._sending(replica, image.sha256)
        before = sending.failed
        async with sending.lock:
            if not replica.has(image.sha256):
                if sending.failed is not None and sending.failed is not before:
                    raise sending.failed.again()
                if replica.store_rests:
                    return image.base64
                try:
                    await self._put(replica, image)
                except Failed as failed:
                    if isinstance(failed.error, ImageStoreFull | ImageStoreUnavailable):
                        replica.rest_store(failed.retry_after_s)
                        return image.base64
                    sending.failed = failed.again()
                    raise
        return {"sha256": image.sha256}

    async def _put(self, replica: Replica, image: EncodedImage) -> None:
        try:
            receipt = await self._send(replica, "PUT", f"/images/{image.sha256}", image.data)
            replica.remember(image.sha256, float(receipt["expires_in_s"]))
        except ImageError as error:
            raise error.at(f"images[{image.index}]") from None
        except (KeyError, TypeError, ValueError):
            raise EngineError(f"{replica.name} did not say how long it keeps an image: is it Beholder?") from None

    async def _send(self, replica: Replica, method: str, path: str, content: bytes) -> dict[str, Any]:
        """Raises Failed for what is worth another attempt, else BeholderError."""
        place = f"{replica.name}{path}"
        headers = {**_HEADERS[method], **replica.headers}
        try:
            async with asyncio.timeout(self._attempt_s):
                response = await self._http.request(
                    method, place, content=content, headers=headers, extensions=_WATCHED
                )
        except TimeoutError:
            error = DeadlineExceeded(f"{place} did not answer within {self._attempt_s:g} s")
            raise Failed(error, gone=True) from None
        except (httpx.LocalProtocolError, httpx.UnsupportedProtocol) as wrong:
            raise ConfigurationError(f"{place} cannot be asked: {wrong}") from None
        except httpx.RequestError as lost:
            reason = str(lost) or type(lost).__name__
            raise Failed(EngineUnavailable(f"{place} cannot be reached: {reason}"), gone=True) from None
        return read_body(response)

    def _sending(self, replica: Replica, sha256: str) -> _Sending:
        key = (replica.name, sha256)
        sending = self._sendings.get(key)
        if sending is None:
            sending = self._sendings[key] = _Sending()
        return sending
