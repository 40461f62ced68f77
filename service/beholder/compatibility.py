"""The shapes that trainers and other clients already speak; trainer-facing errors never have `scores` or `rewards`.

Keys that would change what is scored and are not known here are refused; those of trainers that carry nothing for a
score (`labels`) are read and left alone.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from beholder import openapi_examples as examples
from beholder.images.sources import ImageSource, Inline, Link
from beholder.markers import split
from beholder.prompts import IMAGE, Conversation, ImageSlot, Turn
from beholder.schemas import MAX_BATCH, MAX_MESSAGES, MAX_PARTS, Finite, ModelName, TextPart, content_kind

MAX_TEXTS = 4096
"""Strings in one request of a trainer."""


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ImageUrl(_Shape):
    url: Annotated[str, Field(min_length=1)]
    detail: Literal["auto", "low", "high"] | None = None


class ImageUrlPart(_Shape):
    """OpenAI's shape of an image: a data URL, or one to be fetched."""

    type: Literal["image_url"]
    image_url: ImageUrl

    def source(self) -> ImageSource:
        url = self.image_url.url
        return Inline(url) if url[:5].lower() == "data:" else Link(url)


ChatPart = Annotated[TextPart | ImageUrlPart, Field(discriminator="type")]
ChatParts = Annotated[list[ChatPart], Field(min_length=1, max_length=MAX_PARTS)]


Content = Annotated[Annotated[str, Tag("text")] | Annotated[ChatParts, Tag("parts")], Discriminator(content_kind)]


class ChatMessage(_Shape):
    role: Literal["system", "user", "assistant"]
    content: Content


Chat = Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]


def read_content(
    role: str, content: str | list[TextPart | ImageUrlPart], max_images: int
) -> tuple[Any, list[ImageSource]]:
    """Parts of a turn and its images. Markers count in the user's text alone. Raises TooManyImages where one text has
    more."""
    parts: list[str | ImageSlot] = []
    sources: list[ImageSource] = []
    for item in [content] if isinstance(content, str) else content:
        if isinstance(item, ImageUrlPart):
            parts.append(IMAGE)
            sources.append(item.source())
            continue
        text = item if isinstance(item, str) else item.text
        texts, images = split(text, max_images) if role == "user" else ((text,), ())
        parts += texts
        sources += images
    return tuple(parts), sources


def read_chat(messages: list[ChatMessage], max_images: int) -> tuple[Conversation, tuple[ImageSource, ...]]:
    """Chat messages as a conversation and the images of its slots. Raises TooManyImages where one text has more."""
    turns: list[Turn] = []
    sources: list[ImageSource] = []
    for message in messages:
        parts, images = read_content(message.role, message.content, max_images)
        turns.append(Turn(message.role, parts))
        sources += images
    return tuple(turns), tuple(sources)


def text_of(content: str | list[TextPart | ImageUrlPart]) -> str | None:
    """The text of a response; None when there is an image in it."""
    if isinstance(content, str):
        return content
    texts = [part.text for part in content if isinstance(part, TextPart)]
    return "".join(texts) if len(texts) == len(content) else None


Texts = Annotated[list[str], Field(max_length=MAX_TEXTS)]


def _input_kind(value: Any) -> str:
    return "many" if isinstance(value, list) else "one"


class ClassifyRequest(_Shape):
    """vLLM's: `input` is rendered by the reward model's template, or by the policy's; or a chat with its answer."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.CLASSIFY]})

    model: ModelName = None
    input: Annotated[Annotated[str, Tag("one")] | Annotated[Texts, Tag("many")], Discriminator(_input_kind)] | None = (
        None
    )
    messages: Chat | None = None
    use_activation: bool | None = None
    activation: bool | None = None
    user: str | None = None
    priority: int = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.input is None) == (self.messages is None):
            raise ValueError("give either `input` or `messages`")
        if self.messages and (len(self.messages) < 2 or self.messages[-1].role != "assistant"):
            raise ValueError("the last of `messages` must be the assistant's: it is what is scored")
        return self

    @property
    def raw(self) -> bool:
        """Whether probabilities are raw logits; vLLM's default is a sigmoid."""
        chosen = self.use_activation if self.use_activation is not None else self.activation
        return chosen is False


