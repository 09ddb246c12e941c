"""Loading a model with EPLB: the CPU's model runner V1 loads it without making the EPLB state; V2 does make it.

What the GPU model runner does is done after the CPU one has loaded: the draft model first, then the target, then the
background thread. Stepping and preparing a forward are inherited and work as they are.
"""

from collections.abc import Callable

from vllm.distributed.eplb.eplb_state import EplbState
from vllm.model_executor.models.interfaces import get_mixture_of_experts_model
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.gpu import eplb_utils

from ..patching import replace


def install() -> None:
    replace(CPUModelRunner, "load_model", "self, load_dummy_weights", _with_eplb)


def _with_eplb(original: Callable) -> Callable:
    def load_model(self: CPUModelRunner, load_dummy_weights: bool = False) -> None:
        original(self, load_dummy_weights)
        self._moe_model = get_mixture_of_experts_model(self.model)
        if not self.parallel_config.enable_eplb:
            return
        self.eplb_state = EplbState(self.parallel_config, self.device)
        _add_draft(self)
        if self._moe_model is not None:
            self.eplb_state.add_model(self._moe_model, self.model_config)
            self.eplb_state.start_async_loop()

    return load_model


def _add_draft(runner: CPUModelRunner) -> None:
    drafter = getattr(runner, "drafter", None)
    model = get_mixture_of_experts_model(drafter.model) if hasattr(drafter, "model") else None
    if model is None or not _supported(runner.speculative_config, model):
        return
    config = runner.speculative_config.draft_model_config
    if hasattr(eplb_utils, "eplb_draft_model_name"):
        runner.eplb_state.add_model(model, config, model_name=eplb_utils.eplb_draft_model_name(config))
    else:  # before 0.32 a draft had no name of its own
        runner.eplb_state.add_model(model, config)
    drafter.set_eplb_state(runner.eplb_state)


def _supported(speculative_config: object, draft: object) -> bool:
    """Before 0.32 every draft with experts was."""
    supports = getattr(eplb_utils, "draft_model_supports_eplb", None)
    return supports is None or supports(speculative_config, draft)
