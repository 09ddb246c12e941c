"""vLLM's own means to transfer experts take no memory, with vLLM's real EplbState."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eplb_plugin.engines import hooks
from eplb_plugin.engines.vllm.stock_transfers import TRANSFERS, NoCommunicator
from eplb_plugin.runtime import rebalancer
from processes import run_ranks


def registered() -> list[Any]:
    """-> [kind of communicator, whether memory is reserved for it, size of the buffer] of draft and target."""
    from engines.vllm.eplb_models import Engine

    rebalancer.warm_up = lambda *_: 0.0  # nothing is planned here
    states = Engine(use_async=True, drafts=1).state.model_states.values()
    kinds = [one.communicator for one in states]
    return [
        [type(kind).__name__, kind.needs_profile_buffer_reservation, len(one.expert_buffer)]
        for kind, one in zip(kinds, states, strict=True)
    ]


def test_no_memory_for_transfers_of_vllm() -> None:
    """Its buffer is gone once a model has been registered, and nothing is to be reserved while vLLM measures memory."""
    assert run_ranks(2, registered, timeout=300.0) == [[["NoCommunicator", False, 0]] * 2] * 2


def test_nixl_where_vllm_refuses_it() -> None:
    """Asked for on a CPU, or not installed: vLLM's own refusal, not another carrier in silence."""
    from vllm.distributed.eplb import eplb_state

    rows, group = [[torch.zeros(2, 3)]], SimpleNamespace(cpu_group=None, device_group=None)
    hooks.apply([TRANSFERS])
    try:
        with pytest.raises(RuntimeError, match="'nixl'"):
            eplb_state.create_eplb_communicator(group, "nixl", rows, rows[0])
        for backend in ("torch_gloo", "torch_nccl", "pynccl"):
            made = eplb_state.create_eplb_communicator(group, backend, rows, rows[0])
            assert isinstance(made, NoCommunicator)
    finally:
        hooks.remove([TRANSFERS])
