"""What scores say: accuracy, margins, top-1, SFD, calibration, best-of-N. Pure functions.

scores[i][j] is the reward of response j of record i; a margin is reward(chosen) - reward(rejected), one a pair, in
record order.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import comb

import numpy as np

from beholder.checkpoint import Calibration
from beholder_training.data import Record
from beholder_training.evaluation.statistics import Estimate, Groups, Values, estimate

Scores = Sequence[Sequence[float]]
MIN_GROUP = 20  # pairs: an accuracy over fewer says nothing

SFD_FORMULA = (
    "SFD = accuracy where a text-only reward model ranks the pair correctly - accuracy where it does not. "
    "The formula is a reconstruction: the published definition could not be read in full."
)


def pair_margins(records: Sequence[Record], scores: Scores) -> Values:
    """The margin of every pair."""
    margins = [
        rewards[chosen] - rewards[rejected]
        for record, rewards in zip(records, scores, strict=True)
        for chosen, rejected in record.pairs()
    ]
    return np.asarray(margins, dtype=np.float64)


def question_of_record(records: Sequence[Record]) -> Groups:
    """The number of every record's question, which is that of all with the same prompt and image files.

    Files of pairs repeat a question for each of its pairs: what a model gets right of them is not independent.
    """
    real = cache(os.path.realpath)
    numbers: dict[tuple[str, tuple[str, ...]], int] = {}
    questions = [(record.prompt, tuple(map(real, record.images))) for record in records]
    return np.asarray([numbers.setdefault(question, len(numbers)) for question in questions], dtype=np.int64)


def question_of_pair(records: Sequence[Record]) -> Groups:
    """The same for every pair."""
    return np.repeat(question_of_record(records), [len(record.pairs()) for record in records])


def outcomes(margins: Values) -> Values:
    """For each pair 1 where the chosen response scores higher, 0.5 at a tie, 0 otherwise."""
    return (np.sign(margins) + 1) / 2


def pair_outcomes(records: Sequence[Record], scores: Scores) -> Values:
    """`outcomes` of every pair's margin."""
    return outcomes(pair_margins(records, scores))


def top1(records: Sequence[Record], scores: Scores) -> Values:
    """For each record 1 where a response of the greatest quality scores highest; of a tie at the top, its share."""
    shares = []
    for record, rewards in zip(records, scores, strict=True):
        first = [quality for quality, reward in zip(record.qualities, rewards, strict=True) if reward == max(rewards)]
        shares.append(first.count(max(record.qualities)) / len(first))
    return np.asarray(shares, dtype=np.float64)


def chance_top1(records: Sequence[Record]) -> float:
    """Top-1 of a random ranking."""
    return float(np.mean([record.qualities.count(max(record.qualities)) / len(record.qualities) for record in records]))


@dataclass(frozen=True, slots=True)
class ShortcutFailure:
    """SFD of one model on one test set, with both accuracies: where the text-only model is right, and wrong."""

    degradation: float
    half_width: float
    right: Estimate
    wrong: Estimate


def shortcut_failure(model: Values, text_only: Values, groups: Groups | None = None) -> ShortcutFailure | None:
    """SFD_FORMULA, over the outcomes of the same pairs; None where either side has fewer than MIN_GROUP pairs.

    The interval is that of a difference of two means whose sides may share questions (`groups`).
    """
    right, wrong = text_only > 0.5, text_only < 0.5
    if min(right.sum(), wrong.sum()) < MIN_GROUP:
        return None
    first, second = (estimate(model[side], None if groups is None else groups[side]) for side in (right, wrong))
    # What each pair contributes to the difference, times the number of pairs, so that its mean is the difference.
    shares = len(model) * (right / right.sum() - wrong / wrong.sum())
    centred = model - np.where(right, first.mean, second.mean)
    half_width = estimate(shares * centred, groups).half_width
    return ShortcutFailure(first.mean - second.mean, half_width, first, second)


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Pairs whose confidence sigmoid(|margin|) is alike: its mean, and how often the model is right."""

    confidence: float
    accuracy: Estimate


def reliability(margins: Values, groups: Groups | None = None, bins: int = 10) -> list[ReliabilityBin]:
    """Bins of equal numbers of pairs, by growing confidence. `groups` are as `question_of_pair` gives them."""
    confidence, right = 1 / (1 + np.exp(-np.abs(margins))), outcomes(margins)
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, min(bins, max(len(order) // MIN_GROUP, 1)))
    return [
        ReliabilityBin(float(confidence[part].mean()), estimate(right[part], None if groups is None else groups[part]))
        for part in parts
    ]


def calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Mean over pairs of |confidence - accuracy| of the pair's bin (expected calibration error)."""
    counts = [each.accuracy.count for each in bins]
    gaps = [abs(each.confidence - each.accuracy.mean) for each in bins]
    return float(np.average(gaps, weights=counts))


def best_of_n(records: Sequence[Record], scores: Scores) -> list[Estimate]:
    """For N = 1, 2, ..: the mean quality of the response that scores highest among N drawn without replacement.

    Exact over the draws, and over the order of responses that tie; N goes to the smallest number of responses of a
    record, and is empty without records. Intervals are over questions.
    """
    limit = min((len(record.responses) for record in records), default=0)
    qualities = [_ranked(record.qualities, rewards) for record, rewards in zip(records, scores, strict=True)]
    best = [np.asarray([_best_of(ranked, drawn) for ranked in qualities]) for drawn in range(1, limit + 1)]
    return [estimate(values, question_of_record(records)) for values in best]


def _ranked(qualities: Sequence[float], rewards: Sequence[float]) -> list[float]:
    """Qualities, best reward first; where rewards tie, the mean of the tied ones at each of their ranks."""
    tied: dict[float, list[float]] = {}
    for quality, reward in zip(qualities, rewards, strict=True):
        tied.setdefault(reward, []).append(quality)
    return [sum(tied[reward]) / len(tied[reward]) for reward in sorted(rewards, reverse=True)]


def _best_of(ranked: Sequence[float], drawn: int) -> float:
    """`ranked` are qualities, best score first: rank i is the best of `drawn` when the others drawn rank lower."""
    count = len(ranked)
    chances = [comb(count - 1 - rank, drawn - 1) / comb(count, drawn) for rank in range(count)]
    return sum(chance * quality for chance, quality in zip(chances, ranked, strict=True))


def calibrate(scores: Scores) -> Calibration:
    """Mean, deviation and quantiles over all responses."""
    flat = np.asarray([reward for rewards in scores for reward in rewards])
    levels = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
    quantiles = {str(level): float(np.quantile(flat, level)) for level in levels}
    return Calibration(mean=float(flat.mean()), deviation=float(flat.std()), quantiles=quantiles)
