"""PUT /images/{sha256}: send an image once, ask for it by its sha256 afterwards."""

import asyncio
import hashlib
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from beholder.errors import ImageHashMismatch
from beholder.images import LoadedImage
from beholder.images.sources import Upload
from beholder.middleware import LOG_KEY
from beholder.routes.answering import answer, refusals
from beholder.routes.context import Context, context_of
from beholder.routes.reading import read_body
from beholder.schemas import ImageReceipt

router = APIRouter(tags=["images"])


@router.put(
    "/images/{sha256}",
    response_model=ImageReceipt,
    status_code=201,
    summary="Send an image ahead",
    responses={
        **refusals(408, 413, 415, 422, 503),
        200: {"model": ImageReceipt, "description": "It was stored already; its time starts anew."},
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def put_image(
    request: Request,
    sha256: Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="Of the file's bytes, in lower-case hex.")],
) -> Response:
    """Store the file that is the body. Requests may then have {"sha256": ...} in its place for its time to live.

    The image is decoded and checked now, so that a broken one is refused here and not when it is scored.
    """
    context = context_of(request)
    data = await read_body(request, context.settings.max_image_bytes)
    request.scope[LOG_KEY].update(bytes=len(data))
    image, new = await asyncio.to_thread(_store, context, sha256, data)
    width, height = image.pixels.size
    ttl_s = context.settings.image_ttl_s
    receipt = ImageReceipt(sha256=sha256, bytes=len(data), width=width, height=height, expires_in_s=ttl_s)
    response = answer(receipt)
    response.status_code = 201 if new else 200
    return response


def _store(context: Context, sha256: str, data: bytes) -> tuple[LoadedImage, bool]:
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ImageHashMismatch(f"the {len(data)} bytes of the body have another sha256 than the path")
    loader = context.images
    with loader.request() as images:
        return images.load(Upload(data)), loader.store.put(sha256, data)
