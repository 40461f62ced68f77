"""What a reproduction must show, each with its figure, its interval and whether it holds.

The default weighting is proxy-balanced with exponent 1; o.o.d. claims are about it. The claim on i.i.d. accuracy is
about the recommended exponent.
"""

from dataclasses import dataclass

from beholder_training.evaluation.statistics import Estimate
from beholder_training.reproduce.cells import Start
from beholder_training.reproduce.families import RECOMMENDED
from beholder_training.reproduce.summary import IID, Results, Variant, difference, failure
from beholder_training.worlds import ENVIRONMENTS

GAIN: dict[Start, float] = {"scratch": 0.10, "sees": 0.04}
IID_LOSS = 0.02


@dataclass(frozen=True, slots=True)
class Claim:
    """`wanted` is what `value` is compared with, in words."""

    title: str
    value: Estimate | float
    wanted: str
    holds: bool


def check(results: Results, start: Start) -> list[Claim]:
    """The claims of a start for which the cells are there."""
    known = {(each.algorithm, each.exponent): each for each in results.variants(start)}
    ours, standard = known.get(("proxy_balanced", 1.0)), known.get(("standard", 1.0))
    recommended = known.get(("proxy_balanced", RECOMMENDED))
    if ours is None or standard is None or not _everywhere(results, ours, standard):
        return []
    claims = [_gain(results, ours, standard, start)]
    claims += [_above(results, ours, known[name, 1.0]) for name in ("constant", "sfc_shuffled") if (name, 1.0) in known]
    if recommended is not None and _everywhere(results, recommended, standard):
        claims.append(_iid(results, recommended, standard))
    claims += _sfd(results, ours, standard)
    return claims


def _everywhere(results: Results, *variants: Variant) -> bool:
    return all(results.environments(variant) == sorted(ENVIRONMENTS) for variant in variants)


def _gain(results: Results, ours: Variant, standard: Variant, start: Start) -> Claim:
    value, wanted = difference(results, ours, standard, ENVIRONMENTS), GAIN[start]
    holds = value.mean >= wanted and value.excludes_zero
    return Claim("o.o.d., default − standard", value, f"at least {100 * wanted:+.0f} points", holds)


def _above(results: Results, ours: Variant, control: Variant) -> Claim:
    environments = results.environments(control)
    value = difference(results, ours, control, environments)
    title = f"o.o.d., default − {control.label} ({', '.join(environments)})"
    return Claim(title, value, "above zero", value.mean > 0 and value.excludes_zero)


def _iid(results: Results, recommended: Variant, standard: Variant) -> Claim:
    value = difference(results, recommended, standard, ENVIRONMENTS, [IID])
    title = f"i.i.d., exponent {RECOMMENDED:g} − standard"
    return Claim(title, value, f"at least {-100 * IID_LOSS:+.0f} points", value.mean >= -IID_LOSS)


def _sfd(results: Results, ours: Variant, standard: Variant) -> list[Claim]:
    first, second = (failure(results, each, ENVIRONMENTS) for each in (ours, standard))
    if first is None or second is None:
        return []
    value = first.degradation - second.degradation
    return [Claim("SFD, default − standard", value, "below zero", value < 0)]
