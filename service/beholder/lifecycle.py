"""From start to exit: verify, load, check the golden samples, serve, drain.

Everything slow runs beside the event loop, so /livez answers from the first moment and /readyz says what is awaited.
"""

import asyncio
import logging
from collections.abc import Sequence

from beholder import garbage
from beholder.checkpoint import verify_files
from beholder.errors import BeholderError, EngineError, EngineUnavailable, GoldenMismatch
from beholder.golden import require_passed, score_golden
from beholder.in_flight import InFlight
from beholder.metrics import Metrics
from beholder.models import Model
from beholder.settings import Settings

HEALTH_INTERVAL_S = 0.2

_log = logging.getLogger(__name__)


class Lifecycle:
    """The service's state: ready when all `models` are. `failure` is set when the process cannot go on and should exit
    non-zero."""

    def __init__(self, settings: Settings, models: Sequence[Model], in_flight: InFlight, metrics: Metrics) -> None:
        self._settings = settings
        self._models = models
        self._in_flight = in_flight
        self._metrics = metrics
        self._blocked_by: BeholderError | None = EngineUnavailable("the service is starting")
        self._task: asyncio.Task[None] | None = None
        self.failure: BeholderError | None = None
        self.draining = False
        metrics.ready.set_function(lambda: self.unready is None)
        for model in models:
            _watch(model, metrics)

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
        await asyncio.gather(*(model.engine.stop() for model in self._models))

    async def _run(self) -> None:
        try:
            await self._load()
            await self._become_ready()
            while all(model.engine.healthy for model in self._models):
                if self._in_flight.idle:
                    garbage.collect_while_idle()
                await asyncio.sleep(HEALTH_INTERVAL_S)
            dead = ", ".join(model.name for model in self._models if not model.engine.healthy)
            raise EngineUnavailable(f"the engine died: {dead}")
        except BeholderError as error:
            self._fail(error)
        except Exception as error:
            _log.exception("the service cannot start")
            self._fail(EngineError(f"{type(error).__name__}: {error}"))

    async def _load(self) -> None:
        """One after the other, since an engine measures while it loads how much memory is free."""
        for model in self._models:
            if self._settings.verify_files:
                self._blocked_by = EngineUnavailable(f"the files of {model.name} are being verified")
                await asyncio.to_thread(verify_files, model.checkpoint)
            self._blocked_by = EngineUnavailable(f"the engine is loading {model.name}")
            await model.engine.start()

    async def _become_ready(self) -> None:
        if self._settings.chosen_engine == "fake":
            _log.warning("the fake engine serves scores that mean nothing; golden samples are not checked")
            self._blocked_by = None
            return
        mismatches = []
        for model in self._models:
            self._blocked_by = EngineUnavailable(f"the golden samples of {model.name} are being scored")
            try:
                await self._check_golden(model)
            except GoldenMismatch as error:
                # A restart would not help, and a live process can be asked why it is not ready.
                _log.error("%s", error)
                mismatches.append(error)
        garbage.relieve()
        self._blocked_by = mismatches[0] if mismatches else None
        if not mismatches:
            _log.info("ready")

    async def _check_golden(self, model: Model) -> None:
        """Raises GoldenMismatch."""
        results = await score_golden(model.engine, model.renderer, model.checkpoint, model.dtype)
        self._metrics.golden_error.labels(model.name).set(max(abs(each.served - each.trained) for each in results))
        try:
            require_passed(results)
        except GoldenMismatch as error:
            self._metrics.golden_passed.labels(model.name).set(0)
            raise error.at(model.name) from None
        self._metrics.golden_passed.labels(model.name).set(1)
        _log.info("%s: %d golden samples scored as trained", model.name, len(results))

    def _fail(self, error: BeholderError) -> None:
        _log.error("%s", error)
        self._blocked_by = self.failure = error


def _watch(model: Model, metrics: Metrics) -> None:
    """What /metrics shows of a model's engine, from before it loads."""
    name, engine = model.name, model.engine
    metrics.model.labels(name, model.fingerprint, model.checkpoint.manifest.base_model).set(1)
    metrics.engine_up.labels(name).set_function(lambda: engine.healthy)
    metrics.engine_running.labels(name).set_function(lambda: engine.activity.running)
    metrics.engine_waiting.labels(name).set_function(lambda: engine.activity.waiting)
    engine.activity.on_batch = metrics.engine_batch.labels(name).observe
