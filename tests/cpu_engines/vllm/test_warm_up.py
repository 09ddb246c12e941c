"""The warm-up of model runner V2: on request, and before what a CPU's worker does at the end of its start."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from eplb_cpu_engines.vllm import warm_up
from vllm.v1.worker.cpu_worker import CPUWorker


@pytest.mark.parametrize(
    ("asked", "v2", "done"), [("1", True, ["steps", "seed"]), ("1", False, ["seed"]), ("", True, ["seed"])]
)
def test_its_steps_are_taken_on_request(asked: str, v2: bool, done: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """By model runner V2 alone, and before the worker sets its seed."""
    order: list[str] = []
    monkeypatch.setenv("EPLB_CPU_WARM_UP", asked)
    monkeypatch.setattr(CPUWorker, "compile_or_warm_up_model", lambda self: order.append("seed"))
    monkeypatch.setattr(warm_up, "warmup_kernels", lambda runner, execute, sample: order.append("steps"))
    assert warm_up.install() == (asked == "1")
    worker = SimpleNamespace(use_v2_model_runner=v2, model_runner=None, execute_model=None, sample_tokens=None)
    CPUWorker.compile_or_warm_up_model(worker)
    assert order == done
