"""Every error that Beholder raises on purpose.

    BeholderError                    500 internal
    ├── InvalidRequest               422 invalid-request
    │   ├── InvalidText              422 invalid-text
    │   ├── EmptyResponse            422 empty-response
    │   ├── PromptTooLong            422 prompt-too-long
    │   ├── RequestTooLarge          413 request-too-large
    │   └── ImageMismatch            422 image-mismatch
    ├── ImageError                   422 invalid-image
    │   ├── ImageTooLarge            413 image-too-large
    │   └── ImageNotFound            422 image-not-found
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

An error says what, where and what to do, in one line. `code` is stable: clients branch on it. The service turns each
into an RFC 9457 problem in one place (app.py); the command line prints the message and exits non-zero.
"""


class BeholderError(Exception):
    """Root of the tree. `status` is the HTTP status, `code` the stable identifier."""

    status: int = 500
    code: str = "internal"


class InvalidRequest(BeholderError):
    status = 422
    code = "invalid-request"


class InvalidText(InvalidRequest):
    """Text that cannot be encoded as UTF-8 (a lone surrogate)."""

    code = "invalid-text"


class EmptyResponse(InvalidRequest):
    code = "empty-response"


class PromptTooLong(InvalidRequest):
    code = "prompt-too-long"


class RequestTooLarge(InvalidRequest):
    status = 413
    code = "request-too-large"


class ImageMismatch(InvalidRequest):
    """The conversation has another number of image places than images were given."""

    code = "image-mismatch"


class ImageError(BeholderError):
    """The bytes are not an image that Beholder accepts."""

    status = 422
    code = "invalid-image"


class ImageTooLarge(ImageError):
    status = 413
    code = "image-too-large"


class ImageNotFound(ImageError):
    code = "image-not-found"


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
