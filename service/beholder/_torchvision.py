"""Lets PyPI's torchvision, which is built for CUDA, be imported beside a torch that is built for the CPU.

There torchvision's library of operators cannot be loaded, so `import torchvision` stops at "operator
torchvision::nms does not exist", and with it every processor of Qwen-VL and InternVL. Their transforms are
plain torch and need no operator: it is enough that the two schemas exist that torchvision registers fake
kernels for. Box operators (nms, roi_align) stay unusable. Where the library loads, nothing is changed.

vLLM spawns processes that import torchvision before any code of ours runs. Hence `beholder_torchvision.pth`
in site-packages, which calls `install` whenever an interpreter starts: import nothing heavy at the top here.
"""

from __future__ import annotations

import sys

SCHEMAS = ("nms", "qnms")
SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

_libraries: list[object] = []
"""The torch.library.Library with our schemas, kept alive: they vanish with it. Empty: nothing was mended."""


class _Hook:
    """Finds no module; runs the mend when torchvision.extension, the first submodule, is to be imported.

    By then torch is imported. Looking torchvision up (`find_spec`) without importing it triggers nothing.
    """

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname == "torchvision.extension":
            mend()


def install() -> None:
    """Put the hook in front of Python's own finders, once."""
    if not any(isinstance(finder, _Hook) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Hook())


def mend() -> None:
    """Define torchvision's schemas if torch is without CUDA and torchvision's library cannot be loaded."""
    import torch

    if torch.version.cuda is not None or _libraries or _library_loads():
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in SCHEMAS:
        library.define(name + SIGNATURE)
    _libraries.append(library)


def _library_loads() -> bool:
    """Load the library as torchvision.extension does next (loading it twice is loading it once)."""
    import torch
    from torchvision._internally_replaced_utils import _get_extension_path

    try:
        torch.ops.load_library(_get_extension_path("_C"))
    except (ImportError, OSError):
        return False
    return True
