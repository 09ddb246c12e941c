"""Wheels as users install them: downloaded once by pip, their Python files kept in the cache folder, never imported."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

PAUSES = (5.0, 20.0)  # seconds before a further try: a package index fails now and then
LIMIT = 600.0  # seconds for one try; vLLM's wheel is a third of a gigabyte


class WheelMissing(Exception):
    """pip could not download it; one line says why."""


def kept_folder(name: str, version: str) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "eplb_plugin" / "wheels" / f"{name}-{version}"


def unpacked(name: str, version: str) -> Path:
    """The folder of a wheel's Python files and metadata, downloaded now if there is none. Raises WheelMissing.

    The very release: `0.32.0+cpu`, which some indexes have too, is another build than `0.32.0`.
    """
    folder = kept_folder(name, version)
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        beside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
        try:
            _unpack(downloaded(f"{name}==={version}", Path(scratch)), beside)
            put(beside, folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return folder


def downloaded(requirement: str, folder: Path) -> Path:
    """The wheel that pip brings, after further tries. Raises WheelMissing."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    reason = ""
    for pause in (0.0, *PAUSES):
        time.sleep(pause)
        try:
            done = subprocess.run([*command, requirement], capture_output=True, text=True, timeout=LIMIT)
        except subprocess.TimeoutExpired:
            reason = f"nothing in {LIMIT:.0f} s"
            continue
        if done.returncode == 0:
            return next(folder.glob("*.whl"))
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    raise WheelMissing(f"pip download {requirement}: {reason}")


def _unpack(wheel: Path, folder: Path) -> None:
    """Python files and metadata: 30 MB of vLLM's 326, and nothing that could be loaded as a library."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith(".py") or ".dist-info/" in name:
                archive.extract(name, folder)


def put(beside: Path, folder: Path) -> None:
    """Under its name at once; another process may have been faster."""
    try:
        os.replace(beside, folder)
    except OSError:
        if not folder.exists():
            raise