class ClassifyItem(_Shape):
    index: int
    label: str
    probs: list[Finite]
    num_classes: int


class TokenUsage(_Shape):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class ClassifyResponse(_Shape):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[ClassifyItem]
    usage: TokenUsage


class QueryParts(_Shape):
    content: ChatParts


class DocumentText(_Shape):
    text: str


def _document_kind(value: Any) -> str:
    if isinstance(value, str):
        return "string"
    is_text = "text" in value if isinstance(value, dict) else isinstance(value, DocumentText)
    return "text" if is_text else "parts"


Document = Annotated[
    Annotated[str, Tag("string")] | Annotated[DocumentText, Tag("text")] | Annotated[QueryParts, Tag("parts")],
    Discriminator(_document_kind),
]
Query = Annotated[
    Annotated[str, Tag("string")] | Annotated[QueryParts, Tag("parts")],
    Discriminator(lambda value: "string" if isinstance(value, str) else "parts"),
]


class RerankRequest(_Shape):
    """Cohere's and Jina's: the query is the prompt, the documents are responses."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.RERANK]})

    model: ModelName = None
    query: Query
    documents: Annotated[list[Document], Field(max_length=MAX_BATCH)]
    top_n: Annotated[int | None, Field(ge=0, le=MAX_BATCH, description="0 and null mean all.")] = None
    return_documents: bool = True
    use_activation: bool = True


class RerankResult(_Shape):
    index: int
    document: DocumentText | None = None
    relevance_score: Finite


class RerankUsage(_Shape):
    prompt_tokens: int
    total_tokens: int


class RerankResponse(_Shape):
    """Best first. `relevance_score` is the logit's sigmoid, or the logit itself when `use_activation` is false."""

    id: str
    model: str
    usage: RerankUsage
    results: list[RerankResult]


class _TrainerShape(BaseModel):
    """A trainer's next version may send more."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class OpenRLHFRequest(_TrainerShape):
    """`query[i]` is `prompts[i]`, rendered by the policy's template, and the response after it."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.OPENRLHF]})

    query: Texts
    prompts: Texts
    labels: list[Any] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.query) != len(self.prompts):
            raise ValueError(f"`query` has {len(self.query)} strings and `prompts` {len(self.prompts)}")
        for index, (query, prompt) in enumerate(zip(self.query, self.prompts, strict=True)):
            if not query.startswith(prompt):
                raise ValueError(
                    f"query[{index}] does not begin with prompts[{index}]: where OpenRLHF expands image places in it, "
                    "use the Python file for it (docs/clients.md)"
                )
        return self


class OpenRLHFResponse(_Shape):
    """Every value is a list of numbers of the request's length, as OpenRLHF reads them."""

    rewards: list[Finite]
    scores: list[Finite]
    extra_logs: dict[str, list[Finite]]


class LlamaFactoryRequest(_TrainerShape):
    """`messages` are whole strings in the policy's template. `model` is LLaMA-Factory's constant and not read."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.LLAMA_FACTORY]})

    messages: Texts


class LlamaFactoryResponse(_Shape):
    scores: list[Finite]


class SlimeRequest(_TrainerShape):
    """`prompt` is a string in the policy's template, or messages."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.SLIME]})

    prompt: Annotated[
        Annotated[str, Tag("text")]
        | Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES), Tag("messages")],
        Discriminator(lambda value: "messages" if isinstance(value, list) else "text"),
    ]
    response: str
    label: Any = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.prompt, list) and self.prompt[-1].role != "user":
            raise ValueError("the last message of `prompt` must be the user's")
        return self
