"""Conversation, response and images -> the token ids that the model reads.

Training, export and every engine render here, so train and serve cannot drift apart. The chat template is rendered
once for each shape of conversation, with a sentinel in place of every text; the texts are then put in. So no text is
ever interpreted by the template, and a special token written in a text (`<|im_end|>`, an image placeholder) is encoded
as plain characters: it cannot end a turn, add an image or cut a response. For text without special tokens the ids are
exactly those of the rendered string: where the template trims texts (Llama 3) they are trimmed, and what it rewrites in
other ways (thoughts, Qwen3) is refused.

A model that was trained without images, or with blank ones, is shown what it was trained on, whatever a sample holds.

Each image stands as one placeholder token; engines expand it (expansion depends on the picture's size).
"""

import copy
import json
import re
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

from beholder.errors import CheckpointError, EmptyResponse, ImageMismatch, InvalidText, TemplateMismatch
from beholder.images import LoadedImage, blank_image
from beholder.token_bound import TokenBound, token_bound

Role = Literal["system", "user", "assistant"]
ModelInput = Literal["image", "text", "blank_image"]
"""What a model was trained on of a sample's images: themselves, nothing, or a white square in place of each."""


@dataclass(frozen=True, slots=True)
class ImageSlot:
    """The place of one image inside a turn; slots take the images in order."""


IMAGE: Final = ImageSlot()
MAX_KEPT_CHARACTERS: Final = 2048
MAX_LAST_CHARACTERS: Final = 2**20
"""Longer texts than MAX_KEPT_CHARACTERS are kept up to this length, but only the last few: the responses of a request
share a prompt."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message: who speaks, and its parts in order."""

    role: Role
    parts: tuple[str | ImageSlot, ...]


