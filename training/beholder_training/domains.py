"""Which numbers a setting may have, in one table."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from beholder.errors import DataError

Allowed = Callable[[float], bool]
DOMAINS: tuple[tuple[str, Allowed, tuple[str, ...]], ...] = (
    ("be finite", math.isfinite, ()),  # all settings
    (
        "be positive",
        lambda value: value > 0,
        (
            *("batch_prompts", "accumulation", "learning_rate", "proxy_learning_rate", "max_grad_norm", "max_length"),
            *("epochs", "calibration_records", "lora_alpha"),
        ),
    ),
    (
        "not be negative",
        lambda value: value >= 0,
        (
            *("steps", "token_budget", "vision_cache_gib", "lora_rank", "save_steps", "logging_steps", "workers"),
            *("centring", "proxy_warmup_steps", "weight_decay", "exponent", "gap_strength", "gap_rate"),
            "train_weights",
        ),
    ),
    ("be in [0, 0.5)", lambda value: 0 <= value < 0.5, ("label_smoothing",)),
    ("be in [0, 1)", lambda value: 0 <= value < 1, ("adam_beta2", "lora_dropout")),
    ("be in [0, 1]", lambda value: 0 <= value <= 1, ("warmup_ratio",)),
    ("be in [0, 2**32)", lambda value: 0 <= value < 2**32, ("seed",)),  # NumPy's
)


def require_domains(settings: Mapping[str, Any]) -> None:
    """Raises DataError for the first number outside its domain; None is always inside."""
    for domain, allowed, names in DOMAINS:
        for name in names or settings:
            value = settings[name]
            values = value if isinstance(value, list) else [value]
            if not all(allowed(each) for each in values if isinstance(each, int | float)):
                raise DataError(f"{name} must {domain}, not {value}")
