"""Steps before the first request, of model runner V2: the pass that measures memory, and those that warm kernels up.

The first has no attention, whose output a GPU's backend then fills with zeros. The CPU's returns what the memory held:
logits that are all NaN end Triton's interpreter (`All-NaN slice encountered`). The others are a GPU worker's; here they
run where EPLB_CPU_WARM_UP is set, for they take the interpreter some seconds.
"""

import inspect
import os
from collections.abc import Callable
from typing import Any

from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl
from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.gpu.warmup import warmup_kernels

from ..patching import replace

_FORWARD = "self, layer, query, key, value, kv_cache, attn_metadata, output, output_scale, output_block_scale"


def install() -> None:
    replace(CPUAttentionBackendImpl, "forward", _FORWARD, _without_nan)
    if os.environ.get("EPLB_CPU_WARM_UP", "0") == "1":
        replace(CPUWorker, "compile_or_warm_up_model", "self", _with_steps)


def _without_nan(original: Callable) -> Callable:
    signature = inspect.signature(original)

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        if given["attn_metadata"] is None:
            given["output"].fill_(0)
        return original(*args, **kwargs)

    return forward


def _with_steps(original: Callable) -> Callable:
    def compile_or_warm_up_model(self: CPUWorker) -> Any:
        if self.use_v2_model_runner:  # without grammars: the interpreter refuses the mask of their kernel
            warmup_kernels(self.model_runner, self.execute_model, lambda grammar: self.sample_tokens(None))
        return original(self)

    return compile_or_warm_up_model