Conversation = tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What an engine scores. `token_ids` has one placeholder a picture, in the order of `images`."""

    token_ids: tuple[int, ...]
    images: tuple[LoadedImage, ...]


def single_turn(prompt: str, image_count: int) -> Conversation:
    """The conversation of a plain `prompt`: its images first, then the text."""
    return (Turn("user", (*[IMAGE] * image_count, prompt)),)


def without_images(conversation: Conversation) -> Conversation:
    """The same turns without their image slots."""
    return tuple(
        replace(turn, parts=tuple(part for part in turn.parts if isinstance(part, str)) or ("",))
        for turn in conversation
    )


_SENTINEL = "\ue0f0{}\ue0f1"
_SENTINEL_PATTERN = re.compile("\ue0f0(\\d+)\ue0f1")
_Shape = tuple[tuple[Role, tuple[bool, ...]], ...]  # a conversation without its texts; True is an image slot
_REWRITTEN: Final = ("  a\t", "\n\na\n\n", "<think>\na\n</think>\n\na", "a</think>a", "<image> [INST] a </s>")
"""Texts that chat templates are known to write otherwise than they are given."""
_PROBED: Final[tuple[_Shape, ...]] = tuple(
    tuple((role, (False,)) for role in roles)
    for roles in (("user", "assistant"), ("system", "user", "assistant"), ("user", "assistant") * 2)
)
"""Conversations in which that is tried."""


class PromptRenderer:
    """Renders for one checkpoint.

    `tokenizer` is a fast Hugging Face tokenizer with a chat template, `image_token_id` the placeholder's id, or None
    for a text-only architecture; `model_input` is what the model was trained on. Raises CheckpointError when template
    and tokenizer cannot be rendered exactly.
    """

    def __init__(self, tokenizer: Any, image_token_id: int | None, model_input: ModelInput = "image") -> None:
        self.image_token_id = image_token_id
        self.model_input: ModelInput = model_input
        self._template = tokenizer
        image_token = None if image_token_id is None else tokenizer.convert_ids_to_tokens(image_token_id)
        self._backend, self._special_ids, self._bound = _plain_backend(tokenizer, image_token)
        by_length = sorted(self._special_ids, key=len, reverse=True)
        self._special_pattern = re.compile("|".join(re.escape(token) for token in by_length))
        self._pieces = lru_cache(maxsize=256)(self._render_pieces)
        self._short = lru_cache(maxsize=1024)(self._encode_text)
        self._last = lru_cache(maxsize=4)(self._encode_text)
        self._rewrites = self._finds_rewritten()
        self._check_exact()

    @classmethod
    def from_folder(cls, folder: Path, model_input: ModelInput = "image") -> "PromptRenderer":
        """The renderer of a checkpoint or base model folder."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        return cls(tokenizer, read_image_token_id(folder), model_input)

    def reading(self, model_input: ModelInput) -> "PromptRenderer":
        """The same template and tokenizer for a model that was trained on this input."""
        other = copy.copy(self)
        other.model_input = model_input
        return other

    @property
    def chat_template(self) -> str:
        return str(self._template.chat_template)

    @property
    def template_tokens(self) -> tuple[str, str]:
        """The tokens for the beginning and the end of a sequence, which templates name; empty where there is none."""
        return str(self._template.bos_token or ""), str(self._template.eos_token or "")

    @property
    def special_tokens(self) -> list[str]:
        """Every string that is a control token in the template and plain text in a conversation."""
        return list(self._special_ids)

    def render(self, conversation: Conversation, response: str, images: Sequence[LoadedImage] = ()) -> Prompt:
        """The prompt for `response` as the assistant's answer to `conversation`, as the model was trained to read it.

        Raises EmptyResponse, ImageMismatch, InvalidText, TemplateMismatch.
        """
        if not response.strip():
            raise EmptyResponse("the response is empty: a reward needs a response")
        slots = sum(part is IMAGE for turn in conversation for part in turn.parts)
        if self.image_token_id is None and self.model_input != "text" and (slots or images):
            raise ImageMismatch("this reward model reads text alone: leave the images out, or serve a model that sees")
        if slots != len(images):
            raise ImageMismatch(f"the conversation has {slots} image places but {len(images)} images were given")
        if self.model_input == "text":
            conversation, images = without_images(conversation), ()
        elif self.model_input == "blank_image":
            images = [blank_image()] * len(images)
        return Prompt(self.token_ids(conversation, response), tuple(images))

    def token_ids(self, conversation: Conversation, response: str) -> tuple[int, ...]:
        """The ids alone; one placeholder an image slot. Raises InvalidText, TemplateMismatch."""
        turns = (*conversation, Turn("assistant", (response,)))
        shape = tuple((turn.role, tuple(isinstance(part, ImageSlot) for part in turn.parts)) for turn in turns)
        texts = [part for turn in turns for part in turn.parts if isinstance(part, str)]
        pieces = self._pieces(shape)
        if self._rewrites:
            texts = _as_written(self._rendered(shape, texts), pieces, texts)
        return tuple(self._encode(pieces, texts))

    def least_tokens(self, conversation: Conversation, response: str) -> int:
        """A number of tokens that the prompt has at least, known without encoding it; 0 where the tokenizer gives no
        bound."""
        texts = [part for turn in conversation for part in turn.parts if isinstance(part, str)]
        return 0 if self._bound is None else self._bound.least_tokens([*texts, response])

    def most_characters(self, tokens: int) -> int | None:
        """Texts of more characters have more than `tokens` tokens; None where the tokenizer gives no bound."""
        return None if self._bound is None else self._bound.most_characters(tokens)

    def drop_tokens(self, text: str, count: int) -> tuple[str, int]:
        """`text` without the characters of its first `count` tokens (or without all), and how many tokens went.

        Of a character that several tokens spell each has the whole as its place: all of them go, or none. `count` is
        at least 1, and so is the number of characters that go.
        """
        offsets = self._backend.encode_batch([text], add_special_tokens=False)[0].offsets  # see _encode_text
        if len(offsets) <= count:
            return "", len(offsets)
        end = max(1, *(end for _, end in offsets[:count]))
        return text[end:], sum(start < end for start, _ in offsets)

    def _render_pieces(self, shape: _Shape) -> tuple[str, ...]:
        """The template's own text around the n texts of a conversation: n + 1 pieces."""
        count = _text_count(shape)
        rendered = self._rendered(shape, [_SENTINEL.format(index) for index in range(count)])
        found = [int(number) for number in _SENTINEL_PATTERN.findall(rendered)]
        if found != list(range(count)):
            raise CheckpointError(
                f"the chat template must show each of the {count} texts once and in order; it shows {found}"
            )
        return tuple(_SENTINEL_PATTERN.split(rendered)[::2])

    def _rendered(self, shape: _Shape, texts: Sequence[str]) -> str:
        """The conversation as the template writes it."""
        remaining = iter(texts)
        messages: list[dict[str, Any]] = []
        for role, parts in shape:
            content: list[dict[str, str]] = [
                {"type": "image"} if is_image else {"type": "text", "text": next(remaining)} for is_image in parts
            ]
            if self.image_token_id is None:  # the templates of text models take a string
                messages.append({"role": role, "content": "".join(part["text"] for part in content)})
            else:
                messages.append({"role": role, "content": content})
        try:
            return str(self._template.apply_chat_template(messages, tokenize=False))
        except Exception as error:
            # Chat templates are programs of the checkpoint and raise what they like.
            raise CheckpointError(f"the chat template fails on roles {[role for role, _ in shape]}: {error}") from None

    def _finds_rewritten(self) -> bool:
        """Whether the template writes some texts otherwise than they are given."""
        return any(self._writes_otherwise(shape, text) for shape in _PROBED for text in _REWRITTEN)

    def _writes_otherwise(self, shape: _Shape, text: str) -> bool:
        try:
            texts = [text] * _text_count(shape)
            return self._rendered(shape, texts) != _joined(self._pieces(shape), texts)
        except CheckpointError:
            return False  # it takes no such conversation

    def _encode(self, pieces: tuple[str, ...], texts: list[str]) -> list[int]:
        """Special tokens count in the template's pieces alone; between two of them everything is encoded as one."""
        ids: list[int] = []
        plain = ""
        for piece, text in zip(pieces, [*texts, ""], strict=True):
            start = 0
            for match in self._special_pattern.finditer(piece):
                ids += self._encode_plain(plain + piece[start : match.start()])
                ids.append(self._special_ids[match.group()])
                plain, start = "", match.end()
            plain += piece[start:] + text
        ids += self._encode_plain(plain)
        return ids

    def _encode_plain(self, text: str) -> "array[int]":
        """Prompts come back with every response; of long texts few are kept, for memory."""
        if len(text) <= MAX_KEPT_CHARACTERS:
            return self._short(text)
        return self._last(text) if len(text) <= MAX_LAST_CHARACTERS else self._encode_text(text)

    def _encode_text(self, text: str) -> "array[int]":
        """As a batch of one: unlike `encode` that computes no offsets, which takes a quarter of the time, and leaves
        the interpreter to other threads, above all the event loop."""
        if not text:
            return array("I")
        with _refusing_surrogates():
            return array("I", self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def _check_exact(self) -> None:
        """Segment by segment must give the ids of the whole string, or stock clients would get other scores."""
        question, answer = "Which  one is it?\n(a) or (b)", "It is é, the 2nd one."
        slots = () if self.image_token_id is None else (True,)
        rendered = self._rendered((("user", (*slots, False)), ("assistant", (False,))), [question, answer])
        whole = self._template(rendered, add_special_tokens=False)["input_ids"]
        if self.token_ids(single_turn(question, len(slots)), answer) != tuple(whole):
            raise CheckpointError(
                "this tokenizer encodes text beside special tokens in a way that Beholder cannot reproduce"
            )
        if slots and whole.count(self.image_token_id) != 1:
            raise CheckpointError(
                f"the chat template gives an image {whole.count(self.image_token_id)} placeholders, not 1"
            )


def _text_count(shape: _Shape) -> int:
    return sum(not is_image for _, parts in shape for is_image in parts)


def _joined(pieces: Sequence[str], texts: Sequence[str]) -> str:
    return "".join(piece + text for piece, text in zip(pieces, [*texts, ""], strict=True))


def _as_written(rendered: str, pieces: Sequence[str], texts: Sequence[str]) -> list[str]:
    """The texts as the template has written them between its pieces: whole, or trimmed. Raises TemplateMismatch."""
    written: list[str] = []
    position = len(pieces[0])
    for text, piece in zip(texts, pieces[1:], strict=True):
        trimmed = (text, text.rstrip(), text.lstrip(), text.strip(), text.lstrip("\n"), text.strip("\n"))
        written.append(next((each for each in trimmed if rendered.startswith(each + piece, position)), text))
        position += len(written[-1]) + len(piece)
    if _joined(pieces, written) != rendered:
        raise TemplateMismatch(
            "the model's chat template rewrites a text of the conversation, which would be scored as something else: "
            "leave thoughts (<think>) and marks of the template out of it"
        )
    return written


@contextmanager
def _refusing_surrogates() -> Iterator[None]:
    try:
        yield
    except (TypeError, UnicodeEncodeError):
        raise InvalidText("the text has a lone surrogate: it is not valid Unicode, send UTF-8") from None


def read_image_token_id(folder: Path) -> int | None:
    """The image placeholder's id, from config.json; None for a text-only model."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from None
    for key in ("image_token_id", "image_token_index"):
        if isinstance(config.get(key), int):
            return int(config[key])
    if "vision_config" in config:
        raise CheckpointError(f"{folder / 'config.json'} names no image_token_id: the place of an image is unknown")
    return None


def _plain_backend(tokenizer: Any, image_token: str | None) -> tuple[Any, dict[str, int], TokenBound | None]:
    """A private tokenizer that encodes special tokens as plain text, the special tokens' ids, the tokenizer's bound."""
    from tokenizers import Tokenizer

    if not getattr(tokenizer, "is_fast", False):
        raise CheckpointError("the tokenizer has no tokenizer.json (a fast tokenizer is needed)")
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in description["added_tokens"]:
        token["special"] = token["special"] or token["content"] == image_token
    backend = Tokenizer.from_str(json.dumps(description))
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    special = {token["content"]: int(token["id"]) for token in description["added_tokens"] if token["special"]}
    return backend, special, token_bound(description)
