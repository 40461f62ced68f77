"""What trainers' functions ask of a service, which records it: samples of the trainers' tests, and their shapes."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import httpx

from beholder.trainers.rewards import Rewarder, RewardSettings
from tests.pictures import png

PICTURE = png()
OTHER = png(colour=(1, 2, 3))
CHAT = [{"role": "user", "content": "Colour?"}]
MARKED = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Colour?"}]}]


def reference(data: bytes) -> dict[str, str]:
    return {"sha256": hashlib.sha256(data).hexdigest()}


@dataclass
class Recorder:
    """A service whose reward is the response's length; it refuses the responses that it is told to."""

    refused: set[str] = field(default_factory=set)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    fingerprint: str = "f"

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "PUT":
            return httpx.Response(201, json={"expires_in_s": 100})
        body = json.loads(request.content)
        self.bodies.append(body)
        if body["response"] in self.refused:
            return httpx.Response(422, json={"code": "prompt-too-long", "detail": "refused"})
        score = float(len(body["response"]))
        usage = {"prompt_tokens": 1, "cached_tokens": 0}
        answer = {"scores": [score], "normalized": [-score], "fingerprint": self.fingerprint, "usage": usage}
        return httpx.Response(200, json=answer)

    def settings(self, **options: Any) -> RewardSettings:
        return RewardSettings(("http://t",), transport=httpx.MockTransport(self), max_concurrency=1, **options)

    def rewarder(self, **options: Any) -> Rewarder:
        return Rewarder(self.settings(**options))

    @property
    def contexts(self) -> list[Any]:
        return [(body.get("prompt") or body["messages"], body["images"]) for body in self.bodies]


@dataclass
class SlimeArguments:
    apply_chat_template: bool = False
    partial_rollout: bool = False
    mask_offpolicy_in_partial_rollout: bool = False


@dataclass
class SlimeSample:
    """The fields of slime's Sample that are read."""

    prompt: Any
    response: str
    loss_mask: list[int] | None = None
    multimodal_inputs: dict[str, Any] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
