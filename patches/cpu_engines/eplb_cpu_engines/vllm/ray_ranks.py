"""Ranks on a Ray cluster: vLLM asks Ray for devices of its platform, and a CPU is none.

A rank is one piece of a resource that the cluster is started with, `ray start --resources '{"cpu_rank": 2}'`. Ray knows
no number of such a piece, so a rank's worker answers with its own. Ray starts the worker by the name of its class and
loads no plugin before: the class is of this module, with which the rest of what is needed comes.
"""

import ray
from vllm.platforms.cpu import CpuPlatform
from vllm.v1.executor import ray_executor_v2
from vllm.v1.executor.ray_executor_v2 import RayWorkerProc

from ..patching import require

RESOURCE = "cpu_rank"


class RayRank(RayWorkerProc):
    def get_node_and_physical_gpu_ids(self) -> tuple[str, list[int]]:
        parallel, rank = self._parallel_config, self._init_kwargs["rank"]
        first = (parallel.data_parallel_rank_local or 0) * parallel.world_size
        return ray.get_runtime_context().get_node_id(), [first + rank]


def install() -> None:
    require("no device of Ray's", f"{CpuPlatform.ray_device_key or 'no'} device of Ray's")
    CpuPlatform.ray_device_key = RESOURCE
    ray_executor_v2.RayWorkerProc = RayRank
