"""A model that is served: a checkpoint, the engine that scores by it, and the renderer of its prompts."""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

from beholder.checkpoint import Calibration, Checkpoint, Dtype, read_checkpoint
from beholder.engine import Engine
from beholder.engine.choosing import create_engine
from beholder.errors import ConfigurationError
from beholder.policy_template import PolicyTemplate
from beholder.prompts import PromptRenderer
from beholder.settings import Settings


@dataclass(frozen=True)
class Model:
    """`settings` are those of this model alone (`Settings.each`)."""

    settings: Settings
    engine: Engine
    checkpoint: Checkpoint
    renderer: PromptRenderer

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """The model that `settings` choose; its engine is not started. Raises CheckpointError, ConfigurationError."""
        checkpoint = read_checkpoint(settings.checkpoint)
        renderer = checkpoint.renderer()
        return cls(settings, create_engine(settings, checkpoint), checkpoint, renderer)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What `model` may be in a request for it, beside its fingerprint; the first is shown."""
        return self.settings.names

    @property
    def name(self) -> str:
        return self.names[0]

    @cached_property
    def fingerprint(self) -> str:
        return self.checkpoint.fingerprint

    @property
    def calibration(self) -> Calibration | None:
        return self.checkpoint.manifest.calibration

    @property
    def dtype(self) -> Dtype:
        """What its engine computes in."""
        return self.settings.dtype or self.checkpoint.manifest.dtype

    @cached_property
    def own_template(self) -> PolicyTemplate | None:
        """The checkpoint's template to read strings by; None when it cannot be read back."""
        try:
            return PolicyTemplate(self.renderer.chat_template, *self.renderer.template_tokens)
        except ConfigurationError:
            return None
