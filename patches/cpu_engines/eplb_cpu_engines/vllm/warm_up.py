"""The warm-up of model runner V2, on request: a GPU's worker takes steps of made-up requests before it is ready.

A CPU's has nothing to compile and takes none. EPLB_CPU_WARM_UP=1 makes it take vLLM's own, in eager mode too: prompts
and tokens of as many requests as fit a step, with every feature of sampling and a grammar.
"""

import os
from collections.abc import Callable

from vllm.logger import init_logger
from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.gpu.warmup import warmup_kernels

from ..patching import replace

_log = init_logger("vllm.eplb_cpu_engines")


def install() -> bool:
    if os.environ.get("EPLB_CPU_WARM_UP") != "1":
        return False
    replace(CPUWorker, "compile_or_warm_up_model", "self", _with_steps)
    return True


def _with_steps(original: Callable) -> Callable:
    def compile_or_warm_up_model(self: CPUWorker):
        if self.use_v2_model_runner:
            warmup_kernels(self.model_runner, self.execute_model, self.sample_tokens)
            _log.info("The steps of a warm-up were taken")
        return original(self)

    return compile_or_warm_up_model
