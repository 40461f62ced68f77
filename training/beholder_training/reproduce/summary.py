"""Finished cells -> tables with intervals, and what must hold.

o.o.d. is the mean of three test sets: the training environment with its cue turned round, and the two other
environments. Every test set has one pair for each of the same scenes, so an o.o.d. value is a scene's mean over them.
Differences are between runs of the same environment, base, seed and data order on the same scenes; their intervals are
`over_seeds`: seeds and scenes are drawn, environments are given.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from beholder_training.evaluation.metrics import shortcut_failure
from beholder_training.evaluation.statistics import Estimate, Values, over_seeds
from beholder_training.reproduce.cells import TEXT_ONLY, Cell, Data
from beholder_training.reproduce.outcomes import Finished
from beholder_training.worlds import ENVIRONMENTS

IID, FREE, FLIPPED = "iid", "cue_free", "cue_flipped"


@dataclass(frozen=True, slots=True)
class Variant:
    """What a row of a table is: a weighting with its exponent, from one start."""

    start: str
    algorithm: str
    exponent: float

    @classmethod
    def of(cls, cell: Cell) -> "Variant":
        return cls(cell.start, cell.algorithm, cell.exponent)

    @property
    def label(self) -> str:
        return self.algorithm if self.exponent == 1 else f"{self.algorithm}, exponent {self.exponent:g}"


@dataclass(frozen=True, slots=True)
class Failure:
    """SFD and its two accuracies, means over environments, seeds and test sets; lowest and highest of one of these."""

    degradation: float
    lowest: float
    highest: float
    right: float
    wrong: float


@dataclass(frozen=True, slots=True)
class Row:
    """Accuracies of a variant, means over its environments and seeds; by_seed holds the spread of o.o.d."""

    variant: Variant
    environments: tuple[str, ...]
    iid: Estimate
    ood: Estimate
    cue_free: Estimate
    cue_flipped: Estimate
    other_environments: Estimate
    ood_by_seed: tuple[float, ...]
    sfd: Failure | None


class Results:
    """Finished cells of one family, by variant, environment and seed."""

    def __init__(self, finished: Iterable[Finished]) -> None:
        self._runs: dict[Variant, dict[str, dict[int, Finished]]] = {}
        self._baselines: dict[tuple[Data, int], Finished] = {}
        for each in finished:
            if each.cell.algorithm == TEXT_ONLY:
                self._baselines[each.cell.data, each.cell.seed] = each
                continue
            environments = self._runs.setdefault(Variant.of(each.cell), {})
            environments.setdefault(each.cell.data.environment, {})[each.cell.seed] = each

    def variants(self, start: str) -> list[Variant]:
        """Those with the same seeds, at least two, in each of their environments."""
        return [each for each in self._runs if each.start == start and self._whole(each)]

    def _whole(self, variant: Variant) -> bool:
        seeds = {frozenset(runs) for runs in self._runs[variant].values()}
        return len(seeds) == 1 and len(next(iter(seeds))) > 1

    def environments(self, variant: Variant) -> list[str]:
        return sorted(self._runs[variant])

    def runs(self, variant: Variant, environment: str) -> list[Finished]:
        """By seed."""
        return [run for _, run in sorted(self._runs[variant][environment].items())]

    def values(self, variant: Variant, tests: Mapping[str, Sequence[str]]) -> list[Values]:
        """(seeds, scenes) for each environment of `tests`: the mean over the test sets that it names."""
        return [
            np.stack(
                [np.mean([run.outcomes[test] for test in names], axis=0) for run in self.runs(variant, environment)]
            )
            for environment, names in tests.items()
        ]

    def text_only(self, run: Finished) -> Finished | None:
        """The text-only baseline on the same data, of the same seed."""
        return self._baselines.get((run.cell.data, run.cell.seed))


def others(environment: str) -> list[str]:
    return [name for name in ENVIRONMENTS if name != environment]


def ood(environment: str) -> list[str]:
    return [FLIPPED, *others(environment)]


def row(results: Results, variant: Variant, environments: Sequence[str]) -> Row:
    """One line of a table."""

    def over(choose: Mapping[str, Sequence[str]]) -> Estimate:
        return over_seeds(results.values(variant, choose))

    by_environment = results.values(variant, {name: ood(name) for name in environments})
    return Row(
        variant,
        tuple(environments),
        iid=over({name: [IID] for name in environments}),
        ood=over_seeds(by_environment),
        cue_free=over({name: [FREE] for name in environments}),
        cue_flipped=over({name: [FLIPPED] for name in environments}),
        other_environments=over({name: others(name) for name in environments}),
        ood_by_seed=tuple(np.mean([values.mean(axis=1) for values in by_environment], axis=0).tolist()),
        sfd=failure(results, variant, environments),
    )


def difference(
    results: Results, ours: Variant, theirs: Variant, environments: Sequence[str], tests: Sequence[str] | None = None
) -> Estimate:
    """ours - theirs on the same seeds and scenes; `tests` by default the o.o.d. ones of each environment."""
    chosen = {name: tests or ood(name) for name in environments}
    pairs = zip(results.values(ours, chosen), results.values(theirs, chosen), strict=True)
    return over_seeds([first - second for first, second in pairs])


def failure(results: Results, variant: Variant, environments: Sequence[str]) -> Failure | None:
    """SFD over every environment, seed and test set where both groups have enough pairs; None without a baseline."""
    found = []
    for environment in environments:
        for run in results.runs(variant, environment):
            if (baseline := results.text_only(run)) is None:
                continue
            each = (shortcut_failure(run.outcomes[test], baseline.outcomes[test]) for test in run.outcomes)
            found += [one for one in each if one is not None]
    if not found:
        return None
    right, wrong = (float(np.mean([getattr(one, side).mean for one in found])) for side in ("right", "wrong"))
    each_alone = [one.degradation for one in found]
    return Failure(right - wrong, min(each_alone), max(each_alone), right, wrong)


def lowest_cell(results: Results, variant: Variant) -> float:
    """The lowest accuracy on an environment that is not the training one."""
    cells = matrix(results, variant).items()
    return min(value for trained, row in cells for tested, value in row.items() if trained != tested)


def matrix(results: Results, variant: Variant) -> dict[str, dict[str, float]]:
    """Mean accuracy over seeds: trained on a row's environment, tested on a column's."""
    return {
        trained: {
            tested: float(
                np.mean(
                    [
                        run.outcomes[IID if tested == trained else tested].mean()
                        for run in results.runs(variant, trained)
                    ]
                )
            )
            for tested in ENVIRONMENTS
        }
        for trained in results.environments(variant)
    }
