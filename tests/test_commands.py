"""Every command in scripts/ starts a module that is there."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
STARTED = [
    (path.name, module.replace("{name}", name))
    for path in sorted(SCRIPTS.iterdir())
    if path.is_file() and not path.suffix
    for module in re.findall(r'run_module\(f?"([^"]+)"', path.read_text())
    for name in (("network", "soak") if "{name}" in module else ("",))
]


def test_commands_were_found() -> None:
    assert {"demo", "serve_bench", "bench_planner", "draw_peo"} <= {name for name, _ in STARTED}


@pytest.mark.parametrize(("command", "module"), STARTED)
def test_its_module_is_there(command: str, module: str) -> None:
    assert find_spec(module) is not None, f"scripts/{command} starts {module}"
