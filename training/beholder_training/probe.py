"""Does this model give packed responses the rewards that they have alone? Asked of the model itself, at the start.

Packing is right for models whose tokens meet in attention alone. A recurrent layer, a window over neighbours or a
backbone that ignores the 4-D mask breaks it, whatever the model is called; such a model gets padded batches.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch

from beholder_training.branch import Branch, on_accelerator
from beholder_training.data import Record

READ = 64  # records to choose from
PROBED = 3  # of them those with the most responses, and the longest
TOLERANCE = 0.01  # of the spread of rewards; float32 rounding is a thousandth of that, a wrong mask many times it
_TINY = 1e-6


@dataclass(frozen=True, slots=True)
class Probe:
    """error: greatest difference between a packed and a separate reward; spread: of the separate rewards."""

    error: float
    spread: float

    @property
    def equal(self) -> bool:
        return self.error <= TOLERANCE * self.spread + _TINY


def probe_packing(branch: Branch, records: Sequence[Record]) -> Probe:
    """Compare the packed forward with one sequence a response, on a few of the first records."""
    chosen = _telling(records[:READ])
    packed = _rewards(replace(branch, packed=True), chosen)
    separate = _rewards(replace(branch, packed=False), chosen)
    # Within a prompt: that is what training compares.
    spread = max(max(rewards) - min(rewards) for rewards in separate)
    error = max(
        abs(a - b) for ours, alone in zip(packed, separate, strict=True) for a, b in zip(ours, alone, strict=True)
    )
    return Probe(error, spread)


def _telling(records: Sequence[Record]) -> list[Record]:
    """Those with the most responses, and the longest: a window over neighbours shows in long texts alone."""
    chosen = sorted(records, key=lambda record: -len(record.responses))[:PROBED]
    longest = max(records, key=lambda record: len(record.prompt) + sum(map(len, record.responses)))
    return chosen if longest in chosen else [*chosen, longest]


def choose_packing(branch: Branch, records: Sequence[Record]) -> Probe:
    """Turn packing off on `branch` where it changes rewards; the probe says by how much.

    The branch stays where it is, for sharding starts from the CPU; there forwards of a large model take hours.
    """
    probe = None
    with suppress(torch.OutOfMemoryError), on_accelerator(branch):  # whole it may not fit, where sharded it does
        probe = probe_packing(branch, records)
    probe = probe or probe_packing(branch, records)
    branch.packed = branch.packed and probe.equal
    return probe


def _rewards(branch: Branch, records: Sequence[Record]) -> list[list[float]]:
    with torch.autocast(branch.device.type, enabled=False):
        return branch.score(records, batch_prompts=1)
