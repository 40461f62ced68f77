"""vLLM's AsyncLLM as a pooling engine: raw logits of the reward head, one request a sample.

vLLM answers several broken requests with a wrong number instead of an error (a placeholder without an image, an image
under another image's uuid, an aborted request), so every prompt and every result is checked here.

vLLM is imported when the engine starts, not with this module: that takes seconds and reads the environment.
"""

import asyncio
import logging
import math
import time
import uuid
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakValueDictionary

from prometheus_client import CollectorRegistry

from beholder.checkpoint import Checkpoint
from beholder.engine import Activity, EngineScore
from beholder.engine.expanded_prefixes import ExpandedPrefixes, Key
from beholder.engine.refused_pictures import refused_picture
from beholder.engine.vllm_core import Core
from beholder.engine.vllm_loading import check_head, load, prepare_environment
from beholder.engine.vllm_metrics import drop_metrics, keep_metrics
from beholder.error_lines import last_line
from beholder.errors import (
    BeholderError,
    EngineError,
    EngineUnavailable,
    ImageMismatch,
    InvalidRequest,
    Overloaded,
    PromptTooLong,
    TooManyImages,
)
from beholder.prompts import Prompt, read_image_token_id

if TYPE_CHECKING:
    from beholder.settings import Settings

STOP_TIMEOUT_S: Final = 30
"""vLLM's processes take about five seconds to leave; its own limit is five."""
LOADING_STOP_S: Final = 3
"""For a core that has all but loaded to leave by itself; until it has loaded it heeds no SIGTERM."""

_log = logging.getLogger(__name__)


class _ImageNotSent(Exception):
    """The request named an image that vLLM's core does not have.

    vLLM sends an image to its core once and then by hash. A request that was refused or cancelled in between leaves the
    core without it; vLLM then forgets that it was sent and wants the request again.
    """


class VllmEngine:
    """See `beholder.engine.Engine`. One instance loads once."""

    def __init__(self, settings: "Settings", checkpoint: Checkpoint) -> None:
        self._settings = settings
        self._checkpoint = checkpoint
        self._image_token_id = read_image_token_id(checkpoint.folder)
        self._loading: asyncio.Future[Any] | None = None
        self._core: Core
        self._stall_watch: asyncio.Task[None] | None = None
        self._hangs = False
        self._llm: Any = None
        self._params: Any = None
        self._metrics: CollectorRegistry | None = None
        self._max_tokens = settings.max_model_len
        self.activity = Activity()
        self._resending: WeakValueDictionary[tuple[str, ...], asyncio.Lock] = WeakValueDictionary()
        self._expanding: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()
        self._prefixes: ExpandedPrefixes
        prepare_environment(settings)

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        core = self._core = Core()
        self._loading = loop.run_in_executor(None, load, self._settings, self._checkpoint, self.activity, core.on_step)
        try:
            llm = await asyncio.shield(self._loading)
            core.loaded()
            await check_head(llm, self._checkpoint)
        except BeholderError:
            raise
        except Exception as error:
            raise EngineError(f"vLLM does not load {self._checkpoint.folder}: {last_line(error)}") from error
        self._llm = llm
        self._metrics = keep_metrics()
        from vllm import PoolingParams

        self._params = PoolingParams(task="classify", use_activation=False)
        self._max_tokens = self._llm.model_config.max_model_len
        self._prefixes = ExpandedPrefixes(self._image_token_id, self._llm.renderer.mm_processor_cache)
        if limit_s := self._settings.engine_stall_s:
            self._stall_watch = loop.create_task(self._end_when_stalled(limit_s))

    @property
    def max_tokens(self) -> int:
        return self._max_tokens

    @property
    def healthy(self) -> bool:
        return self._llm is not None and not self._hangs and not self._llm.errored

    async def _end_when_stalled(self, limit_s: float) -> None:
        await self._core.stalled(limit_s)
        _log.error(
            "vLLM has had samples for %g s and computed nothing (engine_stall_s): it hangs and is ended", limit_s
        )
        self._hangs = True
        self._core.kill()

    async def score(self, prompt: Prompt, *, fresh: bool = False) -> EngineScore:
        if not self.healthy:
            raise EngineUnavailable("the engine is not running")
        self._check(prompt)
        salt = uuid.uuid4().hex if fresh else ""
        try:
            return await self._encode(prompt, salt)
        except _ImageNotSent:
            return await self._resend(prompt, salt)

    async def _resend(self, prompt: Prompt, salt: str) -> EngineScore:
        """One request for the images at a time: those that are refused together would forget them for each other.

        At last under a name that nobody else uses, since new requests for the images may be refused meanwhile.
        """
        key = tuple(image.sha256 for image in prompt.images)
        async with self._resending.setdefault(key, asyncio.Lock()):
            for name in (salt, salt, uuid.uuid4().hex):
                try:
                    return await self._encode(prompt, name)
                except _ImageNotSent as error:
                    cause = str(error)
        raise EngineError(f"vLLM failed the request again and again: {cause}")

    async def stop(self) -> None:
        if self._stall_watch is not None:
            self._stall_watch.cancel()
        await self._stop_loading()
        llm, self._llm = self._llm, None
        metrics, self._metrics = self._metrics, None
        if metrics is not None:
            drop_metrics(metrics)
        if llm is not None:
            if llm.output_handler is not None:
                llm.output_handler.cancel()  # or it logs the core's end as its death
            await asyncio.to_thread(llm.shutdown, STOP_TIMEOUT_S)
            # Its __del__ would shut down once more when the interpreter is half gone, and print a traceback.
            llm.shutdown = lambda: None

    async def _stop_loading(self) -> None:
        """A thread cannot be cancelled, but it gives up when the processes that it waits for are gone."""
        loading, self._loading = self._loading, None
        if loading is None:
            return
        if not loading.done():
            self._core.terminate()
        deadline = time.monotonic() + LOADING_STOP_S
        while not loading.done():
            if time.monotonic() > deadline:
                self._core.kill()
            await asyncio.sleep(0.1)
        if loading.exception() is None:
            self._llm = loading.result()

    def _check(self, prompt: Prompt) -> None:
        places = prompt.token_ids.count(self._image_token_id)
        if places != len(prompt.images):
            raise ImageMismatch(f"the prompt has {places} image placeholders but {len(prompt.images)} images")
        if places > self._settings.max_images:
            raise TooManyImages(
                f"the conversation has {places} images, at most {self._settings.max_images} are accepted"
            )
        self._check_length(len(prompt.token_ids))

    def _check_length(self, length: int) -> None:
        if length > self._max_tokens:
            raise PromptTooLong(
                f"the conversation has {length} tokens with its images, at most {self._max_tokens} are accepted: "
                "shorten it or serve with a larger max_model_len",
                length,
                self._max_tokens,
            )

    async def _encode(self, prompt: Prompt, salt: str) -> EngineScore:
        result = None
        try:
            rendered = await self._render(prompt, salt)
            self._check_length(len(rendered["prompt_token_ids"]))
            with self._core.holding_sample():
                async for output in self._llm.encode(rendered, self._params, request_id=uuid.uuid4().hex):
                    result = output
        except (BeholderError, _ImageNotSent):
            raise
        except Exception as error:
            raise _translate(error, alive=self.healthy) from error
        return _read(result)

    async def _render(self, prompt: Prompt, salt: str) -> Any:
        """Images processed and expanded; those of prompts that arrive together once."""
        key = None if salt else self._prefixes.key(prompt)
        if key is None:
            return await self._process(prompt, salt)
        if (known := self._prefixes.expand(key, prompt)) is not None:
            return known
        async with self._expanding.setdefault(key, asyncio.Lock()):
            if (known := self._prefixes.expand(key, prompt)) is not None:
                return known
            rendered = await self._process(prompt, salt)
            self._prefixes.keep(key, prompt, rendered)
            return rendered

    async def _process(self, prompt: Prompt, salt: str) -> Any:
        try:
            (rendered,) = await self._llm.renderer.render_cmpl_async([_tokens_prompt(prompt, salt)])
        except AssertionError as error:
            # Found in vLLM's cache of sent images, and forgotten before it was read: another request's refusal.
            raise _ImageNotSent(last_line(error)) from error
        except (ValueError, TypeError) as error:
            if not prompt.images:
                raise
            raise refused_picture(_cause(error)) from error
        return rendered


