"""What happens around a step: each branch's own gradient clip, this run's intervals, whole states to save, SIGTERM."""

import signal
import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback

from beholder_training.branches import NAMES, branch_parameters
from beholder_training.errors import TrainingDiverged
from beholder_training.optimisation import fill_state


class ClipEachBranch(TrainerCallback):
    """One clip over both branches would let a spiking proxy shrink the main branch's update.

    Raises TrainingDiverged when a gradient is not finite; `records` names those of the step.
    """

    def __init__(self, max_norm: float, records: Callable[[], str]) -> None:
        self.max_norm = max_norm
        self.records = records

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for branch in NAMES:
            norm: Any = nn.utils.clip_grad_norm_(branch_parameters(kwargs["model"], branch), self.max_norm)
            total: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # FSDP2 shards gradients
            if not total.isfinite():
                raise TrainingDiverged(
                    f"the gradient of the {branch} branch is {total.item()} at step {state.global_step + 1}, "
                    f"on records {self.records()}"
                )


class KeepIntervals(TrainerCallback):
    """A run that goes on saves and logs as often as it says itself: the restored state has the former intervals."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.save_steps, state.logging_steps = args.save_steps, args.logging_steps


class WholeState(TrainerCallback):
    """Whatever is saved has an optimiser state for every parameter."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        fill_state(kwargs["optimizer"])


class StopOnSigterm(TrainerCallback):
    """SIGTERM ends the run after the step that it falls in, with everything saved for going on.

    `agreed` is set by the trainer once any process has had the signal, so that all stop after the same step. The
    signal is caught until `restore`, so that what is saved after the last step is saved whole.
    """

    def __init__(self) -> None:
        self.received = False
        self.agreed = False
        self._previous: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._receive)

    def restore(self) -> None:
        """The signal's former meaning."""
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.agreed and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True

    def _receive(self, number: int, frame: Any) -> None:
        self.received = True
