"""Modules of lqconvert in processes of their own: what may crash, hang or take all memory does so alone."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path


def run_module(name: str, *arguments: object, timeout: float) -> subprocess.CompletedProcess[str]:
    """Runs ``lqconvert.NAME`` with arguments, of which paths are to be absolute.

    In an empty folder: Python imports from the working folder first, where a stranger's files may lie.

    Raises:
        subprocess.TimeoutExpired: after so many seconds; the process is ended then.
    """
    command = [sys.executable, "-m", f"lqconvert.{name}", *map(str, arguments)]
    paths = [str(Path(__file__).parents[1]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in paths if path),
        "OPENBLAS_NUM_THREADS": "1",  # threads claim address space
    }
    with tempfile.TemporaryDirectory() as empty:
        return subprocess.run(
            command,
            capture_output=True,
            check=False,
            cwd=empty,
            env=environment,
            errors="replace",
            text=True,
            timeout=timeout,
        )
