"""Kernels where nothing can be cached on disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import eplb_plugin

CODE = """
import logging
logging.basicConfig()
from eplb_plugin.planning.replicas.counts import copy_limit
print(copy_limit(8, 40, 4))
"""


def test_kernels_work_without_a_writable_folder(tmp_path: Path):
    """As in a container whose packages and home are read-only: one warning, and kernels are compiled in memory."""
    package = tmp_path / "eplb_plugin"
    shutil.copytree(Path(eplb_plugin.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in {file.parent for file in package.rglob("*.py")}:
        (folder / "__pycache__").write_text("")  # a file: no folder can be made here, not even by root
    unwritable = {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null", "PYTHONPATH": str(tmp_path)}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")} | unwritable
    done = subprocess.run(
        [sys.executable, "-B", "-c", CODE], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300
    )
    assert done.stdout == "5\n", done.stderr
    assert done.stderr.count("set NUMBA_CACHE_DIR") == 1
