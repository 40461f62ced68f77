"""FSDP2 between processes on a CPU, where accelerate leaves it off although torch can."""

from typing import Any

from accelerate.state import AcceleratorState  # type: ignore[import-untyped]
from accelerate.utils import DistributedType  # type: ignore[import-untyped]


def allow_fsdp_on_cpu() -> None:
    """From now on, in this process, an accelerator on a CPU shards where it is asked to."""
    plain = AcceleratorState.__init__

    def init(self: Any, *arguments: Any, fsdp_plugin: Any = None, **options: Any) -> None:
        plain(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
        if fsdp_plugin is not None:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin
        if getattr(self, "fsdp_plugin", None) is not None:  # of every accelerator: they share one state
            self.distributed_type = DistributedType.FSDP

    AcceleratorState.__init__ = init
