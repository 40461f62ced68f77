"""What the routes share, as one typed object on the application."""

from dataclasses import dataclass

from fastapi import FastAPI, Request

from beholder.checkpoint import Checkpoint
from beholder.engine import Engine
from beholder.image_sources import ImageLoader
from beholder.lifecycle import Lifecycle
from beholder.metrics import Metrics
from beholder.policy_template import PolicyTemplate
from beholder.scoring import Scorer
from beholder.settings import Settings


@dataclass(frozen=True, slots=True)
class Context:
    """`policy` reads trainers' strings, `own_template` those in the reward model's own template."""

    settings: Settings
    checkpoint: Checkpoint
    engine: Engine
    lifecycle: Lifecycle
    scorer: Scorer
    metrics: Metrics
    images: ImageLoader
    policy: PolicyTemplate
    own_template: PolicyTemplate


def attach(app: FastAPI, context: Context) -> None:
    app.state.context = context


def context_of(request: Request) -> Context:
    context: Context = request.app.state.context
    return context
