"""Tests mirror the package: eplb_plugin/a/b.py is tested by tests/a/test_b.py."""

from __future__ import annotations

import ast
from pathlib import Path

import eplb_plugin

PACKAGE = Path(eplb_plugin.__file__).parent
TESTS = Path(__file__).parent
# Modules that have no test file of their own yet. This list only gets shorter.
WITHOUT = [
    "eplb_plugin.bench.engine",
    "eplb_plugin.bench.running",
    "eplb_plugin.bench.sglang",
    "eplb_plugin.bench.vllm",
    "eplb_plugin.doctor.compiled",
    "eplb_plugin.doctor.launches",
    "eplb_plugin.doctor.map_only",
    "eplb_plugin.doctor.times",
    "eplb_plugin.engines.sglang.http_recorder",
    "eplb_plugin.engines.sglang.mover",
    "eplb_plugin.planning.evenness",
    "eplb_plugin.planning.layer.affinity",
    "eplb_plugin.planning.layer.evenly",
    "eplb_plugin.planning.layer.solve",
    "eplb_plugin.planning.moves.ranks",
    "eplb_plugin.planning.moves.relief",
    "eplb_plugin.planning.refit_weights",
    "eplb_plugin.planning.rules.base",
    "eplb_plugin.planning.rules.nearest_swaps",
]


def has_logic(path: Path) -> bool:
    """Whether a file defines anything; those that only import and list names need no test."""
    return any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.parse(path.read_text()).body)


def mirrors(path: Path, package: Path = PACKAGE, tests: Path = TESTS) -> list[Path]:
    """Where tests of a module may lie: beside its neighbours', or in `sglang` there if they need SGLang.

    A package's `__init__` is tested under the package's name, `__main__` as `main`.
    """
    name = {"__init__": path.parent.name, "__main__": "main"}.get(path.stem, path.stem)
    folder = tests / path.relative_to(package).parent
    return [folder / f"test_{name}.py", folder / "sglang" / f"test_{name}.py"]


def unmirrored(package: Path = PACKAGE, tests: Path = TESTS) -> list[str]:
    """Dotted names of modules without a test file of their own."""
    names = []
    for path in sorted(package.rglob("*.py")):
        special = path.stem in ("__init__", "__main__")
        if (special and not has_logic(path)) or any(file.exists() for file in mirrors(path, package, tests)):
            continue
        parts = path.relative_to(package.parent).with_suffix("").parts
        names.append(".".join(parts[:-1] if path.stem == "__init__" else parts))
    return names


def test_every_module_has_its_test_file() -> None:
    """A new module comes with tests at its mirrored path."""
    assert set(unmirrored()) <= set(WITHOUT)


def test_no_exception_is_left_over() -> None:
    """A module that has tests of its own, or that is gone, leaves the list."""
    assert set(WITHOUT) <= set(unmirrored())
    assert sorted(set(WITHOUT)) == WITHOUT


def test_the_check_sees_what_is_missing(tmp_path: Path) -> None:
    """A module without tests, one with tests elsewhere, and a package that does something."""
    package, tests = tmp_path / "house", tmp_path / "tests"
    for file in ("__init__.py", "a/__init__.py", "a/b.py", "a/c.py", "a/d.py", "a/e.py", "a/__main__.py"):
        (package / file).parent.mkdir(parents=True, exist_ok=True)
        (package / file).write_text('"""Only words."""\nimport os\n')
    (package / "a/__init__.py").write_text("def do(): ...\n")
    for file in ("a/test_b.py", "a/sglang/test_c.py", "test_d.py", "a/test_ee.py"):
        (tests / file).parent.mkdir(parents=True, exist_ok=True)
        (tests / file).touch()
    assert unmirrored(package, tests) == ["house.a", "house.a.d", "house.a.e"]
    (tests / "a/test_a.py").touch()
    assert unmirrored(package, tests) == ["house.a.d", "house.a.e"]
