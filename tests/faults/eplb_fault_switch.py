"""What both engines' fault plugins strike by: the words in the file that EPLB_FAULTS names, read at each chance.

Beside them on a server's PYTHONPATH; see `server_plugins.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONTROL = "EPLB_FAULTS"


def wanted() -> set[str]:
    file = Path(os.environ[CONTROL])
    return set(file.read_text().split()) if file.exists() else set()


def failing(plan: Callable[..., Any]) -> Callable[..., Any]:
    """A planner that raises while the word `planner` is there."""

    def planner(*args: Any, **kwargs: Any) -> Any:
        if "planner" in wanted():
            raise RuntimeError("a fault was injected into the planner")
        return plan(*args, **kwargs)

    return planner
