"""Ray Data on a cluster of two nodes on this machine: the file of one process, also when a node dies in the middle."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from beholder.errors import DataError, EngineUnavailable
from beholder.offline.ray_scoring import SPAN, RayBackend, SpanScorer, gpus_of_an_engine, plan
from beholder.offline.scoring import Job, Position, score_file
from beholder.offline.tasks import Scored
from beholder.settings import Settings, load_settings
from tests.offline.scoring import read, score, write
from tests.pictures import png

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]' in Beholder's checkout")

pytestmark = [
    pytest.mark.slow,
    # Ray's processes and files are closed by its shutdown, not by the collector, and it uses its own deprecated parts.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@dataclass
class TwoNodes:
    """A cluster whose second node can be killed."""

    cluster: Any
    second: Any

    def kill_one(self) -> None:
        self.cluster.remove_node(self.second, allow_graceful=False)

    def wait_until_missed(self) -> None:
        """The cluster hears of a dead node seconds after its processes are gone."""
        until = time.monotonic() + 60
        while sum(node["Alive"] for node in ray.nodes()) != 1:
            assert time.monotonic() < until, "the killed node still counts as alive"
            time.sleep(0.1)


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[TwoNodes]:
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield TwoNodes(cluster, second)
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def many(scenes: Path, tmp_path: Path) -> Path:
    """Twenty spans of two responses, with pictures, bad lines and blank ones among them."""
    known = read(scenes)
    path = write(
        tmp_path / "many.jsonl",
        [
            {**known[number % len(known)], "id": f"m{number}", "responses": [f"answer {number}", "another"]}
            for number in range(20 * SPAN - 2)
        ],
    )
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:300], "{oops\n", "\n", *lines[300:2000], "[]\n", *lines[2000:]]))
    return path


class Killing(RayBackend):
    """Kills a node once some spans have come back."""

    def __init__(self, settings: Settings, nodes: TwoNodes) -> None:
        super().__init__(settings)
        self._nodes = nodes
        self.killed: threading.Thread | None = None

    def _spans(self, job: Job, position: Position) -> Iterator[Any]:
        for number, span in enumerate(super()._spans(job, position)):
            if number == 3 and self.killed is None:
                self.killed = threading.Thread(target=self._nodes.kill_one)
                self.killed.start()
            yield span


@pytest.mark.timeout(400)
def test_a_cluster_writes_the_file_of_one_process(
    two_nodes: TwoNodes, tiny_checkpoint: Path, fake: Settings, many: Path, scenes: Path, tmp_path: Path
) -> None:
    """First on both nodes; then with one of them killed in the middle."""
    root = scenes.parent
    score(fake, many, tmp_path / "here.jsonl", image_root=root)
    expected = (tmp_path / "here.jsonl").read_bytes()

    score_file(Job(many, tmp_path / "both.jsonl", image_root=root, progress=False), RayBackend(fake))
    assert (tmp_path / "both.jsonl").read_bytes() == expected

    slow = {"checkpoint": tiny_checkpoint, "engine": "fake", "max_model_len": 1024}
    settings = load_settings({**slow, "engine_args": {"delay_s": 0.2, "concurrency": 64}})
    killing = Killing(settings, two_nodes)
    score_file(Job(many, tmp_path / "one.jsonl", image_root=root, progress=False), killing)
    assert killing.killed is not None
    killing.killed.join()
    two_nodes.wait_until_missed()
    assert (tmp_path / "one.jsonl").read_bytes() == expected

    dying = load_settings({**slow, "engine_args": {"die_after": 200}})
    with pytest.raises(EngineUnavailable, match=r"an engine on the cluster failed: the engine (died|is not running)"):
        score_file(Job(many, tmp_path / "dead.jsonl", image_root=root, progress=False), RayBackend(dying))
    score(fake, many, tmp_path / "dead.jsonl", image_root=root)  # one process finishes what a cluster began
    assert (tmp_path / "dead.jsonl").read_bytes() == expected


def test_a_linked_input_is_read_by_its_own_name(fake: Settings, tmp_path: Path) -> None:
    """As in a Hugging Face cache: the file lies elsewhere, under a name without a suffix, the images by the link."""
    for folder in ("blobs", "snapshot"):
        (tmp_path / folder).mkdir()
    (tmp_path / "snapshot" / "a.png").write_bytes(png())
    records = [{"id": f"{n}", "prompt": "?", "img_path": "a.png", "responses": ["A", "B"]} for n in range(3)]
    parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "blobs" / "cafebabe")
    data = tmp_path / "snapshot" / "data.parquet"
    data.symlink_to(tmp_path / "blobs" / "cafebabe")
    scorer = SpanScorer(*RayBackend(fake)._scorer_args(Job(data, tmp_path / "out.jsonl")))
    answer = json.loads(scorer({"offset": np.array([0]), "number": np.array([0])})["answer"][0])
    outcomes = [outcome for record in answer["records"] for outcome in Scored.from_json(record).outcomes]
    assert len(outcomes) == 6
    assert all(outcome.code is None for outcome in outcomes)


def test_an_engine_takes_its_cards_of_one_node(fake: Settings) -> None:
    sharded = fake.model_copy(update={"engine_args": {"tensor_parallel_size": 2, "pipeline_parallel_size": 1}})
    assert (gpus_of_an_engine(fake), gpus_of_an_engine(sharded)) == (1, 2)
    nodes = [{"CPU": 8.0, "GPU": 3.0}, {"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}]
    assert plan(nodes, None, 1) == (5, {"num_gpus": 1})
    assert plan(nodes, None, 2) == (2, {"num_gpus": 2})  # the third card of the first node is left
    assert plan(nodes, 1, 2) == (1, {"num_gpus": 2})
    with pytest.raises(EngineUnavailable, match="has the 4 GPUs that an engine takes"):
        plan(nodes, None, 4)


def test_without_cards_engines_share_the_cores() -> None:
    assert plan([{"CPU": 8.0}, {"CPU": 4.0}], 4, 1) == (4, {"num_cpus": 2})
    with pytest.raises(EngineUnavailable, match="no node with a GPU or a CPU"):
        plan([{"memory": 1.0}], None, 1)


def test_an_array_cannot_be_split(fake: Settings, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text('[{"prompt": "?", "responses": ["A"]}]')
    with pytest.raises(DataError, match=r"data\.json cannot be read in parts"):
        next(RayBackend(fake)._spans(Job(tmp_path / "data.json", tmp_path / "out.jsonl"), Position()))
