"""What rows travel on, by vLLM's own choice of a communicator; no server shows it, for on a CPU vLLM refuses NIXL."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.config.parallel import EPLBConfig
from vllm.distributed import nixl_utils

from eplb_plugin.engines.vllm.communicator import row_carrier
from eplb_plugin.migration.wires.nixl import Nixl

GROUP: Any = SimpleNamespace(cpu_group="cpu", device_group="device")


class Agent:
    """Stands for NIXL's agent class."""


@pytest.mark.parametrize(
    ("communicator", "installed", "expected"),
    [
        ("nixl", Agent, Nixl(Agent, GROUP.cpu_group)),
        ("nixl", None, GROUP.cpu_group),
        ("torch_gloo", Agent, GROUP.cpu_group),
        (None, Agent, GROUP.cpu_group),
        ("torch_nccl", Agent, GROUP.device_group),
        ("pynccl", None, GROUP.device_group),
    ],
)
def test_nixl_where_vllm_would_use_it(
    monkeypatch: pytest.MonkeyPatch, communicator: Any, installed: type | None, expected: object
) -> None:
    """And only where it can be imported; NCCL only where vLLM was told to, otherwise gloo through host memory."""
    monkeypatch.setattr(nixl_utils, "NixlWrapper", installed, raising=False)
    asked = EPLBConfig(communicator=communicator, use_async=False).communicator
    assert row_carrier(asked, GROUP) == expected
