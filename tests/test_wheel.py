"""The wheel that a package index would have: small, the package alone, and enough for the planner without an engine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
DOCTOR_AND_VERSION = (("--version",), ("doctor",))
TRACE = ROOT / "traces/code-1.npz"
CLUSTER = ("--nodes", "2", "--ranks-per-node", "2")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left beside the sources."""
    copy, folder = tmp_path_factory.mktemp("sources") / "copy", tmp_path_factory.mktemp("wheel")
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    shutil.copytree(ROOT / "eplb_plugin", copy / "eplb_plugin", ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(copy)], check=True)
    (made,) = folder.glob("*.whl")
    return made


def test_it_holds_the_package_alone_and_is_small(wheel: Path) -> None:
    """Every module, what they read, and nothing of tests, scripts or the test bed; at most 1 MB."""
    assert wheel.stat().st_size < 1_000_000
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA"))
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "eplb_plugin").rglob("*.py")}
    read = {"eplb_plugin/py.typed", *(str(p.relative_to(ROOT)) for p in ROOT.glob("eplb_plugin/observe/dashboards/*"))}
    assert names == sources | {name for name in read if "__pycache__" not in name}
    assert "Requires-Python: >=3.11" in metadata
    assert "Requires-Dist: torch" not in metadata


@pytest.mark.full
@pytest.mark.parametrize("version", PYTHONS)
def test_it_plans_in_a_bare_environment(version: str, wheel: Path, tmp_path: Path) -> None:
    """No engine, no torch: version, doctor, plan, advise and report from the installed wheel."""
    python = shutil.which(f"python{version}")
    if python is None or subprocess.run([python, "--version"], capture_output=True).returncode:  # a shim of nothing
        pytest.skip(f"no python{version}")
    bare, alone = tmp_path / "bare" / "bin", {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([python, "-m", "venv", tmp_path / "bare"], check=True)
    subprocess.run([bare / "pip", "install", "--quiet", f"{wheel}[report]"], check=True, env=alone)
    planned = ("plan", TRACE, *CLUSTER, "--slots-per-rank", "10", "--out", "placement.safetensors")
    advised = ("advise", TRACE, *CLUSTER, "--policy", "balanced", "--dispatch", "weighted", "--out", "eplb.yaml")
    shown = ("report", "--out", "report.html", "--trace", TRACE, "--placement", "placement.safetensors", *CLUSTER)
    for words in (*DOCTOR_AND_VERSION, planned, advised, shown, ("config", "check", "eplb.yaml")):
        command = [bare / "eplb-plugin", *words]
        done = subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").stat().st_size > 10_000
