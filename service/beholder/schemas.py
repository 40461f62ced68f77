"""What the scoring routes read and answer. Strict: an unknown key or a number sent as a string is refused."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from beholder import openapi_examples as examples
from beholder.images.sources import ImageSource, Inline, Link, Stored
from beholder.prompts import IMAGE, Conversation, ImageSlot, ModelInput, Turn, single_turn

MAX_BATCH = 512
MAX_IMAGES = 64
MAX_MESSAGES = 512
MAX_PARTS = 512


Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class StoredImage(_Strict):
    """An image that was sent before with PUT /images/{sha256}."""

    sha256: Sha256

    def source(self) -> ImageSource:
        return Stored(self.sha256)


class LinkedImage(_Strict):
    """An image that the service fetches; refused unless the service allows the host."""

    url: Annotated[str, Field(max_length=4096)]

    def source(self) -> ImageSource:
        return Link(self.url)


def _image_kind(value: Any) -> str:
    if isinstance(value, str):
        return "inline"
    is_link = "url" in value if isinstance(value, dict) else isinstance(value, LinkedImage)
    return "linked" if is_link else "stored"


ImageInput = Annotated[
    Annotated[
        str,
        Tag("inline"),
        Field(
            description="A data URL or base64 of a PNG, JPEG, WebP or GIF file.", json_schema_extra={"format": "image"}
        ),
    ]
    | Annotated[StoredImage, Tag("stored")]
    | Annotated[LinkedImage, Tag("linked")],
    Discriminator(_image_kind),
]


class TextPart(_Strict):
    type: Literal["text"]
    text: str

    def part(self) -> str:
        return self.text


class ImagePart(_Strict):
    """The place of the next of `images`."""

    type: Literal["image"]

    def part(self) -> ImageSlot:
        return IMAGE


def _refuse_image_url(value: Any) -> Any:
    """Clients of OpenAI's API send it, and are told what stands in its place."""
    if isinstance(value, dict) and value.get("type") == "image_url":
        raise ValueError(
            'put {"type": "image"} here, and what `image_url` has as `url` into `images`:'
            ' a data URL as it is, a link as {"url": ...}'
        )
    return value


ContentPart = Annotated[TextPart | ImagePart, Field(discriminator="type"), BeforeValidator(_refuse_image_url)]


_Parts = Annotated[list[ContentPart], Field(min_length=1, max_length=MAX_PARTS)]


def content_kind(value: Any) -> str:
    """The tag of a message's content."""
    return "parts" if isinstance(value, list) else "text"


class Message(_Strict):
    role: Literal["system", "user", "assistant"]
    content: Annotated[Annotated[str, Tag("text")] | Annotated[_Parts, Tag("parts")], Discriminator(content_kind)]

    def turn(self) -> Turn:
        parts = (self.content,) if isinstance(self.content, str) else tuple(item.part() for item in self.content)
        return Turn(self.role, parts)


class _Context(_Strict):
    """What a response answers: a plain prompt (its images come first) or a conversation that ends with the user."""

    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    images: Annotated[list[ImageInput], Field(max_length=MAX_IMAGES)] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either `prompt` or `messages`")
        if self.messages and self.messages[-1].role != "user":
            raise ValueError("the last of `messages` must be the user's; the answer to it goes into `response`")
        return self

    def conversation(self, image_count: int) -> Conversation:
        if self.prompt is not None:
            return single_turn(self.prompt, image_count)
        return tuple(message.turn() for message in self.messages or ())

    def sources(self) -> tuple[ImageSource, ...]:
        return tuple(Inline(image) if isinstance(image, str) else image.source() for image in self.images)


ModelName = Annotated[str | None, Field(description="One of GET /models; the first if left out.", max_length=4096)]


class ScoreItem(_Context):
    """One response to one prompt."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.SCORE_ITEM]})

    response: str


class ScoreOne(ScoreItem):
    """One response to one prompt."""

    model: ModelName = None


class ScoreBatch(_Strict):
    """Several, each with a prompt of its own."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.SCORE_BATCH]})

    items: Annotated[list[ScoreItem], Field(min_length=1, max_length=MAX_BATCH)]
    model: ModelName = None


def _score_kind(value: Any) -> str:
    has_items = "items" in value if isinstance(value, dict) else isinstance(value, ScoreBatch)
    return "batch" if has_items else "single"


ScoreRequest = Annotated[
    Annotated[ScoreOne, Tag("single")] | Annotated[ScoreBatch, Tag("batch")], Discriminator(_score_kind)
]


class RankRequest(_Context):
    """Several responses to one prompt."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.RANK]})

    responses: Annotated[list[str], Field(min_length=1, max_length=MAX_BATCH)]
    top_n: Annotated[int | None, Field(ge=1, le=MAX_BATCH, description="How many entries `order` has at most.")] = None
    model: ModelName = None


Finite = Annotated[float, Field(allow_inf_nan=False)]


class Usage(_Strict):
    """Tokens after images were expanded; `cached_tokens` of them were not computed again."""

    prompt_tokens: int
    cached_tokens: int


class ScoreResponse(_Strict):
    """`scores` are raw logits in the request's order; `normalized` is there when the checkpoint is calibrated.

    `cached[i]`: the score was known and not computed again. `truncated[i]`: the prompt was too long and its beginning
    was cut, as the service is set to do; otherwise too long a prompt is refused.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [examples.SCORE_ANSWER]})

    scores: list[Finite]
    normalized: list[Finite] | None = None
    cached: list[bool]
    truncated: list[bool]
    model: str
    fingerprint: str
    usage: Usage


class RankResponse(ScoreResponse):
    """`ranks[i]` is the rank of response i (0 is best), `order` the responses from best to worst (the first `top_n`);
    ties keep the request's order."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.RANK_ANSWER]})

    ranks: list[int]
    order: list[int]
    best: int


class ImageReceipt(_Strict):
    """An image that is stored now, until at least `expires_in_s` seconds from now."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.RECEIPT]})

    sha256: Sha256
    bytes: int
    width: int
    height: int
    expires_in_s: Finite


class ModelCard(_Strict):
    """A model that is served. `names` are what requests may have as `model`.

    `input`: what it was trained on of a request's images, and so reads: `image`, `text` (nothing) or `blank_image` (a
    white square in place of each). `overlong` and what follows it are the service's settings: what it does with a
    prompt of more than `max_tokens`, and which images it refuses.
    """

    id: str
    names: list[str]
    engine: str
    fingerprint: str
    base_model: str
    architecture: str
    algorithm: str
    input: ModelInput
    dtype: str
    calibrated: bool
    max_tokens: int
    overlong: Literal["refuse", "truncate"]
    max_images: int
    max_image_bytes: int
    max_image_pixels: int
    max_image_aspect: float
    max_image_frames: int


class ModelList(_Strict):
    models: list[ModelCard]


class Problem(BaseModel):
    """RFC 9457. `code` is stable (docs/errors.md), `detail` is for people."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.PROBLEM]})

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str
    request_id: str | None = None
