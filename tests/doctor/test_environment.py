"""What a report says of the machine: what a fault may depend on, and nothing private."""

from __future__ import annotations

import platform
import socket
import subprocess
from typing import Any

import pytest
import torch

from eplb_plugin import __version__
from eplb_plugin.doctor import environment as module
from eplb_plugin.doctor.environment import environment


def test_it_tells_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the libraries that matter, and none that could be a password."""
    for name in ("NCCL_DEBUG", "NCCL_API_KEY", "EPLB_PLUGIN_TOKEN", "HF_TOKEN", "HOME"):
        monkeypatch.setenv(name, f"value of {name}")
    found = environment()["settings"]
    assert found["NCCL_DEBUG"] == "value of NCCL_DEBUG"
    assert not {"NCCL_API_KEY", "EPLB_PLUGIN_TOKEN", "HF_TOKEN", "HOME"} & set(found)


def test_versions_are_those_installed() -> None:
    """Packages that are not there are left out; no host's name is in it."""
    found = environment()
    assert (found["eplb_plugin"], found["torch"]) == (__version__, torch.__version__)
    assert found["python"] == platform.python_version()
    assert "numpy" in found["packages"]
    assert None not in found["packages"].values()
    assert socket.gethostname() not in str({**found, "settings": {}})


def test_a_driver_that_does_not_answer_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """No nvidia-smi, one that fails, and one that says nothing; else its first line."""
    answers: list[Any] = [OSError(), subprocess.CalledProcessError(9, "x"), "\n", "570.1\n570.1\n"]

    def run(*_: Any, **__: Any) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return subprocess.CompletedProcess([], 0, answer)

    monkeypatch.setattr(module.subprocess, "run", run)
    assert [module._driver() for _ in range(4)] == [None, None, None, "570.1"]
