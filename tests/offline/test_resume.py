"""A run that was cut off anywhere goes on where it was; one that would mix two checkpoints or inputs is refused."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from beholder.errors import DataError
from beholder.offline.backends import EngineBackend
from beholder.offline.journal import Journal
from beholder.offline.results import write_rows
from beholder.offline.scoring import Backend, Job, Position, score_file
from beholder.offline.tasks import Scored
from beholder.settings import Settings
from tests.offline.scoring import CountingBackend, read, score, write

RECORDS = [{"id": f"r{n}", "prompt": "?", "responses": ["A" * n, "é"]} for n in range(1, 5)]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(write(tmp_path / "data.jsonl", RECORDS), tmp_path / "out.jsonl", progress=False)


@pytest.fixture
def about(job: Job) -> dict[str, Any]:
    """What stands in the job's journal."""
    return {**CountingBackend().about, "image_root": job.images_from}


@pytest.fixture
def whole(job: Job) -> bytes:
    """The uninterrupted result."""
    score_file(job, CountingBackend())
    content = job.output.read_bytes()
    job.output.unlink()
    return content


def partial(job: Job) -> Path:
    return job.output.with_name("out.jsonl.partial")


def begin(job: Job, backend: Backend) -> None:
    """A run that was killed before its first record."""
    Journal(partial(job), {**backend.about, "image_root": job.images_from}).close()


def interrupt(job: Job, after: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        score_file(job, CountingBackend(stop_after=after))


def test_what_was_scored_is_not_scored_again(job: Job, whole: bytes) -> None:
    interrupt(job, after=3)
    backend = CountingBackend()
    assert score_file(job, backend).scored == 8
    assert backend.lines == [4]
    assert job.output.read_bytes() == whole


def test_a_journal_cut_at_any_byte_gives_the_same_file(job: Job, whole: bytes) -> None:
    interrupt(job, after=3)
    journal = partial(job).read_bytes()
    ends = [index + 1 for index, byte in enumerate(journal) if byte == ord("\n")]
    for cut in range(len(journal)):
        partial(job).write_bytes(journal[:cut])
        backend = CountingBackend()
        score_file(job, backend)
        complete = sum(end <= cut for end in ends[1:])
        assert backend.lines == [1, 2, 3, 4][complete:]
        assert job.output.read_bytes() == whole
        job.output.unlink()


def test_a_complete_journal_needs_no_engine(job: Job, whole: bytes) -> None:
    """Killed while the output was written."""
    interrupt(job, after=3)
    write(job.input, RECORDS[:3])
    backend = CountingBackend()
    assert score_file(job, backend).scored == 6
    assert backend.lines == []
    assert whole.startswith(job.output.read_bytes())


def test_another_checkpoint_is_refused(job: Job) -> None:
    interrupt(job, after=2)
    before = partial(job).read_bytes()
    with pytest.raises(DataError, match=r"was begun with fingerprint aaaaaaaaaaaa\.\.\., this run has bbbbbbbbbbbb"):
        score_file(job, CountingBackend("b" * 64))
    assert partial(job).read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "bfloat16"}, "dtype float32, this run has bfloat16"),
        ({"max_model_len": 512}, "max_model_len 1024, this run has 512"),
        ({"overlong": "truncate"}, "overlong refuse, this run has truncate"),
        ({"max_images": 5}, "max_images 4, this run has 5"),
        ({"max_image_bytes": 1000}, "max_image_bytes 20971520, this run has 1000"),
        ({"max_image_pixels": 1000}, "max_image_pixels 50000000, this run has 1000"),
        ({"max_image_aspect": 200.0}, r"max_image_aspect 190\.0, this run has 200\.0"),
        ({"max_image_frames": 1}, "max_image_frames 1000, this run has 1"),
    ],
)
def test_a_setting_that_decides_what_is_scored_is_refused_and_named(
    job: Job, fake: Settings, change: dict[str, Any], message: str
) -> None:
    begin(job, EngineBackend(fake))
    with pytest.raises(DataError, match=f"was begun with {message}: two would mix"):
        score_file(job, EngineBackend(fake.model_copy(update=change)))
    assert len(read(partial(job))) == 1


def test_settings_of_speed_may_change(job: Job, fake: Settings) -> None:
    begin(job, EngineBackend(fake))
    faster = fake.model_copy(update={"max_decoded_pixels": 10**6, "max_in_flight": 8})
    assert score_file(job, EngineBackend(faster)).scored == 8


def test_a_journal_of_another_version_is_refused_as_that(job: Job, about: dict[str, Any]) -> None:
    partial(job).write_text(json.dumps({"journal": 2, **about, "restart": False}) + "\n")
    with pytest.raises(DataError, match="was begun by another version of Beholder"):
        score_file(job, CountingBackend())


@pytest.mark.parametrize("change", ["edited", "shorter", "inserted"])
def test_a_changed_input_is_refused(job: Job, change: str) -> None:
    interrupt(job, after=2)
    changed = {
        "edited": [RECORDS[0], {**RECORDS[1], "prompt": "!"}, *RECORDS[2:]],
        "shorter": RECORDS[:1],
        "inserted": [RECORDS[3], *RECORDS],
    }[change]
    write(job.input, changed)
    with pytest.raises(DataError, match="is not what was scored before"):
        score_file(job, CountingBackend())
    assert len(read(partial(job))) == 3


