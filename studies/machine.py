"""What a figure was taken on, and a process of its own to take it in."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

__all__ = ["child", "machine", "peak_memory_bytes", "reset_peak_memory"]


def machine() -> str:
    """Cores, memory, processor and versions in one line."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "gymnasium"))
    return f"{os.cpu_count()} cores, {gigabytes:.0f} GB, {model}, Python {platform.python_version()}, {packages}"


def peak_memory_bytes() -> int:
    """Most memory that this process held, since it began or since :func:`reset_peak_memory`."""
    try:
        # Not getrusage: its maximum is inherited from the parent across exec.
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_memory() -> int:
    """Let the peak begin anew, with what is held now, and return that (elsewhere than on Linux: the peak so far)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak_memory_bytes()


def child(script: Path | str, *arguments: str, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a script, or a module by its name, in a fresh process that imports from where this one does.

    Returns:
        The JSON of its last line, and ``wall_s``, the life of that process.

    Raises:
        RuntimeError: it failed; with what it said.
    """
    what = [str(script)] if isinstance(script, Path) else ["-m", script]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *what, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **(environment or {})},
    )
    wall_s = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{' '.join([*what, *arguments])} failed:\n{done.stderr[-2000:]}")
    return {**json.loads(done.stdout.splitlines()[-1]), "wall_s": wall_s}
