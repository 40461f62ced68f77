"""One progress bar a run, with what a person wants to see beside it, instead of the Trainer's printed dictionaries."""

from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

SHOWN = {"main_loss": "loss", "accuracy": "accuracy", "proxy_accuracy": "text-only proxy"}


class ProgressBar(TrainerCallback):
    """Shows steps, time left, and the latest loss and pair accuracies. `label` names the run."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._bar = tqdm(total=state.max_steps, desc=self._label, unit="step", dynamic_ncols=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        shown = {title: f"{logs[name]:.3f}" for name, title in SHOWN.items() if logs and name in logs}
        if self._bar is not None and shown:
            self._bar.set_postfix(shown)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.close()
