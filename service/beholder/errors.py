"""Every error that Beholder raises on purpose.

    BeholderError                    500 internal
    ├── InvalidRequest               422 invalid-request
    │   ├── InvalidText              422 invalid-text
    │   ├── EmptyResponse            422 empty-response
    │   ├── PromptTooLong            422 prompt-too-long
    │   ├── RequestTooLarge          413 request-too-large
    │   ├── RequestTimeout           408 request-timeout
    │   ├── UnsupportedEncoding      415 unsupported-encoding
    │   ├── ModelNotFound            404 model-not-found
    │   ├── TemplateMismatch         422 template-mismatch
    │   ├── ImageMismatch            422 image-mismatch
    │   └── TooManyImages            422 too-many-images
    ├── Unauthorized                 401 unauthorized
    ├── ImageError                   422 invalid-image
    │   ├── ImageTooLarge            413 image-too-large
    │   ├── ImageNotFound            422 image-not-found
    │   ├── ImageUnknown             422 image-unknown
    │   ├── ImageHashMismatch        422 image-hash-mismatch
    │   ├── ImageUrlRefused          422 image-url-refused
    │   └── ImageUrlFailed           422 image-url-failed
    ├── ImageStoreUnavailable        503 image-store-unavailable
    ├── CheckpointError              500 invalid-checkpoint
    │   ├── CheckpointCorrupt        500 checkpoint-corrupt
    │   └── GoldenMismatch           500 golden-mismatch
    ├── ConfigurationError           500 invalid-configuration
    ├── DataError                    422 invalid-data
    ├── FingerprintMismatch          409 fingerprint-mismatch
    └── EngineError                  500 engine-error
        ├── DeadlineExceeded         504 deadline-exceeded
        ├── EngineUnavailable        503 engine-unavailable
        └── Overloaded               503 overloaded
            ├── KeyOverloaded        503 key-overloaded
            └── ImageStoreFull       503 image-store-full

An error says what, where and what to do, in one line. `code` is stable: clients branch on it. The service turns each
into an RFC 9457 problem in one place (problems.py); the command line prints the message and exits non-zero. What may
be shed is an Overloaded: the service answers it with the status that is set (`shed_status`). docs/errors.md lists all.
"""

from copy import copy
from typing import Any, Self


class BeholderError(Exception):
    """Root of the tree. `status` is the HTTP status, `code` the stable identifier."""

    status: int = 500
    code: str = "internal"

    @property
    def members(self) -> dict[str, Any]:
        """What the problem says beside `detail`, for programs."""
        return {}

    def at(self, place: str) -> Self:
        """A copy with the place of the mistake in front of its message: samples that are computed once share the
        error, and each has a place of its own."""
        error = copy(self)
        error.args = (f"{place}: {self}",)
        return error


class InvalidRequest(BeholderError):
    status = 422
    code = "invalid-request"


class InvalidText(InvalidRequest):
    """Text that cannot be encoded as UTF-8 (a lone surrogate)."""

    code = "invalid-text"


class EmptyResponse(InvalidRequest):
    code = "empty-response"


class PromptTooLong(InvalidRequest):
    """`tokens` is the length with images expanded, `limit` what is accepted; None where the engine does not say."""

    code = "prompt-too-long"

    def __init__(self, message: str, tokens: int | None = None, limit: int | None = None) -> None:
        super().__init__(message)
        self.tokens = tokens
        self.limit = limit

    @property
    def members(self) -> dict[str, Any]:
        return {} if self.tokens is None else {"tokens": self.tokens, "max_tokens": self.limit}


class RequestTooLarge(InvalidRequest):
    status = 413
    code = "request-too-large"


class RequestTimeout(InvalidRequest):
    """The body came too slowly."""

    status = 408
    code = "request-timeout"


class UnsupportedEncoding(InvalidRequest):
    """The body is compressed."""

    status = 415
    code = "unsupported-encoding"


class ModelNotFound(InvalidRequest):
    """`model` names another one than is served."""

    status = 404
    code = "model-not-found"


class TemplateMismatch(InvalidRequest):
    """A templated string is not exactly what the policy's template renders, or the model's template rewrites a text."""

    code = "template-mismatch"


class TooManyImages(InvalidRequest):
    code = "too-many-images"


class ImageMismatch(InvalidRequest):
    """The conversation has another number of image places than images were given."""

    code = "image-mismatch"


class Unauthorized(BeholderError):
    """No key, or one that is not accepted."""

    status = 401
    code = "unauthorized"


class ImageError(BeholderError):
    """The bytes are not an image that Beholder accepts."""

    status = 422
    code = "invalid-image"


class ImageTooLarge(ImageError):
    status = 413
    code = "image-too-large"


class ImageNotFound(ImageError):
    """There is no such file."""

    code = "image-not-found"


class ImageUnknown(ImageError):
    """No image with this sha256 is stored (any more): send it with PUT /images/{sha256} and ask again."""

    code = "image-unknown"

    def __init__(self, message: str, sha256: str = "") -> None:
        super().__init__(message)
        self.sha256 = sha256

    @property
    def members(self) -> dict[str, Any]:
        return {"sha256": self.sha256}


class ImageHashMismatch(ImageError):
    """The bytes have another sha256 than the path says."""

    code = "image-hash-mismatch"


class ImageUrlRefused(ImageError):
    """Image URLs are off, or this one leads where it may not."""

    code = "image-url-refused"


class ImageUrlFailed(ImageError):
    """The URL's host did not deliver the image."""

    code = "image-url-failed"


class ImageStoreUnavailable(BeholderError):
    """The folder of the images sent before cannot be read or written. Retrying later may succeed."""

    status = 503
    code = "image-store-unavailable"


class CheckpointError(BeholderError):
    """The folder is not a Beholder checkpoint, or lacks a part of one."""

    code = "invalid-checkpoint"


class CheckpointCorrupt(CheckpointError):
    """A file's sha256 is not the one that reward.json records."""

    code = "checkpoint-corrupt"


class GoldenMismatch(CheckpointError):
    """The engine scores a golden sample otherwise than training did."""

    code = "golden-mismatch"


class ConfigurationError(BeholderError):
    """A setting, a flag or the environment is wrong; the process does not start."""

    code = "invalid-configuration"


class DataError(BeholderError):
    """A record of a data set is unusable; the message names file and line."""

    status = 422
    code = "invalid-data"


class FingerprintMismatch(BeholderError):
    """The service answers with another checkpoint than the client has pinned."""

    status = 409
    code = "fingerprint-mismatch"


class EngineError(BeholderError):
    code = "engine-error"


class DeadlineExceeded(EngineError):
    """The request took longer than `request_deadline_s`; what it had queued was cancelled."""

    status = 504
    code = "deadline-exceeded"


class EngineUnavailable(EngineError):
    """The engine is not started, stopping, or dead. Retrying elsewhere or later may succeed."""

    status = 503
    code = "engine-unavailable"


class Overloaded(EngineError):
    """The queue is full. Retry after a moment."""

    status = 503
    code = "overloaded"


class KeyOverloaded(Overloaded):
    """This API key has as many requests in flight as one key may have."""

    code = "key-overloaded"


class ImageStoreFull(Overloaded):
    """Every stored image is still within its time to live."""

    code = "image-store-full"


def own_copy(error: Exception) -> Exception:
    """For one of several callers that the error concerns, with the error as its cause: what is raised collects the
    frames of all that raise it. Unexpected ones, which need not bear copying, are RuntimeErrors."""
    own = copy(error) if isinstance(error, BeholderError) else RuntimeError(f"{type(error).__name__}: {error}")
    own.__cause__ = error
    return own
