"""How a training run ends early."""

from beholder.errors import BeholderError


class TrainingDiverged(BeholderError):
    """A loss or a gradient was not finite; the message names the records."""

    code = "training-diverged"


class TrainingInterrupted(BeholderError):
    """SIGTERM: the run was saved, and the same command goes on from there."""

    code = "training-interrupted"
