"""Triton's interpreter must be chosen before Triton is imported: its tests run in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
in_interpreter = pytest.mark.skipif(not INTERPRETED, reason="run by test_in_the_interpreter")
compiled = pytest.mark.skipif(INTERPRETED, reason="needs the compiler")


def run_interpreted(file: str) -> str:
    """What pytest prints of a file's tests under TRITON_INTERPRET=1, none of which fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout
