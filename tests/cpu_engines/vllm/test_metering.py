"""Which rows a rank routes under sequence parallelism, and where a step of the engine ends."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from eplb_cpu_engines.meter import Meter, Seat
from eplb_cpu_engines.vllm import metering
from vllm.v1.worker.gpu.eplb_utils import EPLBController
from vllm.v1.worker.gpu_model_runner import GPUModelRunner


@pytest.mark.parametrize("tokens", [1, 2, 7, 8])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_chunks_are_equal_and_hold_each_real_token_once(tokens, ranks):
    is_padding = torch.arange(tokens) >= tokens - 1  # the last token of the batch is padding
    chunks = [metering.own_chunk(is_padding, rank, ranks) for rank in range(ranks)]
    assert {len(chunk) for chunk in chunks} == {-(-tokens // ranks)}
    together = torch.cat(chunks)
    assert torch.equal(together[:tokens], is_padding)
    assert together[tokens:].all()


class State:
    """EPLB's, which rebalances in every step that is no profile."""

    def __init__(self):
        self.expert_rearrangement_step = 7
        self.map = torch.tensor([[0, 1, 2, 3]])
        self.model_states = {"model": SimpleNamespace(physical_to_logical_map=self.map)}

    def step(self, is_dummy, is_profile, log_stats):
        if not is_profile:
            self.expert_rearrangement_step = 0
            self.map.copy_(self.map.flip(1))


def config(state):
    return SimpleNamespace(enable_eplb=state is not None, eplb_config=SimpleNamespace(log_balancedness=False))


def step_of_v1(state):
    """Its runner's, without the rest of the runner."""
    runner = object.__new__(GPUModelRunner)
    runner.parallel_config, runner.eplb_state = config(state), state
    runner.eep_eplb_suppressed = False
    runner._moe_model = object()
    return metering._ending_a_step("eplb_state", GPUModelRunner.eplb_step).__get__(runner)


def step_of_v2(state):
    controller = EPLBController(config(state), torch.device("cpu"))
    controller.state, controller._has_registered_models = state, True
    return metering._ending_a_step("state", EPLBController.step).__get__(controller)


@pytest.fixture
def meter(monkeypatch, tmp_path):
    meter = Meter(tmp_path, Seat(rank=0, num_ranks=2, num_nodes=2, slots_per_rank=2), window=2)
    monkeypatch.setattr(metering, "_meter", meter)
    return meter


@pytest.mark.parametrize("step_of", [step_of_v1, step_of_v2])
def test_both_runners_end_steps_and_show_their_rebalances(step_of, meter):
    """A dummy step counts as one, a profile does not, and its tokens are forgotten."""
    state = State()
    step = step_of(state)
    meter.record("layer", np.array([[0, 3]]), owners=1)
    step(is_profile=True)
    meter.record("layer", np.array([[0, 1], [2, 3], [0, 3]]), owners=1)
    step()
    assert not list(meter.folder.iterdir())
    step(is_dummy=True)
    (line,) = map(json.loads, (meter.folder / "rank0.jsonl").read_text().splitlines())
    assert (line["tokens"], line["slots_moved"], line["rebalances"]) == ([3], 8, 1)


@pytest.mark.parametrize("step_of", [step_of_v1, step_of_v2])
def test_steps_end_without_eplb_too(step_of, meter):
    """The arm without EPLB is metered like the others."""
    step = step_of(None)
    step()
    step()
    assert len((meter.folder / "rank0.jsonl").read_text().splitlines()) == 1
