"""Is a record within a base's length, with its images expanded? Needs the base's processor, not its weights."""

from collections.abc import Mapping
from typing import Any

from beholder.errors import BeholderError
from beholder.images import blank_image, load_image_file
from beholder.modeling.inputs import PromptEncoder
from beholder.prompts import PromptRenderer, single_turn
from beholder_training.branch import resolve_base
from beholder_training.config import ProxyInput
from beholder_training.data import Record


class LengthCheck:
    """Renders and expands every response as training does. `base` is a folder or hub name.

    image_options: the run's. proxy_input: measure what the proxy sees, instead of the images. Raises CheckpointError.
    """

    def __init__(
        self,
        base: str,
        max_length: int,
        proxy_input: ProxyInput | None = None,
        image_options: Mapping[str, Any] | None = None,
    ) -> None:
        folder = resolve_base(base)
        self._proxy_input = proxy_input
        self._renderer = PromptRenderer.from_folder(folder)
        self._encoder = PromptEncoder.from_folder(folder, self._renderer.image_token_id, max_length)
        self._encoder.set_image_options(image_options or {})

    def __call__(self, record: Record) -> None:
        """Raises PromptTooLong, InvalidText, ImageError."""
        try:
            self._encode(record)
        except BeholderError as error:
            raise (error.at("for the proxy") if self._proxy_input else error) from None

    def _encode(self, record: Record) -> None:
        match self._proxy_input:
            case "text_only":
                images = []
            case "blank_image":
                images = [blank_image()] * len(record.images)
            case None:
                images = [load_image_file(path) for path in record.images]
        conversation = single_turn(record.prompt, len(images))
        self._encoder.encode([self._renderer.render(conversation, response, images) for response in record.responses])
