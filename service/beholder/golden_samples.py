"""Golden samples: hard cases with the float32 scores of the model that is exported, to be reproduced before serving.

Pictures as they are, and the same in forms that decoders and processors disagree on: odd sizes, alpha, EXIF rotation;
two pictures in one conversation; text-only samples; a response with special tokens written in it. golden.py checks
them; training and `beholder adopt` write them.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image

from beholder.checkpoint import GOLDEN_FOLDER, GoldenSample, write_golden
from beholder.errors import CheckpointError, PromptTooLong
from beholder.images import load_image_file
from beholder.prompts import Prompt, PromptRenderer

EXIF_ORIENTATION = 0x0112
PICTURED = 4
PLAIN = 3


class Source(Protocol):
    """What a golden sample is made of: a prompt with its images and responses."""

    @property
    def prompt(self) -> str: ...

    @property
    def images(self) -> Sequence[Path]: ...

    @property
    def responses(self) -> Sequence[str]: ...


def write_golden_samples(
    folder: Path, renderer: PromptRenderer, score: Callable[[Prompt], float], sources: Sequence[Source]
) -> None:
    """Write images and scored samples under `folder`/golden.

    `score` is the float32 reward of a prompt. One source at least has an image, unless the model reads text alone;
    then the samples have none.
    """
    (folder / GOLDEN_FOLDER).mkdir()
    if renderer.image_token_id is None or renderer.model_input == "text":
        unscored = _text_samples(renderer, sources)
    else:
        unscored = _pictured_samples(folder, renderer, sources)
    write_golden(folder, list(_scored(folder, renderer, score, unscored)))


def _scored(
    folder: Path, renderer: PromptRenderer, score: Callable[[Prompt], float], samples: Sequence[GoldenSample]
) -> Iterator[GoldenSample]:
    """With their rewards; without one of several images that is longer than the model is trained for."""
    for sample in samples:
        images = [load_image_file(folder / GOLDEN_FOLDER / name) for name in sample.images]
        try:
            reward = score(renderer.render(sample.conversation(), sample.response, images))
        except PromptTooLong:
            if len(images) > 1:
                continue
            raise
        yield sample.model_copy(update={"score": reward})


def _text_samples(renderer: PromptRenderer, sources: Sequence[Source]) -> list[GoldenSample]:
    samples = [_sample(f"text-{number}", source, ()) for number, source in enumerate(sources[:PLAIN])]
    return [*samples, _with_special_tokens(renderer, sources[0], ())]


def _pictured_samples(folder: Path, renderer: PromptRenderer, sources: Sequence[Source]) -> list[GoldenSample]:
    samples = []
    for number, source in enumerate([source for source in sources if source.images][:PICTURED]):
        for name, data in _variants(source.images[0], number):
            (folder / GOLDEN_FOLDER / name).write_bytes(data)
            samples.append(_sample(Path(name).stem, source, (name,)))
    if not samples:
        raise CheckpointError("none of the held-out records has an image: a golden sample needs one")
    samples.append(_sample("two-pictures", sources[0], samples[0].images + samples[-1].images))
    samples.append(_sample("text-only", sources[0], ()))
    samples.append(_with_special_tokens(renderer, sources[0], samples[0].images))
    return samples


def _with_special_tokens(renderer: PromptRenderer, source: Source, images: tuple[str, ...]) -> GoldenSample:
    special = " ".join(token for token in renderer.special_tokens if token)
    return _sample("special-tokens", source, images, source.responses[0][:10] + special + source.responses[0])


def _sample(name: str, source: Source, images: tuple[str, ...], response: str | None = None) -> GoldenSample:
    return GoldenSample(
        id=name, prompt=source.prompt, images=images, response=response or source.responses[0], score=0.0
    )


def _variants(source: Path, number: int) -> list[tuple[str, bytes]]:
    """The picture's own bytes, and one of three hard forms in turn."""
    pixels = load_image_file(source).pixels
    plain = (f"plain-{number}{source.suffix.lower()}", source.read_bytes())
    width, height = pixels.size
    if number % 3 == 0:
        odd = pixels.resize((width + 37, max(height - 11, 28)))
        return [plain, (f"odd-size-{number}.png", _encode(odd, "PNG"))]
    if number % 3 == 1:
        alpha = pixels.convert("RGBA")
        alpha.putalpha(Image.linear_gradient("L").resize(alpha.size))
        return [plain, (f"alpha-{number}.png", _encode(alpha, "PNG"))]
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    return [plain, (f"exif-rotated-{number}.jpg", _encode(pixels, "JPEG", exif=exif, quality=95))]


def _encode(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()
