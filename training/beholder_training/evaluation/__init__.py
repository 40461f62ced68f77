"""What reward models get right, and why.

statistics.py   means, differences and their 95% intervals
metrics.py      pure functions of scores: accuracy, top-1, SFD, calibration, best-of-N
together.py     several test sets in one pass
ablations.py    the same model with a part of its input taken away
suite.py        several models on several test sets -> one Evaluation
inputs.py       models and test sets, from paths
"""

from beholder_training.evaluation.metrics import Scores, calibrate, chance_top1, pair_outcomes, question_of_pair, top1
from beholder_training.evaluation.statistics import Estimate, estimate, paired_difference

__all__ = [
    "Estimate",
    "Scores",
    "calibrate",
    "chance_top1",
    "estimate",
    "pair_outcomes",
    "paired_difference",
    "question_of_pair",
    "top1",
]
