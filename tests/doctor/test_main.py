"""`python -m eplb_plugin.doctor`, the checks that take several GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_process_without_torchrun_is_refused() -> None:
    """One line, exit code 2."""
    environment = {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"}
    command = [sys.executable, "-m", "eplb_plugin.doctor"]
    done = subprocess.run(command, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "eplb-plugin: doctor: found no LOCAL_RANK, expected a process of torchrun; fix: torchrun"
    )
    assert done.stderr.count("\n") == 1
