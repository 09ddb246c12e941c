"""The hooks on vLLM's Worker: models without experts to place, and what would take weights from under a placement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from vllm.model_executor.models.interfaces import get_mixture_of_experts_model

from ...errors import mismatch
from ..hooks import Hook
from .moe_layers import no_experts
from .state import finish_all


def _load_model(original: Callable[..., Any], self: Any, *, load_dummy_weights: bool = False) -> None:
    original(self, load_dummy_weights=load_dummy_weights)
    model = self.model_runner.get_model()
    if get_mixture_of_experts_model(model) is None:
        raise no_experts(type(model).__name__)


def _sleep(original: Callable[..., Any], self: Any, level: int = 1) -> None:
    finish_all()  # every rank has stopped stepping here, and an unmapped page cannot be read or written
    original(self, level)


def _reload_weights(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> NoReturn:
    expected = "none: vLLM loads experts where they lay at the start, and they have moved"
    raise mismatch("new weights", found="reload_weights", expected=expected, fix="restart the server with them")


_WORKER = "vllm.v1.worker.gpu_worker:Worker"

WEIGHT_GUARDS = (
    Hook(
        f"{_WORKER}.load_model",
        "around",
        "refuses a model whose experts vLLM's EPLB does not know, which only the loaded model can tell of some",
        "(self, *, load_dummy_weights=False)",
        _load_model,
    ),
    Hook(f"{_WORKER}.sleep", "around", "what is moving arrives before memory is unmapped", "(self, level=1)", _sleep),
    Hook(
        f"{_WORKER}.reload_weights",
        "replace",
        "vLLM would write every expert where it lay at the start",
        "(self, *args, **kwargs)",
        _reload_weights,
    ),
)
