"""vLLM on CPUs with expert parallelism and EPLB: a test bed, in force in every arm of every comparison.

One file for each thing that the CPU backend lacks. All of it is replaced in `register`, which vLLM calls in each of its
processes before it makes anything, hence before another plugin that hooks the same names when its worker starts.
"""

import os

from ..patching import say_in_force
from ..triton_backend import ENVIRONMENT

_registered = False


def register() -> None:
    """vLLM's plugin entry point; does nothing on another platform, and nothing when called again."""
    global _registered
    if _registered:
        return
    _registered = True

    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    for name, value in ENVIRONMENT.items():  # also for the processes that this one starts
        os.environ.setdefault(name, value)

    from vllm.logger import init_logger
    from vllm.v1.executor.ray_utils import ray_is_available

    from .. import interpreter
    from . import (
        accelerator,
        collectives,
        config_check,
        experts,
        memory_nodes,
        metering,
        model_runner,
        profiling,
        queues,
        routing,
        scheduling,
        sparse_all_to_all,
        warm_up,
    )

    parts = [config_check, scheduling, queues, collectives, accelerator, memory_nodes]
    parts += [routing, experts, model_runner, profiling, interpreter]
    if ray_is_available():
        from . import ray_ranks

        parts.append(ray_ranks)
    for part in parts:
        part.install()
    names = [part.__name__.rpartition(".")[2] for part in parts]
    for part in (sparse_all_to_all, metering, warm_up):  # on request
        if part.install():
            names.append(part.__name__.rpartition(".")[2])
    say_in_force(init_logger("vllm.eplb_cpu_engines"), names)
