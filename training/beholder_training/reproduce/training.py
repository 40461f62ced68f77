"""One base or cell, trained and tested in this process."""

import os
import time
from dataclasses import replace
from pathlib import Path

from transformers import set_seed

from beholder.modeling.inputs import PromptEncoder
from beholder_training.base_tokenizers import world_texts
from beholder_training.bases import TINY, make_base
from beholder_training.branch import Branch
from beholder_training.config import TrainingConfig
from beholder_training.data import Record, read_records, with_pairs
from beholder_training.evaluation import pair_outcomes
from beholder_training.evaluation.together import score_together
from beholder_training.pipeline import make_branches
from beholder_training.reproduce.cells import GROCERY_CUES, TEXT_ONLY, Base, Cell, Source, without_seeing
from beholder_training.reproduce.outcomes import Finished
from beholder_training.reproduce.places import Places
from beholder_training.runs import train
from beholder_training.seeing import teach_to_see

SEEING_RATE = 1e-3
PROXY_RATE = 1e-3
PICTURES = 2**30  # bytes of processed pictures that a worker keeps for its next cells
_encoders: dict[Source, PromptEncoder] = {}


def make(places: Places, base: Base) -> None:
    """Write the base, whole or not at all."""
    output = places.base(base)
    set_seed(base.seed)
    if base.steps:
        blind = places.base(without_seeing(base))
        teach_to_see(blind, places.seeing_file(base.source), output, base.steps, SEEING_RATE, base.seed)
        return
    partial = output.with_name(f".{output.name}.{os.getpid()}")
    size = replace(TINY, vocabulary=1024) if base.source == "grocery" else TINY
    make_base(partial, size=size, seed=base.seed, texts=_texts(places, base.source))
    partial.rename(output)


def run(places: Places, cell: Cell) -> Finished:
    """Train as the cell says, and test on all its test sets."""
    started = time.monotonic()
    config = configure(places, cell)
    set_seed(config.seed)  # for the heads, which are drawn anew: the same for every weighting
    main, proxy = make_branches(config)
    main.encoder = _shared_encoder(main, cell.base.source)
    trainer = train(config, _records(places.train_file(cell.data)), main, proxy)
    history = [line for line in trainer.state.log_history if "learning_rate" in line]
    tests = {name: _records(file) for name, file in places.tests(cell.data).items()}
    scores = score_together(main, tests)
    outcomes = {name: pair_outcomes(records, scores[name]) for name, records in tests.items()}
    return Finished(cell, outcomes, history, time.monotonic() - started)


def configure(places: Places, cell: Cell) -> TrainingConfig:
    """The run's settings: equal for all weightings but for the weight itself."""
    text_only = cell.algorithm == TEXT_ONLY
    return TrainingConfig(
        base=str(places.base(cell.base)),
        output=places.root / "runs" / cell.name,
        train=[places.train_file(cell.data)],
        validation=[places.tests(cell.data)["iid"]],
        algorithm="standard" if text_only else cell.algorithm,
        text_only=text_only,
        steps=cell.steps,
        exponent=cell.exponent,
        learning_rate=cell.learning_rate,
        proxy_learning_rate=PROXY_RATE,
        proxy_warmup_steps=cell.warmup,
        freeze_vision=False,
        seed=cell.seed,
    )


def _shared_encoder(branch: Branch, source: Source) -> PromptEncoder:
    """One for all cells of a worker on the same pictures: bases of a source differ in their weights alone."""
    if source not in _encoders:
        _encoders[source] = PromptEncoder.from_folder(
            branch.folder, branch.renderer.image_token_id, branch.encoder.max_length, PICTURES
        )
    return _encoders[source]


def _texts(places: Places, source: Source) -> list[str]:
    """What the tokenizer learns its words from."""
    if source != "grocery":
        return list(world_texts())
    records = [record for name in GROCERY_CUES for record in _records(places.grocery(f"{name}_train"))]
    return [text for record in records for text in (record.prompt, *record.responses)]


def _records(file: Path) -> list[Record]:
    return with_pairs(read_records([file]))
