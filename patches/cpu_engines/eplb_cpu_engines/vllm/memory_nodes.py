"""Data-parallel ranks of a machine with one memory node: from 0.33 on vLLM gives each rank a memory node of its own.

The second rank's is not there. Ranks share what is there, as in earlier releases.
"""

import inspect
from collections.abc import Callable

from vllm.platforms import cpu as platform
from vllm.utils import cpu_resource_utils
from vllm.v1.worker import cpu_worker

from ..patching import replace


def install() -> None:
    if not inspect.signature(cpu_resource_utils.get_visible_memory_node).parameters:  # before 0.33 ranks ask alike
        return
    for holder in (cpu_resource_utils, cpu_worker, platform):  # the latter two imported it by name
        replace(holder, "get_visible_memory_node", "assigned_node_ids", _or_those_that_are_there)


def _or_those_that_are_there(original: Callable) -> Callable:
    def get_visible_memory_node(assigned_node_ids: list[int] | None = None) -> list[int]:
        return original(assigned_node_ids) or original()

    return get_visible_memory_node
