"""What golden samples are made of, and what they are compared with."""

from pathlib import Path

import pytest

from beholder.adopting.samples import pictured_samples
from beholder.checkpoint import GOLDEN_FOLDER, GOLDEN_NAME, Checkpoint, GoldenSample
from beholder.engine import EngineScore
from beholder.errors import CheckpointError, GoldenMismatch, PromptTooLong, TooManyImages
from beholder.golden import require_passed, score_golden
from beholder.golden_samples import write_golden_samples
from beholder.prompts import Prompt, PromptRenderer
from tests.service.stand_in import Key, Serve, StandInEngine

pytestmark = pytest.mark.anyio


class Limited(StandInEngine):
    """Refuses prompts of more images than `most`, with `error`."""

    most = 1
    error: Exception = TooManyImages("more images than are accepted")

    async def score(self, prompt: Prompt, *, fresh: bool = False) -> EngineScore:
        if len(prompt.images) > self.most:
            raise self.error
        return await super().score(prompt, fresh=fresh)


class Forgetful(StandInEngine):
    """Scores as trained, but for the call number `wrong` of each prompt."""

    def __init__(self, known: dict[Key, float]) -> None:
        super().__init__(known)
        self.calls: dict[int, int] = {}
        self.wrong = 0

    async def score(self, prompt: Prompt, *, fresh: bool = False) -> EngineScore:
        call = self.calls[id(prompt)] = self.calls.get(id(prompt), 0) + 1
        assert fresh == (call == 1)
        score = await super().score(prompt, fresh=fresh)
        return EngineScore(score.logit + (call == self.wrong), score.prompt_tokens, 0)


def written(folder: Path) -> list[GoldenSample]:
    lines = (folder / GOLDEN_FOLDER / GOLDEN_NAME).read_text().splitlines()
    return [GoldenSample.model_validate_json(line) for line in lines]


def test_two_different_pictures_are_asked_for_in_one_conversation(checkpoint: Checkpoint) -> None:
    pairs = [sample for sample in checkpoint.golden() if len(sample.images) > 1]
    assert [sample.id for sample in pairs] == ["two-pictures"]
    first, second = checkpoint.golden_images(pairs[0])
    assert first.sha256 != second.sha256


def test_one_picture_alone_gives_a_pair_too(tmp_path: Path, renderer: PromptRenderer) -> None:
    (tmp_path / "rm").mkdir()
    write_golden_samples(tmp_path / "rm", renderer, lambda prompt: 0.0, pictured_samples(tmp_path)[:1])
    (pair,) = [sample for sample in written(tmp_path / "rm") if len(sample.images) > 1]
    assert len(set(pair.images)) == 2


@pytest.mark.parametrize("refused", [1, 2])
def test_a_pair_that_is_too_long_for_the_model_is_left_out(
    tmp_path: Path, renderer: PromptRenderer, refused: int
) -> None:
    def score(prompt: Prompt) -> float:
        if len(prompt.images) >= refused:
            raise PromptTooLong("too long", 2, 1)
        return 0.0

    (tmp_path / "rm").mkdir()
    samples = pictured_samples(tmp_path)
    if refused == 1:
        with pytest.raises(PromptTooLong):
            write_golden_samples(tmp_path / "rm", renderer, score, samples)
    else:
        write_golden_samples(tmp_path / "rm", renderer, score, samples)
        assert {len(sample.images) for sample in written(tmp_path / "rm")} == {0, 1}


@pytest.mark.parametrize("error", [TooManyImages("more"), PromptTooLong("longer", 2, 1)])
async def test_an_engine_that_takes_one_picture_is_not_asked_for_two(
    checkpoint: Checkpoint, renderer: PromptRenderer, error: Exception
) -> None:
    engine = Limited.passing_golden(checkpoint, renderer)
    assert isinstance(engine, Limited)
    engine.error = error
    await engine.start()
    results = await score_golden(engine, renderer, checkpoint, "float32")
    require_passed(results)
    assert [result.id for result in results] == [each.id for each in checkpoint.golden() if len(each.images) < 2]
    engine.most = 0
    with pytest.raises(CheckpointError, match="cannot be scored"):
        await score_golden(engine, renderer, checkpoint, "float32")


@pytest.mark.parametrize("wrong", [0, 1, 2, 3])
async def test_scores_past_into_and_out_of_the_caches_are_compared(
    checkpoint: Checkpoint, renderer: PromptRenderer, wrong: int
) -> None:
    engine = Forgetful.passing_golden(checkpoint, renderer)
    assert isinstance(engine, Forgetful)
    await engine.start()
    engine.wrong = wrong
    results = await score_golden(engine, renderer, checkpoint, "float32")
    assert set(engine.calls.values()) == {3}
    if wrong:
        with pytest.raises(GoldenMismatch, match=f"{len(results)} of {len(results)} samples differ"):
            require_passed(results)
    else:
        require_passed(results)


async def test_a_service_compares_what_its_engine_scores_not_what_its_score_cache_knows(
    serve: Serve, engine: StandInEngine, checkpoint: Checkpoint
) -> None:
    async with serve(score_cache_bytes=2**20) as client:
        assert engine.started == 3 * len(checkpoint.golden())
        assert "beholder_score_cache_total{" not in (await client.get("/metrics")).text


def test_a_sample_of_several_pictures_shows_them_before_the_text() -> None:
    sample = GoldenSample(id="s", prompt="p", images=("a.png", "b.png"), response="r", score=0.0)
    (turn,) = sample.conversation()
    assert len(turn.parts) == 3
    assert turn.parts[-1] == "p"