def _cause(error: Exception) -> Exception:
    """The image processor's own error: vLLM raises another for it, which quotes the prompt."""
    return error.__cause__ if isinstance(error.__cause__, Exception) else error


def _tokens_prompt(prompt: Prompt, salt: str) -> dict[str, Any]:
    """`salt` keeps the prompt out of the prefix, image and encoder caches."""
    request: dict[str, Any] = {"prompt_token_ids": list(prompt.token_ids)}
    if prompt.images:
        request["multi_modal_data"] = {"image": [image.pixels for image in prompt.images]}
        request["multi_modal_uuids"] = {"image": [image.sha256 + salt for image in prompt.images]}
    if salt:
        request["cache_salt"] = salt
    return request


def _read(output: Any) -> EngineScore:
    if output is None:
        raise EngineError("vLLM gave no result")
    if output.error is not None:
        if output.error.retryable:
            raise _ImageNotSent(output.error.message)
        raise EngineError(f"vLLM failed the request: {output.error.message}")
    values = output.outputs.data
    if values.numel() != 1:
        raise EngineUnavailable("vLLM aborted the request")
    logit = float(values.item())
    if not math.isfinite(logit):
        raise EngineError(f"the model's reward is {logit}: its weights overflow in this dtype")
    return EngineScore(logit, len(output.prompt_token_ids), output.num_cached_tokens)


def _translate(error: Exception, *, alive: bool) -> BeholderError:
    from vllm.exceptions import GracefulHTTPError, VLLMClientError
    from vllm.v1.engine.exceptions import EngineDeadError

    if isinstance(error, EngineDeadError) or not alive:
        return EngineUnavailable("the engine died")
    if isinstance(error, GracefulHTTPError):
        return Overloaded("vLLM's queue is full: retry in a moment")
    if isinstance(error, VLLMClientError):
        return InvalidRequest(f"vLLM refuses the conversation: {error}")
    return EngineError(f"vLLM failed the request: {last_line(error)}")
