"""What it means when a checkpoint's image processor fails on pictures that the service has accepted."""

from beholder.error_lines import first_line
from beholder.errors import BeholderError, EngineError, ImageError


def refused_picture(error: Exception) -> BeholderError:
    """Image processors refuse a picture by what Python has: Qwen's by a ValueError where it is too narrow."""
    if isinstance(error, BeholderError):
        return error
    refused: BeholderError
    if isinstance(error, ValueError | TypeError):
        refused = ImageError(f"the model's image processor does not take the image: {first_line(error)}")
    else:
        refused = EngineError(f"the image processor failed: {first_line(error)}")
    refused.__cause__ = error
    return refused
