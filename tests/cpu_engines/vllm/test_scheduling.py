"""Asynchronous scheduling stays as vLLM decided, under the model runner that GPUs run."""

from types import SimpleNamespace

import pytest
from eplb_cpu_engines.vllm import scheduling


def turned_off(config):
    """What the CPU's platform does."""
    config.scheduler_config.async_scheduling = False


@pytest.mark.parametrize(("v2", "decided", "stays"), [(True, True, True), (True, False, False), (False, True, False)])
def test_what_vllm_decided_stays_under_v2(v2, decided, stays):
    scheduler = SimpleNamespace(async_scheduling=decided)
    config = SimpleNamespace(use_v2_model_runner=v2, scheduler_config=scheduler)
    scheduling._keeping_the_scheduling(turned_off)(config)
    assert scheduler.async_scheduling == stays
