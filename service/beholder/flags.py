"""Values of command-line flags that are more than a word."""

from typing import Any

import yaml

from beholder.errors import ConfigurationError


def parse_map(text: str) -> Any:
    """What --engine-args gives, in YAML or JSON; the settings check it. Raises ConfigurationError."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"--engine-args: {' '.join(str(error).split())}") from None
