"""Chat templates, which are Jinja programs: compiled as transformers does it, and sandboxed."""

from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from beholder.errors import ConfigurationError


def compile_template(source: str, name: str) -> Any:
    """A Jinja template as transformers compiles it; `name` is what errors call it. Raises ConfigurationError."""

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    class Generation(Extension):
        """{% generation %}, which training marks an answer with."""

        tags = {"generation"}  # noqa: RUF012 (what jinja reads)

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.globals["raise_exception"] = raise_exception
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise ConfigurationError(f"policy_template: {name}: {error}") from None
