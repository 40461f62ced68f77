"""Headline figures, tables, figures and a gallery -> one HTML page without scripts, fonts or links to anything.

Texts come from data sets and may hold anything: the template escapes every one.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined

TEMPLATE = Path(__file__).with_name("page.html.jinja")


@dataclass(frozen=True, slots=True)
class Headline:
    """One figure to see first. good: whether it is what is wanted; None is neither."""

    value: str
    title: str
    note: str = ""
    good: bool | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """`rows` of texts; the first column names the row."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure; `name` is that of its PNG file beside the page."""

    name: str
    png: bytes
    caption: str

    @property
    def source(self) -> str:
        return data_url(self.png, "image/png")


@dataclass(frozen=True, slots=True)
class Exhibit:
    """A pair that models judge differently. `pictures` are data URLs, `margins` (model, margin) in order."""

    where: str
    pictures: Sequence[str]
    prompt: str
    chosen: str
    rejected: str
    margins: Sequence[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page, in the order of its fields."""

    title: str
    text: str = ""
    drawings: Sequence[Drawing] = ()
    tables: Sequence[Table] = ()
    gallery: Sequence[Exhibit] = ()


def render(title: str, lead: str, headlines: Sequence[Headline], sections: Sequence[Section]) -> str:
    """The page."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text())
    return template.render(title=title, lead=lead, headlines=headlines, sections=sections)


def data_url(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
