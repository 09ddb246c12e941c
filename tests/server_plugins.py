"""How a server is given the tests' own plugins: faults, and a witness of its weights and maps."""

from __future__ import annotations

import os
from pathlib import Path

TESTS = Path(__file__).parent
TRITON = {"EPLB_CPU_TRITON": "1", "TRITON_INTERPRET": "1"}  # the plugin's kernel on CPU tensors; see eplb_triton.py


def python_path(engine: str) -> str:
    """PYTHONPATH of a server of this engine that is to load them."""
    ours = [TESTS / engine / "faults", TESTS / "faults"]
    return os.pathsep.join([*map(str, ours), *filter(None, [os.environ.get("PYTHONPATH")])])
