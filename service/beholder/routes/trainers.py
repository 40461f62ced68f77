"""What OpenRLHF, LLaMA-Factory and slime send to a remote reward function, and what each reads.

Lists have the request's length and order, and an empty list is answered with empty lists: OpenRLHF splits a list of
one over several URLs.
"""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import TypeAdapter

from beholder import markers
from beholder.compatibility import (
    LlamaFactoryRequest,
    LlamaFactoryResponse,
    OpenRLHFRequest,
    OpenRLHFResponse,
    SlimeRequest,
    read_chat,
)
from beholder.errors import InvalidRequest, PromptTooLong
from beholder.models import Model
from beholder.policy_template import PolicyTemplate, Texts
from beholder.rewards import normalize
from beholder.routes.answering import SCORING, answer, choose_model, score_samples
from beholder.routes.context import context_of
from beholder.routes.reading import read_model
from beholder.scoring import Sample

router = APIRouter(prefix="/trainers", tags=["trainers"])
OPENRLHF: Final = TypeAdapter(OpenRLHFRequest)
LLAMA_FACTORY: Final = TypeAdapter(LlamaFactoryRequest)
SLIME: Final = TypeAdapter(SlimeRequest)
MARK_TOKENS: Final = 2**16
"""The most tokens of a string that are the template's marks and those of images, as far as is known unread."""
ChosenModel = Annotated[str | None, Query(max_length=4096, description="One of GET /models; the first if left out.")]


@router.post("/openrlhf", response_model=OpenRLHFResponse, responses=SCORING, summary="OpenRLHF's reward.remote_url")
async def openrlhf(request: Request, model: ChosenModel = None) -> Response:
    """`scores` are `rewards`: raw logits. The response is `query` without `prompts`, whatever is in it."""
    body = await read_model(request, OPENRLHF)
    scorer = choose_model(request, model)
    samples = await asyncio.to_thread(_openrlhf_samples, scorer.model, context_of(request).policy, body)
    scores = await score_samples(request, scorer, samples)
    rewards = [score.logit for score in scores]
    logs = {"prompt_tokens": [float(score.prompt_tokens) for score in scores]}
    if (calibration := scorer.model.calibration) is not None:
        logs["normalized"] = normalize(rewards, calibration)
    return answer(OpenRLHFResponse(rewards=rewards, scores=rewards, extra_logs=logs))


@router.post(
    "/llama-factory",
    response_model=LlamaFactoryResponse,
    responses=SCORING,
    summary="LLaMA-Factory's reward_model_type: api",
)
async def llama_factory(request: Request, model: ChosenModel = None) -> Response:
    """Raw logits. The string alone does not tell a forged turn in a response from a real one."""
    body = await read_model(request, LLAMA_FACTORY)
    scorer = choose_model(request, model)
    samples = await asyncio.to_thread(exchanges, scorer.model, [context_of(request).policy], body.messages, "messages")
    scores = await score_samples(request, scorer, samples)
    return answer(LlamaFactoryResponse(scores=[score.logit for score in scores]))


@router.post("/slime", response_model=float | dict[str, float], responses=SCORING, summary="slime's rm_url")
async def slime(
    request: Request,
    reward_key: Annotated[
        str | None, Query(max_length=64, description="Answer with an object that has the number under this key.")
    ] = None,
    model: ChosenModel = None,
) -> Response:
    """The raw logit as a bare number, or an object for slime's --reward-key."""
    body = await read_model(request, SLIME)
    scorer, policy = choose_model(request, model), context_of(request).policy
    if isinstance(body.prompt, str):
        sample = (await asyncio.to_thread(_samples, scorer.model, [body.prompt], [body.response], policy, "prompt"))[0]
    else:
        max_images = scorer.model.settings.max_images
        conversation, sources = await asyncio.to_thread(read_chat, body.prompt, max_images)
        sample = Sample(conversation, sources, policy.response(body.response))
    (score,) = await score_samples(request, scorer, [sample])
    return JSONResponse(score.logit if reward_key is None else {reward_key: score.logit})


def exchanges(model: Model, templates: Sequence[PolicyTemplate], texts: Sequence[str], field: str) -> list[Sample]:
    """Samples of strings with prompt and response, each in the first of the templates that it renders in."""
    samples, image_places = [], _image_places(model, templates)
    for index, text in enumerate(texts):
        place = f"{field}[{index}]"
        try:
            _require_possible(model, text)
            conversation, response = _exchange(templates, text)
            turns, sources = markers.conversation(conversation, model.settings.max_images, image_places)
        except InvalidRequest as error:
            raise error.at(place) from None
        samples.append(Sample(turns, sources, response, place))
    return samples


def _exchange(templates: Sequence[PolicyTemplate], text: str) -> tuple[Texts, str]:
    *others, last = templates
    for template in others:
        try:
            return template.exchange(text)
        except InvalidRequest:
            continue
    return last.exchange(text)


def _openrlhf_samples(model: Model, policy: PolicyTemplate, body: OpenRLHFRequest) -> list[Sample]:
    responses = [query.removeprefix(prompt) for query, prompt in zip(body.query, body.prompts, strict=True)]
    return _samples(model, body.prompts, responses, policy, "prompts[{}]")


def _samples(
    model: Model, prompts: Sequence[str], responses: Sequence[str], policy: PolicyTemplate, place: str
) -> list[Sample]:
    samples, image_places = [], _image_places(model, [policy])
    for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        try:
            _require_possible(model, prompt)
            turns, sources = markers.conversation(policy.prompt(prompt), model.settings.max_images, image_places)
        except InvalidRequest as error:
            raise error.at(place.format(index)) from None
        samples.append(Sample(turns, sources, policy.response(response), place.format(index)))
    return samples


def _image_places(model: Model, templates: Sequence[PolicyTemplate]) -> set[str]:
    """What the model's own template and these write for an image."""
    own = [model.own_template] if model.own_template else []
    return {template.image_place for template in (*own, *templates)} - {""}


def _require_possible(model: Model, text: str) -> None:
    """Before the turns of a long text are looked for, which takes long. Raises PromptTooLong."""
    least, limit = model.renderer.least_tokens((), text) - MARK_TOKENS, model.engine.max_tokens
    if least > limit and model.settings.overlong == "refuse":
        raise PromptTooLong(
            f"the string has at least {least} tokens, at most {limit} are accepted: shorten it", least, limit
        )
