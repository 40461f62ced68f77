"""From start to exit: verify, load, check the golden samples, serve, drain.

Everything slow runs beside the event loop, so /livez answers from the first moment and /readyz says what is awaited.
"""

import asyncio
import logging

from beholder.checkpoint import Checkpoint, Dtype, verify_files
from beholder.engine import Engine
from beholder.errors import BeholderError, EngineError, EngineUnavailable, GoldenMismatch
from beholder.golden import require_passed, score_golden
from beholder.metrics import Metrics
from beholder.prompts import PromptRenderer
from beholder.settings import Settings

HEALTH_INTERVAL_S = 0.2

_log = logging.getLogger(__name__)


class Lifecycle:
    """The service's state. `failure` is set when the process cannot go on and should exit non-zero."""

    def __init__(
        self, settings: Settings, engine: Engine, checkpoint: Checkpoint, renderer: PromptRenderer, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._checkpoint = checkpoint
        self._renderer = renderer
        self._metrics = metrics
        self._blocked_by: BeholderError | None = EngineUnavailable("the service is starting")
        self._task: asyncio.Task[None] | None = None
        self.failure: BeholderError | None = None
        self.draining = False
        metrics.engine_up.set_function(lambda: engine.healthy)
        metrics.engine_running.set_function(lambda: engine.activity.running)
        metrics.engine_waiting.set_function(lambda: engine.activity.waiting)
        engine.activity.on_batch = metrics.engine_batch.observe
        metrics.ready.set_function(lambda: self.unready is None)

    @property
    def accepting(self) -> bool:
        return self._blocked_by is None

    @property
    def unready(self) -> BeholderError | None:
        """Why /readyz says no; None when ready."""
        if self._blocked_by is None and self.draining:
            return EngineUnavailable("the service is stopping")
        return self._blocked_by

    def require_accepting(self) -> None:
        """Raise EngineUnavailable unless requests can be scored."""
        if self._blocked_by is not None:
            raise EngineUnavailable(f"not ready: {self._blocked_by}")

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="lifecycle")

    async def stop(self) -> None:
        self._blocked_by = EngineUnavailable("the service has stopped")
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._engine.stop()

    async def _run(self) -> None:
        try:
            await self._load()
            await self._become_ready()
            while self._engine.healthy:  # noqa: ASYNC110 (an engine dies without telling)
                await asyncio.sleep(HEALTH_INTERVAL_S)
            raise EngineUnavailable("the engine died")
        except BeholderError as error:
            self._fail(error)
        except Exception as error:
            _log.exception("the service cannot start")
            self._fail(EngineError(f"{type(error).__name__}: {error}"))

    async def _load(self) -> None:
        if self._settings.verify_files:
            self._blocked_by = EngineUnavailable("the checkpoint's files are being verified")
            await asyncio.to_thread(verify_files, self._checkpoint)
        self._blocked_by = EngineUnavailable("the engine is loading the checkpoint")
        await self._engine.start()

    async def _become_ready(self) -> None:
        if self._settings.chosen_engine == "fake":
            _log.warning("the fake engine serves scores that mean nothing; golden samples are not checked")
            self._blocked_by = None
            return
        await self._check_golden()

    async def _check_golden(self) -> None:
        self._blocked_by = EngineUnavailable("the golden samples are being scored")
        dtype: Dtype = self._settings.dtype or self._checkpoint.manifest.dtype
        results = await score_golden(self._engine, self._renderer, self._checkpoint, dtype)
        self._metrics.golden_error.set(max(abs(result.served - result.trained) for result in results))
        try:
            require_passed(results)
        except GoldenMismatch as error:
            # A restart would not help, and a live process can be asked why it is not ready.
            _log.error("%s", error)
            self._blocked_by = error
            return
        self._metrics.golden_passed.set(1)
        self._blocked_by = None
        _log.info("ready: %d golden samples scored as trained", len(results))

    def _fail(self, error: BeholderError) -> None:
        _log.error("%s", error)
        self._blocked_by = self.failure = error
