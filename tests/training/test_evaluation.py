"""What evaluation computes, on scores whose answers are known."""

from pathlib import Path

import numpy as np
import pytest

from beholder_training.data import Record
from beholder_training.evaluation.metrics import (
    best_of_n,
    calibration_error,
    pair_margins,
    pair_outcomes,
    reliability,
    shortcut_failure,
    top1,
)
from beholder_training.evaluation.statistics import Values, estimate, over_seeds


def record(*qualities: float) -> Record:
    responses = tuple(f"response {number}" for number in range(len(qualities)))
    return Record("r", "?", (Path("a.png"),), responses, qualities, "data.jsonl:1")


def test_margins_and_outcomes_are_of_every_pair_and_a_tie_counts_half() -> None:
    records, scores = [record(2, 1, 0), record(0, 1)], [[3.0, 1.0, 1.0], [0.5, -0.5]]
    assert pair_margins(records, scores).tolist() == [2.0, 2.0, 0.0, -1.0]
    assert pair_outcomes(records, scores).tolist() == [1, 1, 0.5, 0]


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Pairs of one record that always agree are one observation, not many."""
    rng = np.random.default_rng(0)
    covered = {"independent": 0, "grouped": 0}
    for _ in range(400):
        records = (rng.random(100) < 0.7).astype(float)
        values, groups = np.repeat(records, 3), np.repeat(np.arange(100), 3)
        for name, interval in (("independent", estimate(values)), ("grouped", estimate(values, groups))):
            covered[name] += abs(interval.mean - 0.7) <= interval.half_width
    assert 370 <= covered["grouped"] <= 395
    assert covered["independent"] < 320


def test_an_interval_over_seeds_covers_new_seeds_and_new_scenes() -> None:
    rng, covered = np.random.default_rng(1), 0
    for _ in range(300):
        covered += abs((interval := over_seeds(crossed(rng))).mean - 0.1) <= interval.half_width
    assert 279 <= covered <= 300  # 95%, or more as the formula says


def crossed(rng: np.random.Generator) -> list[Values]:
    """Three environments, three seeds, 200 scenes: 0.1 with noise of seeds, of scenes and of both."""
    scenes = rng.normal(0, 0.3, 200)
    return [0.1 + rng.normal(0, 0.02, (3, 1)) + scenes + rng.normal(0, 0.3, (3, 200)) for _ in range(3)]


def test_an_interval_over_seeds_needs_two_seeds_and_the_same_scenes() -> None:
    with pytest.raises(ValueError, match="at least two seeds"):
        over_seeds([np.zeros((1, 5))])
    with pytest.raises(ValueError, match="the same scenes"):
        over_seeds([np.zeros((2, 5)), np.zeros((2, 6))])


def test_one_record_gives_no_interval() -> None:
    for found in (estimate(np.ones(1)), estimate(np.ones(3), np.zeros(3, dtype=np.int64))):
        assert str(found) == "1.000 (no interval)"
        assert not found.excludes_zero


def test_sfd_is_the_accuracy_where_text_is_right_less_that_where_it_is_wrong() -> None:
    text = np.repeat([1.0, 0.0], [60, 40])
    model = np.concatenate([np.repeat([1.0, 0.0], [54, 6]), np.repeat([1.0, 0.0], [10, 30])])
    found = shortcut_failure(model, text)
    assert found is not None
    assert found.degradation == pytest.approx(0.9 - 0.25)
    assert (found.right.count, found.wrong.count) == (60, 40)
    assert shortcut_failure(model, np.ones(100)) is None  # no pair on which text fails: nothing to compare


def test_margins_that_are_log_odds_are_calibrated_and_doubled_ones_are_not() -> None:
    rng = np.random.default_rng(2)
    log_odds = rng.normal(0, 1.5, 20_000)
    right = np.where(rng.random(len(log_odds)) < 1 / (1 + np.exp(-np.abs(log_odds))), 1, -1)
    bins = reliability(np.abs(log_odds) * right)
    assert calibration_error(bins) < 0.02
    assert calibration_error(reliability(4 * np.abs(log_odds) * right)) > 0.1
    assert sum(each.accuracy.count for each in bins) == 20_000


def test_a_constant_model_is_at_chance_whatever_the_order_of_the_responses() -> None:
    qualities = [(2.0, 1.0, 0.0), (0.0, 2.0, 2.0)]
    records, scores = [record(*each) for each in qualities], [[0.5] * 3, [-1.0] * 3]
    assert top1(records, scores).tolist() == pytest.approx([1 / 3, 2 / 3])
    assert [each.mean for each in best_of_n(records, scores)] == pytest.approx([7 / 6] * 3)


def test_a_tie_below_the_best_changes_no_top1_and_best_of_n_is_its_mean_over_the_orders() -> None:
    from itertools import permutations

    ranked, scores = record(3.0, 0.0, 4.0, 1.0), [1.0, 0.0, 0.0, -1.0]
    assert top1([ranked], [scores]).tolist() == [0.0]
    split = [[1.0, *tied, -1.0] for tied in permutations((0.0, 0.1))]
    expected = np.mean([[each.mean for each in best_of_n([ranked], [order])] for order in split], axis=0)
    assert [each.mean for each in best_of_n([ranked], [scores])] == pytest.approx(expected.tolist())


def test_sfd_has_the_interval_of_new_records_when_its_sides_share_them() -> None:
    """Three pairs a record with an effect of the record, on which the text-only model is right or wrong by pair."""
    rng, found = np.random.default_rng(3), []
    for _ in range(400):
        model = (rng.normal(0, 1.5, (150, 1)) + rng.normal(size=(150, 3)) > -1).astype(float).ravel()
        text = (rng.random(450) < 0.6).astype(float)
        each = shortcut_failure(model, text, np.repeat(np.arange(150), 3))
        assert each is not None
        found.append((each.degradation, each.half_width))
    truth = 1.96 * np.std([degradation for degradation, _ in found])
    assert np.mean([half_width for _, half_width in found]) == pytest.approx(truth, rel=0.1)


def test_calibration_intervals_take_the_pairs_of_a_record_together() -> None:
    margins, records = np.repeat([1.0, -1.0], 150), np.repeat(np.arange(100), 3)
    (alone,), (together,) = reliability(margins, bins=1), reliability(margins, records, bins=1)
    assert together.accuracy.half_width == pytest.approx(3**0.5 * alone.accuracy.half_width, rel=0.01)


def test_best_of_n_is_exact_over_the_draws() -> None:
    """Against every subset written out."""
    from itertools import combinations

    qualities, scores = (1.0, 4.0, 2.0, 3.0), [0.1, 0.3, 0.9, 0.2]
    for drawn, found in enumerate(best_of_n([record(*qualities)], [scores]), start=1):
        subsets = list(combinations(range(4), drawn))
        expected = sum(qualities[max(subset, key=lambda index: scores[index])] for subset in subsets) / len(subsets)
        assert found.mean == pytest.approx(expected)
