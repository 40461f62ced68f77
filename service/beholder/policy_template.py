"""Strings that a trainer rendered with its policy's chat template, back to turns and response.

The template is rendered with sentinels in place of texts; what stands between them is looked for in the string. The
turns found must render to the identical string again, or the string is refused: it is in another template, and would
be scored as something that nobody wrote.

A template's own marks inside a text cannot be told from real ones. So where a trainer sends the prompt beside the
whole (OpenRLHF), only the prompt is parsed, and the response is all that follows, whatever it holds. Where it sends
the whole alone (LLaMA-Factory), a response that forges turns may be read as turns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, NoReturn

from beholder.chat_jinja import compile_template
from beholder.errors import ConfigurationError, TemplateMismatch
from beholder.prompts import Role

PLAIN: Final = "plain"
NAMES: Final = {"chatml": "", "llama-3": "<|begin_of_text|>", "gemma": "<bos>", "mistral": "<s>"}
"""The templates that come with the service, and how their strings begin."""
ENDS: Final = {
    "chatml": ("<|im_end|>", "<|endoftext|>"),
    "llama-3": ("<|eot_id|>", "<|end_of_text|>"),
    "gemma": ("<end_of_turn>", "<eos>"),
    "mistral": ("</s>",),
}
"""What a policy of each may end its response with: the end of the turn, or that of all text."""
NO_THOUGHTS: Final = "<think>\n\n</think>\n\n"
THOUGHTS: Final = (NO_THOUGHTS, "<think>\n")
"""What templates of thinking models (Qwen3's) put behind the generation prompt: no thoughts, or where they begin."""
MAX_QUESTIONS: Final = 256
"""User turns of a string."""
_SENTINEL: Final = "\ue0f2"
_MISMATCH: Final = (
    "the string is not in the template that the service is set to read (policy_template): set the policy's"
)

Texts = tuple[tuple[Role, str], ...]
"""Roles and texts of a conversation, which ends with the user."""


class PolicyTemplate:
    """One chat template, of which `prompt` and `exchange` read strings.

    `source` is Jinja; bos_token and eos_token are empty in it unless they are given. `ends` are what a response may
    end with beside the template's own end of a turn and eos_token.
    Raises ConfigurationError when it cannot be read back.
    """

    def __init__(
        self,
        source: str,
        bos_token: str = "",
        eos_token: str = "",
        name: str = "the template",
        ends: Sequence[str] = (),
    ) -> None:
        self._template = compile_template(source, name)
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._as_parts = False
        self._pieces = lru_cache(maxsize=4 * MAX_QUESTIONS)(self._render_pieces)
        try:
            self._begin, self._lead, self._end = self._probe()
        except _Unreadable:
            self._as_parts = True  # templates of multimodal models may take lists of parts alone
            try:
                self._begin, self._lead, self._end = self._probe()
            except _Unreadable as error:
                raise ConfigurationError(f"policy_template: {name}: {error}") from None
        self._ends = tuple(filter(None, (self._end, self._end.rstrip(), *ends, eos_token)))

    @cached_property
    def image_place(self) -> str:
        """What the template writes in place of an image; empty where it writes nothing."""
        text = {"type": "text", "text": _SENTINEL}
        try:
            without, with_one = (
                self._render_messages([{"role": "user", "content": content}], generation=False).partition(_SENTINEL)
                for content in ([text], [{"type": "image"}, text])
            )
        except _Unreadable:
            return ""
        before = without[0].rstrip()
        shown = without[1] and with_one[1] and with_one[0].startswith(before)
        return with_one[0].removeprefix(before).strip() if shown else ""

    def prompt(self, text: str) -> Texts:
        """The conversation of a string that ends where the response begins. Raises TemplateMismatch.

        Where it begins thoughts, the response goes on with them, and is what the policy wrote all the same.
        """
        text = self._with_bos(text)
        found = self._find(text)
        for opening in THOUGHTS:
            if found is None and text.endswith(opening):
                found = self._find(text.removesuffix(opening))
        if found is None:
            raise TemplateMismatch(_MISMATCH)
        return found[0]

    def response(self, text: str) -> str:
        """What the policy wrote, without an end of the turn or of all text, once, at the very end."""
        return self._cut(text.removeprefix(self._lead))

    def exchange(self, text: str) -> tuple[Texts, str]:
        """The conversation and the response of a string that has both. Raises TemplateMismatch.

        Either the template rendered the response too (for vLLM), or the policy wrote it after the prompt
        (LLaMA-Factory); a template may do the two differently. Then the reading that finds fewer questions has taken
        turns for text.
        Before the response an empty block of thoughts is the prompt's; any other was written by the policy, or may be.
        """
        text = self._with_bos(text)
        rendered = self._find(self._closed(text), answered=True)
        written = self._find(text, open_end=True)
        if rendered and (not written or _questions(rendered[0]) >= _questions(written[0])):
            texts, _ = rendered
            return texts[:-1], texts[-1][1].removeprefix(NO_THOUGHTS)
        if not written:
            raise TemplateMismatch(_MISMATCH)
        texts, position = written
        return texts, self.response(text[position:]).removeprefix(NO_THOUGHTS)

    def _with_bos(self, text: str) -> str:
        """Trainers leave it out where the tokenizer puts it."""
        bos = self._tokens["bos_token"]
        return text if text.startswith(bos) or not self._begin.startswith(bos) else bos + text

    def _closed(self, text: str) -> str:
        """With the whole end of the last turn: generation stops in it, or before it at the length limit."""
        return self._cut(text) + self._end

    def _cut(self, text: str) -> str:
        end = next(filter(text.endswith, self._ends), "")
        return text.removesuffix(end)

    def _find(self, text: str, *, answered: bool = False, open_end: bool = False) -> tuple[Texts, int] | None:
        """The conversation with the most turns that renders to `text`, up to the position that is returned too.

        `answered`: it ends with the response. `open_end`: anything may follow it. Raises TemplateMismatch when there
        may be more turns than are read, which would be taken for text.
        """
        found: list[_Match] = []
        for questions in range(1, MAX_QUESTIONS + 1):
            shapes = reversed(_shapes(questions, answered=answered))
            matches = [self._match(text, roles, open_end=open_end) for roles in shapes]
            if not any(matches):
                break
            found += filter(None, matches)
        else:
            raise TemplateMismatch(f"the string has more than the {MAX_QUESTIONS} turns of the user that are read")
        for match in reversed(found):
            texts = match.texts(text)
            if self._renders(texts, text[: match.end]):
                return texts, match.end
        return None

    def _match(self, text: str, roles: tuple[Role, ...], *, open_end: bool) -> "_Match | None":
        """Where the texts between the template's pieces are."""
        try:
            first, *between, last = self._pieces(roles)
        except _Unreadable:
            return None  # this template has no such conversation
        if not text.startswith(first):
            return None
        spans, position = [], len(first)
        for piece in between:
            start = text.find(piece, position)
            if start < 0:
                return None
            spans.append((position, start))
            position = start + len(piece)
        start = text.find(last, position) if open_end else len(text) - len(last)
        if start < position or not text.startswith(last, start):
            return None
        spans.append((position, start))
        return _Match(roles, spans, start + len(last))

    def _renders(self, texts: Texts, expected: str) -> bool:
        try:
            return self._render(texts) == expected
        except _Unreadable:
            return False

    def _probe(self) -> tuple[str, str, str]:
        """What begins a string, what stands before a response besides the generation prompt, and what ends it."""
        begin, generation = self._pieces(("user",))
        _, middle, end = self._pieces(("user", "assistant"))
        return begin, middle.removeprefix(generation) if middle.startswith(generation) else "", end

    def _render_pieces(self, roles: tuple[Role, ...]) -> tuple[str, ...]:
        pieces = self._render([(role, _SENTINEL) for role in roles]).split(_SENTINEL)
        if len(pieces) != len(roles) + 1 or not all(pieces[1:]):
            raise _Unreadable("it does not show each text once, with something after it")
        return tuple(pieces)

    def _render(self, conversation: Sequence[tuple[Role, str]]) -> str:
        """With the generation prompt where the user has the last word."""
        generation = conversation[-1][0] == "user"
        return self._render_messages(
            [
                {"role": role, "content": [{"type": "text", "text": text}] if self._as_parts else text}
                for role, text in conversation
            ],
            generation=generation,
        )

    def _render_messages(self, messages: list[dict[str, Any]], *, generation: bool) -> str:
        try:
            return str(self._template.render(messages=messages, add_generation_prompt=generation, **self._tokens))
        except Exception as error:
            # Chat templates are programs and raise what they like; also to say that they take no system turn.
            raise _Unreadable(f"it fails: {error}") from None


class PlainTemplate(PolicyTemplate):
    """Strings without a template: the prompt is one user turn."""

    def __init__(self) -> None:
        pass

    @cached_property
    def image_place(self) -> str:
        return ""

    def prompt(self, text: str) -> Texts:
        return (("user", text),)

    def response(self, text: str) -> str:
        return text

    def exchange(self, text: str) -> NoReturn:
        raise TemplateMismatch("without a template nobody knows where the response begins: set policy_template")


def open_template(name: str) -> PolicyTemplate:
    """The template of a name in NAMES, PLAIN, or a file. Raises ConfigurationError."""
    if name == PLAIN:
        return PlainTemplate()
    if name in NAMES:
        source = (files("beholder") / "templates" / f"{name}.jinja").read_text()
        return PolicyTemplate(source, NAMES[name], name=name, ends=ENDS[name])
    try:
        return PolicyTemplate(Path(name).read_text(), name=name)
    except OSError as error:
        raise ConfigurationError(
            f"policy_template: {name}: {error.strerror}; choose {', '.join((*NAMES, PLAIN))} or a Jinja file"
        ) from None


@dataclass(frozen=True, slots=True)
class _Match:
    """The places of a conversation's texts in a string, and where the last piece after them ends."""

    roles: tuple[Role, ...]
    spans: list[tuple[int, int]]
    end: int

    def texts(self, text: str) -> Texts:
        return tuple((role, text[start:end]) for role, (start, end) in zip(self.roles, self.spans, strict=True))


class _Unreadable(Exception):
    """The template cannot show a conversation of this shape."""


def _shapes(questions: int, *, answered: bool) -> list[tuple[Role, ...]]:
    again: tuple[Role, ...] = ("assistant", "user")
    turns: tuple[Role, ...] = ("user", *again * (questions - 1), *again[: int(answered)])
    return [turns, ("system", *turns)]


def _questions(texts: Texts) -> int:
    return sum(role == "user" for role, _ in texts)
