"""What a figure depends on and has to stand beside: machine, versions, commit."""

import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def circumstances(packages: Iterable[str]) -> dict[str, Any]:
    """`machine`, `versions` of the installed of `packages`, and `commit` ("+" at its end: with changes)."""
    return {"machine": _machine(), "versions": _versions(packages), "commit": _commit()}


def _machine() -> str:
    """Architecture, processor, and the cores that this process may use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0))
    return ", ".join([platform.machine(), *names[:1], f"{cores} cores"])


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    head = _git("rev-parse", "HEAD")
    return head + "+" if head and _git("status", "--porcelain", "--untracked-files=no") else head


def _git(*arguments: str) -> str:
    """Empty without git, and outside of a checkout."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return ""
