"""torchvision can be imported beside a CPU torch, in every process, and one that works is left alone.

Each test starts real interpreters: what happens at their start is the subject.
"""

from __future__ import annotations

import _ctypes
import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

TORCHVISION = importlib.util.find_spec("torchvision")
pytestmark = pytest.mark.skipif(TORCHVISION is None, reason="torchvision is not installed")

PTH = Path(sysconfig.get_path("purelib")) / "beholder_torchvision.pth"
STATE = """
import beholder._torchvision, contextlib, torch
with contextlib.suppress(Exception):
    import torchvision
mended = bool(beholder._torchvision._libraries)
print(torch.version.cuda is None, mended, hasattr(torch.ops.torchvision, "nms"))
"""
"""Prints whether torch is without CUDA, whether the mend was applied, whether anyone defined nms."""


def python(*arguments: str, path: Path | None = None) -> str:
    """Run an interpreter, with `path` in front of its sys.path, and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(path)} if path else None
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_and_transforms() -> None:
    code = "import torch, torchvision.transforms.v2 as v2; print(v2.Resize(4)(torch.ones(3, 8, 8)).shape)"
    assert python("-c", code) == "torch.Size([3, 4, 4])"


def test_a_spawned_process_that_imports_nothing_of_ours(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing\n"
        "def child(queue):\n"
        "    import torchvision.transforms.v2\n"
        "    queue.put(torchvision.__name__)\n"
        "if __name__ == '__main__':\n"
        "    spawn = multiprocessing.get_context('spawn')\n"
        "    queue = spawn.Queue()\n"
        "    process = spawn.Process(target=child, args=(queue,))\n"
        "    process.start()\n"
        "    process.join()\n"
        "    print(process.exitcode, queue.get(timeout=10) if process.exitcode == 0 else None)\n"
    )
    assert python(str(script)) == "0 torchvision"


def test_transformers_image_processor_on_torchvision() -> None:
    code = (
        "from PIL import Image; from transformers import Qwen2VLImageProcessor\n"
        "pixels = Qwen2VLImageProcessor()(images=[Image.new('RGB', (64, 64))], return_tensors='pt')\n"
        "print(pixels['image_grid_thw'].tolist())"
    )
    assert python("-c", code) == "[[1, 4, 4]]"


def test_the_operators_come_from_the_library_or_from_the_mend_never_both() -> None:
    code = STATE + "print(torchvision.extension._has_ops())"
    state, has_ops = python("-c", code).splitlines()
    _, mended, _ = state.split()
    assert {mended, has_ops} == {"True", "False"}


@pytest.mark.parametrize("loads", [True, False], ids=["library loads", "library is broken"])
def test_the_mend_is_inert_where_the_library_loads(tmp_path: Path, loads: bool) -> None:
    """The installed torchvision with another library: any that loads (it has no nms), or one that does not.

    Where it loads, the mend must do nothing, so nms stays undefined: nobody else defines it here.
    """
    copy = tmp_path / "torchvision"
    copy.mkdir()
    assert TORCHVISION is not None
    assert TORCHVISION.origin is not None
    for entry in Path(TORCHVISION.origin).parent.iterdir():
        if not entry.name.startswith("_C."):
            (copy / entry.name).symlink_to(entry)
    (copy / "_C.so").write_bytes(Path(_ctypes.__file__).read_bytes() if loads else b"no library")

    cpu_torch, mended, defined = python("-c", STATE, path=tmp_path).split()
    expected = str(not loads and cpu_torch == "True")
    assert (mended, defined) == (expected, expected)


def test_an_interpreter_starts_without_torch_and_with_two_modules_of_ours() -> None:
    heavy_or_ours = "('beholder', 'torch', 'torchvision', 'importlib.metadata', 'typing')"
    code = f"import sys; print(sorted(m for m in sys.modules if m.startswith({heavy_or_ours})))"
    assert python("-c", code) == "['beholder', 'beholder._torchvision']"


def test_looking_torchvision_up_does_not_import_torch() -> None:
    code = "import sys, importlib.util; importlib.util.find_spec('torchvision'); print('torch' in sys.modules)"
    assert python("-c", code) == "False"


def test_a_failure_does_not_reach_the_start_of_the_interpreter() -> None:
    """Without site-packages (-S) the line cannot import beholder, as when the package was half removed."""
    line = PTH.read_text()
    assert line.count("\n") == 1
    assert python("-S", "-c", f"{line}\nprint('started')") == "started"