def test_what_follows_may_change(job: Job) -> None:
    interrupt(job, after=2)
    write(job.input, [*RECORDS[:2], {"id": "new", "prompt": "?", "responses": ["B"]}])
    score_file(job, CountingBackend())
    assert [row["id"] for row in read(job.output)] == ["r1", "r1", "r2", "r2", "new"]


def test_restart_forgets_a_journal_of_another_checkpoint(job: Job, whole: bytes) -> None:
    interrupt(job, after=2)
    again = Job(job.input, job.output, restart=True, progress=False)
    score_file(again, CountingBackend("b" * 64))
    assert {row["fingerprint"] for row in read(job.output)} == {"b" * 64}


def test_a_restart_that_was_cut_off_is_taken_up_again(job: Job, whole: bytes) -> None:
    """Without the flag; until then the old output stands as it was."""
    job.output.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        score_file(replace(job, restart=True), CountingBackend(stop_after=3))
    assert job.output.read_bytes() == b"old"
    backend = CountingBackend()
    score_file(job, backend)
    assert backend.lines == [4]
    assert job.output.read_bytes() == whole
    assert not partial(job).exists()


def test_a_restart_killed_once_its_output_was_written_is_finished(
    job: Job, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, rows: Iterable[dict[str, Any]]) -> None:
        write_rows(path, rows)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("beholder.offline.scoring.write_rows", killed)
        with pytest.raises(KeyboardInterrupt):
            score_file(replace(job, restart=True), CountingBackend())
    backend = CountingBackend()
    score_file(job, backend)
    assert backend.lines == []
    assert job.output.read_bytes() == whole
    assert not partial(job).exists()


@pytest.mark.parametrize("left", [b"", b'{"journal": 2'])
def test_an_output_is_not_replaced_where_no_restart_was_begun(job: Job, left: bytes) -> None:
    """Also not when a restart was killed before it said so."""
    job.output.write_bytes(b"old")
    partial(job).write_bytes(left)
    with pytest.raises(DataError, match=r"out\.jsonl exists"):
        score_file(job, CountingBackend())
    assert (job.output.read_bytes(), partial(job).read_bytes()) == (b"old", left)


def test_an_output_beside_the_journal_of_a_plain_run_is_not_replaced(job: Job) -> None:
    interrupt(job, after=3)
    job.output.write_bytes(b"mine")
    with pytest.raises(DataError, match=r"out\.jsonl exists"):
        score_file(job, CountingBackend())
    assert job.output.read_bytes() == b"mine"


def test_other_pictures_are_refused(job: Job, tmp_path: Path, whole: bytes) -> None:
    """Those of another folder; the default one may be named as well."""
    interrupt(job, after=2)
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match=rf"was begun with image_root {tmp_path}, this run has {tmp_path}/other: "):
        score_file(replace(job, image_root=tmp_path / "other"), CountingBackend())
    score_file(replace(job, image_root=tmp_path / "other" / ".."), CountingBackend())
    assert job.output.read_bytes() == whole


@pytest.mark.parametrize("content", [b"{}\n", b"not json\n", b'[{"id": 1}]\n'])
def test_a_file_that_is_no_journal_is_left_alone(job: Job, content: bytes) -> None:
    partial(job).write_bytes(content)
    with pytest.raises(DataError, match="is not a journal of score-file"):
        score_file(job, CountingBackend())
    assert partial(job).read_bytes() == content


def test_a_journal_damaged_inside_is_refused(job: Job) -> None:
    interrupt(job, after=3)
    lines = partial(job).read_bytes().splitlines(keepends=True)
    partial(job).write_bytes(b"".join([lines[0], b"\0" * 20 + b"\n", *lines[2:]]))
    with pytest.raises(DataError, match="is damaged at byte"):
        score_file(job, CountingBackend())


def test_two_processes_do_not_write_one_file(job: Job, about: dict[str, Any]) -> None:
    """The other process holds the journal until its standard input ends."""
    path = partial(job)
    code = (
        "import sys; from pathlib import Path; from beholder.offline.journal import Journal; "
        f"journal = Journal(Path({str(path)!r}), {about!r}); print('held', flush=True); "
        "sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(DataError, match="another process is scoring to this file"):
            Journal(path, about)
        other.send_signal(signal.SIGKILL)
    score_file(job, CountingBackend())  # a killed process holds nothing


def test_a_full_disk_loses_nothing_that_was_written(job: Job, about: dict[str, Any], whole: bytes) -> None:
    found: list[Scored] = []
    CountingBackend().run(job, Position(), found.append)
    with Path("/dev/full").open("wb") as full:
        journal = Journal(partial(job), about)
        assert list(journal.records()) == []
        own = os.dup(journal._file.fileno())
        os.dup2(full.fileno(), journal._file.fileno())
        with pytest.raises(DataError, match="No space left on device: make room and run the same command again"):
            journal.append(found[0])
        os.dup2(own, journal._file.fileno())
        os.close(own)
        journal.close()
    score_file(job, CountingBackend())
    assert job.output.read_bytes() == whole


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_killed_at_twenty_random_moments(fake: Settings, scenes: Path, tmp_path: Path) -> None:
    """Byte for byte what an uninterrupted run writes. See kills.py."""
    score(fake, scenes, tmp_path / "whole.jsonl")
    arguments = [str(fake.checkpoint), str(scenes), str(tmp_path / "out.jsonl"), "20"]
    done = subprocess.run([sys.executable, "-m", "tests.offline.kills", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["kills"] == 20
    assert outcome["kills_with_progress"] >= 5  # not all before the first record
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
