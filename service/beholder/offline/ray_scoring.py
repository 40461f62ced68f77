"""The same over Ray Data: an engine on each accelerator of a cluster, the journal on the machine that asks.

The input is split into spans of records. An actor reads its spans itself, so input, images and checkpoint must be at
the same paths on every node (a shared file system). Results come back in order and are written by one process: each
record once, whatever was scored twice. When a node is lost, what has not come back is scored on those that remain.
"""

import asyncio
import json
import logging
import math
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Final

from beholder.error_lines import first_line
from beholder.errors import BeholderError, ConfigurationError, EngineUnavailable
from beholder.offline.backends import about, engine_scorer, plain
from beholder.offline.pipeline import scored_in_order
from beholder.offline.scorers import EngineScorer
from beholder.offline.scoring import Job, Position
from beholder.offline.tasks import Scored, read_task
from beholder.records.sources import read_rows, split_rows
from beholder.settings import Settings, load_settings

SPAN: Final = 128  # records
_SPANS_AT_ONCE: Final = 2  # of an actor: while one ends the next has begun
SHARDING: Final = ("tensor_parallel_size", "pipeline_parallel_size")
"""vLLM's arguments that have one model take several GPUs."""
_FRUITLESS: Final = 5
"""Losses in a row without a record scored between them, after which the cluster is given up."""

_log = logging.getLogger(__name__)


class RayBackend:
    """`address` of the cluster, None for this machine's (started if there is none); `engines`: how many to load."""

    def __init__(self, settings: Settings, address: str | None = None, engines: int | None = None) -> None:
        if find_spec("ray") is None:
            raise ConfigurationError("Ray is not installed: pip install '.[ray]' in Beholder's checkout")
        self._settings = settings
        self._address = address
        self._engines = engines

    @property
    def about(self) -> dict[str, Any]:
        return about(self._settings)

    def run(self, job: Job, position: Position, accept: Callable[[Scored], None]) -> None:
        from ray.exceptions import RayError

        fruitless = 0
        with _connected(self._address), _in_order():
            while True:
                begun = position
                try:
                    for end, records in self._spans(job, position):
                        for scored in records:
                            accept(scored)
                        position = end
                    return
                except RayError as error:
                    fruitless = fruitless + 1 if position == begun else 0
                    if fruitless == _FRUITLESS:
                        raise EngineUnavailable(f"the Ray cluster fails: {first_line(error)}") from None
                    _log.warning("Ray lost work (%s): scoring what has not come back", first_line(error))

    def _spans(self, job: Job, position: Position) -> Iterator[tuple[Position, list[Scored]]]:
        """The records of each span, in order, and where the next begins. Raises RayError when a node is lost."""
        import ray

        places = [*split_rows(job.input, SPAN, position.offset, position.number)]
        spans = ray.data.from_items(
            [{"offset": offset, "number": number} for offset, number in places], override_num_blocks=len(places)
        )
        for row in self._mapped(spans, job).iter_rows():
            answer = json.loads(row["answer"])
            if "failure" in answer:
                raise EngineUnavailable(f"an engine on the cluster failed: {answer['failure']}")
            yield Position(*answer["end"]), [Scored.from_json(values) for values in answer["records"]]

    def _mapped(self, spans: Any, job: Job) -> Any:
        """A data set with SpanScorer's answers."""
        import ray

        engines, resources = _plan(self._engines, gpus_of_an_engine(self._settings))
        with warnings.catch_warnings():
            # Ray 2.60 has no other way to say max_restarts. It is 0, since a restarted actor may wait for ever for a
            # node like the one that was lost.
            warnings.simplefilter("ignore", DeprecationWarning)
            return spans.map_batches(
                SpanScorer,
                fn_constructor_args=self._scorer_args(job),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(
                    size=engines,
                    max_tasks_in_flight_per_actor=2 * _SPANS_AT_ONCE,
                    max_concurrent_calls_per_actor=_SPANS_AT_ONCE,
                    enable_true_multi_threading=True,
                ),
                max_restarts=0,
                **resources,
            )

    def _scorer_args(self, job: Job) -> tuple[dict[str, Any], Path, Path | None, int]:
        """SpanScorer's. Links are kept: the input's own name says its form, and its folder where the images are."""
        image_root = job.image_root and job.image_root.absolute()
        return plain(self._settings), job.input.absolute(), image_root, job.in_flight


