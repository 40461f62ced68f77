"""Values of command-line flags that are more than a word."""

import argparse
import math
from typing import Any

from beholder.errors import ConfigurationError


def parse_map(text: str) -> Any:
    """What --engine-args gives, in YAML or JSON; the settings check it. Raises ConfigurationError."""
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"--engine-args: {' '.join(str(error).split())}") from None


def count(text: str) -> int:
    """A whole number from 1. Raises argparse.ArgumentTypeError."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def positive(text: str) -> float:
    """A finite number above 0. Raises argparse.ArgumentTypeError."""
    if not 0 < (value := _number(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def fraction(text: str) -> float:
    """A share above 0 and up to 1. Raises argparse.ArgumentTypeError."""
    if not 0 < (value := _number(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share above 0 and up to 1")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
