"""What the scoring routes read and answer. Strict: an unknown key or a number sent as a string is refused."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from beholder.prompts import IMAGE, Conversation, ImageSlot, Turn, single_turn

MAX_BATCH = 512
MAX_IMAGES = 64
MAX_MESSAGES = 512
MAX_PARTS = 512


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


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


ContentPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]


_Parts = Annotated[list[ContentPart], Field(min_length=1, max_length=MAX_PARTS)]


def _content_kind(value: Any) -> str:
    return "parts" if isinstance(value, list) else "text"


class Message(_Strict):
    role: Literal["system", "user", "assistant"]
    content: Annotated[Annotated[str, Tag("text")] | Annotated[_Parts, Tag("parts")], Discriminator(_content_kind)]

    def turn(self) -> Turn:
        parts = (self.content,) if isinstance(self.content, str) else tuple(item.part() for item in self.content)
        return Turn(self.role, parts)


class _Context(_Strict):
    """What a response answers: a plain prompt (its images come first) or a conversation that ends with the user."""

    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    images: Annotated[list[str], Field(max_length=MAX_IMAGES)] = Field(
        default_factory=list, description="Data URLs or base64 of PNG, JPEG, WebP or GIF files."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either `prompt` or `messages`")
        if self.messages and self.messages[-1].role != "user":
            raise ValueError("the last of `messages` must be the user's; the answer to it goes into `response`")
        return self

    def conversation(self) -> Conversation:
        if self.prompt is not None:
            return single_turn(self.prompt, len(self.images))
        return tuple(message.turn() for message in self.messages or ())


class ScoreItem(_Context):
    response: str


class ScoreBatch(_Strict):
    items: Annotated[list[ScoreItem], Field(min_length=1, max_length=MAX_BATCH)]


def _score_kind(value: Any) -> str:
    has_items = "items" in value if isinstance(value, dict) else isinstance(value, ScoreBatch)
    return "batch" if has_items else "single"


ScoreRequest = Annotated[
    Annotated[ScoreItem, Tag("single")] | Annotated[ScoreBatch, Tag("batch")], Discriminator(_score_kind)
]


class RankRequest(_Context):
    responses: Annotated[list[str], Field(min_length=1, max_length=MAX_BATCH)]


class Usage(_Strict):
    """Tokens after images were expanded; `cached_tokens` of them were not computed again."""

    prompt_tokens: int
    cached_tokens: int


class ScoreResponse(_Strict):
    """`scores` are raw logits in the request's order; `normalized` is there when the checkpoint is calibrated."""

    scores: list[float]
    normalized: list[float] | None = None
    fingerprint: str
    usage: Usage


class RankResponse(ScoreResponse):
    """`ranks[i]` is the rank of response i (0 is best), `order` the responses from best to worst; ties keep the
    request's order."""

    ranks: list[int]
    order: list[int]
    best: int


class ModelCard(_Strict):
    """The checkpoint that is served."""

    engine: str
    fingerprint: str
    base_model: str
    architecture: str
    algorithm: str
    dtype: str
    calibrated: bool
    max_tokens: int
    max_images: int


class ModelList(_Strict):
    models: list[ModelCard]


class Problem(BaseModel):
    """RFC 9457. `code` is stable, `detail` is for people."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str
