"""The house has floors: a lower one never imports a higher one, none in a circle; importing the package stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Container, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import eplb_plugin

PACKAGE = Path(eplb_plugin.__file__).parent
# longest matching prefix decides; equal numbers may import each other
FLOORS = {
    "errors": 0, "jit": 0, "limits": 0,
    "files": 1, "file_kinds": 1, "counts": 1, "routing_rows": 1,
    "topology": 2, "statistics": 2, "placement": 2, "placement_formats": 2, "plan_types": 2, "deployment": 2,
    "settings": 2, "peo.ops": 1, "peo.schedule": 1,
    "dispatch": 3,
    "planning": 4, "workloads": 4, "peo": 4,
    # what plans a move needs no tensor
    "migration.routes": 4, "migration.schedule": 4, "migration.limits": 4, "migration.hops": 4, "migration.errands": 4,
    "recording": 5, "migration": 5, "devices": 5, "peo.cuda": 5, "peo.streams": 5,
    "dispatch.buffers": 5, "dispatch.kernels": 5, "dispatch.torch_ops": 5, "dispatch.triton_kernels": 5,
    "dispatch.exact.tables": 5, "dispatch.exact.kernels": 5,
    "dispatch.exact.triton_kernels": 5, "dispatch.exact.triton_solve": 5,
    "runtime": 6,
    "engines": 7, "observe": 7, "doctor": 7,
    "bench": 8, "cli": 9, "doctor.__main__": 9, "__main__": 9, "": 10,
}  # fmt: skip
NO_TORCH_UP_TO = 4


def modules() -> dict[str, Path]:
    """Name below the package -> file; the package itself is the empty name."""
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def floor(module: str) -> int:
    prefixes = [name for name in FLOORS if name and (module == name or module.startswith(name + "."))]
    if not prefixes and module:
        pytest.fail(f"{module} stands on no floor: add it to FLOORS")
    return FLOORS[max(prefixes, key=len, default="")]


def statements(module: str, path: Path) -> Iterator[tuple[str, list[str]]]:
    """Every import of a file, at the top or inside a function: a module, and names from it, if only they are imported.

    Those for type checkers do not count.
    """
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = [ast.Pass()]
    package = module.split(".") if path.name == "__init__.py" and module else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ["eplb_plugin", *package[: len(package) - node.level + 1]] if node.level else []
            base += node.module.split(".") if node.module else []
            yield ".".join(base), [alias.name for alias in node.names]


def imports(module: str, path: Path) -> set[str]:
    """Every module that a file imports, and what may be one: any name from a module."""
    return {name for base, names in statements(module, path) for name in (base, *(f"{base}.{one}" for one in names))}


def needed(module: str, path: Path, known: Container[str]) -> set[str]:
    """Which of these modules a file imports; a package counts only if something of its own is taken from it."""
    found = set()
    for base, names in statements(module, path):
        found |= {f"{base}.{name}" if f"{base}.{name}" in known else base for name in names} or {base}
    return {name for name in found if name in known}


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Modules of which each imports the next, and the last is the first; empty if there are none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found[::-1]
    return []


@pytest.mark.parametrize("module", sorted(set(modules()) - {""}))
def test_no_floor_imports_a_higher_one(module: str):
    known, own = modules(), floor(module)
    for name in imports(module, known[module]):
        inside = name.removeprefix("eplb_plugin.")
        if name.startswith("eplb_plugin.") and inside in known:
            assert floor(inside) <= own, f"{module} (floor {own}) imports {inside} (floor {floor(inside)})"
        if own <= NO_TORCH_UP_TO:
            assert name.split(".")[0] not in {"torch", "vllm", "sglang"}, f"{module} imports {name}"


def test_the_check_sees_a_violation(tmp_path: Path):
    path = tmp_path / "rules.py"
    path.write_text("def late():\n    from ..planning import plan\n    import torch\n")
    assert {"eplb_plugin.planning.plan", "torch"} <= imports("dispatch.rules", path)


def test_no_module_imports_itself_through_others():
    """There is no circle of imports, not even through a function."""
    paths = {f"eplb_plugin.{name}".rstrip("."): (name, path) for name, path in modules().items()}
    graph = {full: needed(name, path, paths) for full, (name, path) in paths.items()}
    assert not circle(graph), " -> ".join(circle(graph))
    assert len(graph) > 150  # it is the whole house
    assert sum(map(len, graph.values())) > 500


def test_a_circle_through_a_function_is_seen(tmp_path: Path):
    paths = {name: tmp_path / f"{name}.py" for name in ("first", "second", "third")}
    paths["first"].write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import second\n")
    paths["second"].write_text("import third\n")
    paths["third"].write_text("def late():\n    from first import name\n")
    assert circle({name: needed(name, path, paths) for name, path in paths.items()}) == []
    paths["first"].write_text("import second\n")
    found = circle({name: needed(name, path, paths) for name, path in paths.items()})
    assert set(found) == {"first", "second", "third"}


@pytest.mark.parametrize(
    "statement", ["import eplb_plugin", "from eplb_plugin import Topology, Placement, PluginError"]
)
def test_importing_the_package_is_light(statement: str):
    script = f"import sys; {statement}; print({{'torch', 'vllm', 'sglang', 'numba'}} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=PACKAGE.parent, check=True
    )
    assert done.stdout.strip() == "set()"


def test_planning_needs_no_torch():
    script = "import sys; from eplb_plugin import plan, route; print({'torch', 'vllm', 'sglang'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=PACKAGE.parent, check=True
    )
    assert done.stdout.strip() == "set()"
