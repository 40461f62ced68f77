"""Is a record within a base's length, with its images expanded? Needs the base's processor, not its weights."""

from beholder.images import load_image_file
from beholder.modeling.inputs import PromptEncoder
from beholder.prompts import PromptRenderer, single_turn
from beholder_training.branch import resolve_base
from beholder_training.data import Record


class LengthCheck:
    """Renders and expands every response as training does. `base` is a folder or hub name."""

    def __init__(self, base: str, max_length: int) -> None:
        folder = resolve_base(base)
        self._renderer = PromptRenderer.from_folder(folder)
        self._encoder = PromptEncoder.from_folder(folder, self._renderer.image_token_id, max_length)

    def __call__(self, record: Record) -> None:
        """Raises PromptTooLong, InvalidText, ImageError."""
        images = [load_image_file(path) for path in record.images]
        conversation = single_turn(record.prompt, len(images))
        self._encoder.encode([self._renderer.render(conversation, response, images) for response in record.responses])
