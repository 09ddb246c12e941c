"""Asynchronous scheduling, which a GPU's engine does unless told not to: the CPU's platform turns it off in the end.

What vLLM had decided stays, for model runner V2. V1 stays as it is on a CPU.
"""

from collections.abc import Callable

from vllm.config import VllmConfig
from vllm.platforms.cpu import CpuPlatform

from ..patching import replace


def install() -> None:
    replace(CpuPlatform, "check_and_update_config", "vllm_config", _keeping_the_scheduling)


def _keeping_the_scheduling(original: Callable) -> Callable:
    def check_and_update_config(vllm_config: VllmConfig) -> None:
        decided = vllm_config.scheduler_config.async_scheduling
        original(vllm_config)
        if vllm_config.use_v2_model_runner:
            vllm_config.scheduler_config.async_scheduling = decided

    return check_and_update_config
