"""What the routes share, as one typed object on the application."""

from dataclasses import dataclass

from fastapi import FastAPI, Request

from beholder.images.sources import ImageLoader
from beholder.in_flight import InFlight
from beholder.lifecycle import Lifecycle
from beholder.metrics import Metrics
from beholder.policy_template import PolicyTemplate
from beholder.scoring import Scorer
from beholder.settings import Settings


@dataclass(frozen=True, slots=True)
class Context:
    """`scorers` are of one model each; `policy` reads trainers' strings."""

    settings: Settings
    scorers: tuple[Scorer, ...]
    in_flight: InFlight
    lifecycle: Lifecycle
    metrics: Metrics
    images: ImageLoader
    policy: PolicyTemplate


def attach(app: FastAPI, context: Context) -> None:
    app.state.context = context


def context_of(request: Request) -> Context:
    context: Context = request.app.state.context
    return context
