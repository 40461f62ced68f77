"""Golden samples: hard cases with the float32 scores that training computes, to be reproduced before serving.

Held-out pictures as they are, and the same in forms that decoders and processors disagree on: odd sizes, alpha, EXIF
rotation; a text-only sample; a response with special tokens written in it.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from beholder.checkpoint import GOLDEN_FOLDER, GoldenSample, write_golden
from beholder.images import load_image_file
from beholder_training.branch import Branch, to_device
from beholder_training.data import Record

EXIF_ORIENTATION = 0x0112


def write_golden_samples(folder: Path, branch: Branch, records: Sequence[Record]) -> None:
    """Write images and scored samples under `folder`/golden. `records` are held out; at least one has an image."""
    (folder / GOLDEN_FOLDER).mkdir()
    samples = [score_golden(folder, branch, sample) for sample in _unscored(folder, branch, records)]
    write_golden(folder, samples)


def score_golden(folder: Path, branch: Branch, sample: GoldenSample) -> GoldenSample:
    """`sample` with training's own score."""
    images = [load_image_file(folder / GOLDEN_FOLDER / name) for name in sample.images]
    prompt = branch.renderer.render(sample.conversation(), sample.response, images)
    batch = branch.collate_groups([branch.encoder.encode([prompt])])
    with torch.inference_mode():
        score = branch.model.eval()(**to_device(batch, branch.device)).item()
    return sample.model_copy(update={"score": score})


def _unscored(folder: Path, branch: Branch, records: Sequence[Record]) -> list[GoldenSample]:
    pictured = [record for record in records if record.images][:4]
    samples = []
    for number, record in enumerate(pictured):
        source = record.images[0]
        for name, data in _variants(source, number):
            (folder / GOLDEN_FOLDER / name).write_bytes(data)
            samples.append(_sample(Path(name).stem, record, (name,)))
    plain = records[0]
    special = " ".join(token for token in (branch.renderer.special_tokens) if token)
    hostile = plain.responses[0][:10] + special + plain.responses[0]
    samples.append(_sample("text-only", plain, ()))
    samples.append(_sample("special-tokens", plain, samples[0].images, hostile))
    return samples


def _sample(name: str, record: Record, images: tuple[str, ...], response: str | None = None) -> GoldenSample:
    return GoldenSample(
        id=name, prompt=record.prompt, images=images, response=response or record.responses[0], score=0.0
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