class SpanScorer:
    """Scores spans with one engine; runs in an actor, and is called from several threads at a time.

    A failure is part of the answer, since Ray's own errors mean that work was lost.
    """

    def __init__(self, settings: dict[str, Any], file: Path, image_root: Path | None, in_flight: int) -> None:
        self._file = file
        self._image_root = image_root
        self._in_flight = in_flight
        self._stack = AsyncExitStack()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._scorer: EngineScorer | BeholderError
        try:
            self._scorer = asyncio.run_coroutine_threadsafe(self._load(settings), self._loop).result()
        except BeholderError as error:
            self._scorer = error

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """`offset` and `number` of one span each; the answers as JSON."""
        spans = zip(batch["offset"].tolist(), batch["number"].tolist(), strict=True)
        return {"answer": [json.dumps(self._answer(Position(*span))) for span in spans]}

    def _answer(self, start: Position) -> dict[str, Any]:
        if isinstance(self._scorer, BeholderError):
            return {"failure": str(self._scorer)}
        try:
            return asyncio.run_coroutine_threadsafe(self._score(self._scorer, start), self._loop).result()
        except BeholderError as error:
            return {"failure": str(error)}

    async def _load(self, settings: dict[str, Any]) -> EngineScorer:
        return await self._stack.enter_async_context(engine_scorer(load_settings(settings)))

    async def _score(self, scorer: EngineScorer, start: Position) -> dict[str, Any]:
        rows = await asyncio.to_thread(lambda: [*islice(read_rows(self._file, start.offset, start.number), SPAN)])
        tasks = (read_task(row, self._image_root) for row in rows)
        records = [scored.to_json() async for scored in scored_in_order(tasks, scorer, self._in_flight)]
        return {"end": (rows[-1].offset, rows[-1].number), "records": records}


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Raises EngineUnavailable when there is no cluster at `address`."""
    import ray

    mine = not ray.is_initialized()
    if mine:
        try:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise EngineUnavailable(f"no Ray cluster at {address or 'this machine'}: {first_line(error)}") from None
    try:
        yield
    finally:
        if mine:
            ray.shutdown()


@contextmanager
def _in_order() -> Iterator[None]:
    """Ray Data returns blocks in the order of the input, and leaves the progress bar to us."""
    from ray.data import DataContext

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    before = context.execution_options.preserve_order, context.enable_progress_bars
    context.execution_options.preserve_order, context.enable_progress_bars = True, False
    try:
        yield
    finally:
        context.execution_options.preserve_order, context.enable_progress_bars = before


def gpus_of_an_engine(settings: Settings) -> int:
    """How many vLLM shards a model over; the transformers engine takes one. Raises ConfigurationError."""
    try:
        return math.prod(int(settings.engine_args.get(name, 1)) for name in SHARDING)
    except (TypeError, ValueError):
        raise ConfigurationError(f"engine_args: {' and '.join(SHARDING)} are whole numbers") from None


def _plan(engines: int | None, gpus_of_one: int) -> tuple[int, dict[str, float]]:
    import ray

    list_nodes: Any = ray.nodes
    return plan([node["Resources"] for node in list_nodes() if node["Alive"]], engines, gpus_of_one)


def plan(nodes: Sequence[Mapping[str, float]], engines: int | None, gpus_of_one: int) -> tuple[int, dict[str, float]]:
    """How many engines, and what each takes: its GPUs, all of one node, or on a cluster without one a share of a node's
    cores. Raises EngineUnavailable."""
    if any(node.get("GPU", 0) >= 1 for node in nodes):
        room = sum(int(node.get("GPU", 0)) // gpus_of_one for node in nodes)
        if not room:
            raise EngineUnavailable(f"no node of the Ray cluster has the {gpus_of_one} GPUs that an engine takes")
        return min(engines or room, room), {"num_gpus": gpus_of_one}
    nodes = [node for node in nodes if node.get("CPU", 0) >= 1]
    if not nodes:
        raise EngineUnavailable("the Ray cluster has no node with a GPU or a CPU")
    engines = engines or len(nodes)
    on_a_node = -(-engines // len(nodes))
    return engines, {"num_cpus": max(1, min(node["CPU"] for node in nodes) // on_a_node)}
