"""vLLM's own means to transfer experts are not made: the plugin moves them, and the memory is the server's.

They would be a buffer of a layer's experts (1.5 GiB a GPU for DeepSeek-V3 on 8 GPUs), another one while vLLM measures
memory, and all weights registered with NIXL a second time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.distributed.eplb.eplb_communicator import has_nixl

from ..hooks import Hook


class NoCommunicator:
    """In the place of vLLM's EplbCommunicator: nothing is transferred on it, and only this is asked of it."""

    needs_profile_buffer_reservation = False


def _create_communicator(
    original: Callable[..., Any], group_coordinator: Any, backend: str, expert_weights: Any, expert_buffer: Any
) -> Any:
    if backend == "nixl" and (expert_weights[0][0].device.type == "cpu" or not has_nixl()):
        return original(group_coordinator, backend, expert_weights, expert_buffer)  # vLLM refuses, and says why
    return NoCommunicator()


def free_buffer(model_state: Any) -> None:
    """A layer's experts in size, allocated when the model was registered."""
    model_state.expert_buffer = []


TRANSFERS = Hook(
    "vllm.distributed.eplb.eplb_state:create_eplb_communicator",
    "replace",
    "vLLM's own transfers, which the plugin makes instead, take no memory",
    "(group_coordinator, backend, expert_weights, expert_buffer)",
    _create_communicator,
)
