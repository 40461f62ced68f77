"""What vLLM's workers, the processes that compute, have from Beholder (`worker_extension_cls`).

A worker imports this before it loads weights, and with it the watch that ends it with the process that started it.
"""

from typing import Any

import beholder.front_watch  # noqa: F401 (watches from its import on)


class WorkerExtension:
    """Its methods become those of vLLM's worker, to be called through `AsyncLLM.collective_rpc`."""

    def reward_head_methods(self: Any) -> list[str]:
        """How the reward head's weights are kept: vLLM's names. Models that see may have it in their language model."""
        modules = self.get_model().named_modules()
        return [type(module.quant_method).__name__ for name, module in modules if name.rpartition(".")[2] == "score"]
