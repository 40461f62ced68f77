"""`beholder-train` in a process of its own, which logs every step's losses and can be ended at a given one.

python -m tests.training.drive LOG SIGNAL STEP ARGUMENT... : LOG gets a JSON line a step; at the beginning of STEP (from
1; 0 is never) the process sends itself SIGNAL (KILL, TERM). With fsdp, every step sees that all weights are sharded,
and after each of its backwards that the gradients are.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from beholder_training import cli, runs
from beholder_training.trainer import RewardTrainer
from tests.training.cpu_sharding import allow_fsdp_on_cpu


def main() -> int:
    log, name, step, *arguments = sys.argv[1:]
    number = signal.Signals[f"SIG{name}"]

    class Driven(RewardTrainer):
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            if self.state.global_step + 1 == int(step):
                os.kill(os.getpid(), number)
            if self.config.fsdp:
                assert all(type(parameter).__name__ == "DTensor" for parameter in model.parameters())
                with patch.object(self.accelerator, "backward", self._sharding_backward(model)):
                    return super().training_step(model, inputs, num_items_in_batch)
            return super().training_step(model, inputs, num_items_in_batch)

        def _sharding_backward(self, model: Any) -> Callable[[Any], None]:
            """A whole gradient stays with FSDP2 until it is reduced into the sharded weight's."""
            backward = self.accelerator.backward

            def checked(loss: Any) -> None:
                backward(loss)
                gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
                assert gradients
                assert all(type(gradient).__name__ == "DTensor" for gradient in gradients)

            return checked

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            super().log(logs, start_time)
            if self.is_world_process_zero() and "learning_rate" in logs:
                with Path(log).open("a") as file:
                    file.write(json.dumps(self.state.log_history[-1]) + "\n")

    allow_fsdp_on_cpu()
    setattr(runs, RewardTrainer.__name__, Driven)
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
