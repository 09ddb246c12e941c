"""What a report says of the machine: versions, devices, settings of the environment."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from .. import __version__
from ..engines.releases import ENGINES

PACKAGES = ("triton", "numba", "numpy", "nixl", "nixl-cu12", "nixl-cu13", "deep_ep", "deep_gemm", "flashinfer-python")
SETTINGS = ("CUDA_", "EPLB_PLUGIN_", "NCCL_", "NVIDIA_", "PYTORCH_", "TORCH_", "TRITON_", "UCX_")
SECRETS = ("KEY", "TOKEN", "SECRET", "PASS")  # in no name that is reported


def environment() -> dict[str, Any]:
    """Nothing but what a report of a fault needs; no host's name, no user's."""
    packages = {name: _version(name) for name in PACKAGES}
    return {
        "eplb_plugin": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "nccl": _nccl(),
        "driver": _driver(),
        "engines": {engine.title: engine.installed for engine in ENGINES if engine.installed},
        "packages": {name: found for name, found in packages.items() if found},
        "devices": _devices(),
        "settings": {
            name: value for name, value in sorted(os.environ.items())
            if name.startswith(SETTINGS) and not any(part in name for part in SECRETS)
        },
    }  # fmt: skip


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _nccl() -> str | None:
    return ".".join(map(str, torch.cuda.nccl.version())) if torch.cuda.is_available() else None  # type: ignore[no-untyped-call]


def _driver() -> str | None:
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.split("\n")[0].strip() or None


def _devices() -> list[dict[str, Any]]:
    found = []
    for index in range(torch.cuda.device_count()):
        one = torch.cuda.get_device_properties(index)
        found.append(
            {"name": one.name, "capability": f"{one.major}.{one.minor}", "bytes": one.total_memory,
             "multiprocessors": one.multi_processor_count}
        )  # fmt: skip
    return found
