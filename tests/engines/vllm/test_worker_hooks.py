"""Before vLLM serves: passes that measure memory, compile and warm up, with vLLM's own EplbState and worker."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eplb_plugin import Placement, Topology
from eplb_plugin.deployment import Deployment
from eplb_plugin.placement import linear_placement
from eplb_plugin.runtime.state_directory import StateDirectory
from processes import run_ranks

SECONDS = 300.0  # the planner may have to be compiled


def warmed_up(folder: str) -> dict[str, Any]:
    """As vLLM's newer runner does: passes without a step, then steps as real as any, more than a window of them."""
    from engines.vllm.eplb_models import TOKENS, Engine
    from eplb_plugin.engines.vllm import worker_hooks

    engine = Engine(use_async=False, drafts=1, interval=4, warm=False)
    recorder = engine.adapter.rebalancer.entries["target"].recorder
    before, begun = engine.placed("target"), []
    rebalance = engine.adapter.rebalance
    engine.adapter.rebalance = lambda *args, **kwargs: (begun.append(engine.steps), rebalance(*args, **kwargs))
    measured: list[bool] = []  # vLLM's own part needs its communicator
    worker_hooks._rearrange(lambda state, is_profile, *_: measured.append(is_profile), engine.state, is_profile=True)
    assert measured == [True]
    route(engine, TOKENS)
    for _ in range(10):
        engine.step()
    kept = int(recorder.num_tokens), int(recorder.load.sum()), int(recorder.pairs.sum())
    still = np.array_equal(before, engine.placed("target")) and not begun
    drafted = engine.state.model_states["draft0"]
    counted_by_vllm = int(drafted.expert_load_pass.sum())
    engine.warm_up()
    left = int(drafted.expert_load_pass.sum()) + int(drafted.expert_load_window.sum())
    route(engine, TOKENS)  # a trial, after which no step comes
    for _ in range(3):
        route(engine, 2, TOKENS)
        engine.state.step()
    window = engine.adapter.rebalancer.entries["target"].history._windows
    return {"kept": kept, "still": still, "counted_by_vllm": counted_by_vllm, "left": left, "begun": len(begun),
            "windows": [(one.num_tokens.tolist(), one.load.sum(1).tolist()) for one in window]}  # fmt: skip


def route(engine: Any, real: int, padded: int | None = None) -> None:
    """A forward pass of the target alone; what follows its real tokens is padding."""
    from engines.vllm.eplb_models import EXPERTS, TOP_K

    engine.state.prepare_forward(engine.configs["target"], real, None)
    for layer in engine.models["target"].moe_layers:
        ids = np.argsort(engine.random.random((padded or real, EXPERTS)), axis=1)[:, :TOP_K]
        layer.router._apply_eplb_mapping(torch.from_numpy(ids).int())


def test_nothing_counts_or_moves_before_the_server_serves(tmp_path: Any) -> None:
    """Steps of a warm-up count for nobody, vLLM's own count of a draft included; the first rebalance comes later, and
    its window holds the tokens of real steps alone.
    """
    first, other = run_ranks(2, warmed_up, str(tmp_path), timeout=SECONDS)
    for one in (first, other):
        assert one["kept"] == (0, 0, 0)
        assert one["still"]
        assert one["counted_by_vllm"] > 0  # the test would see it otherwise
        assert one["left"] == 0
    assert first["begun"] == other["begun"] == 1  # interval 4, which vLLM begins at 3
    ((tokens, selections),) = first["windows"]
    assert tokens == [4] * 3  # a window of one step, on two ranks with two tokens each
    assert selections == [8] * 3


def without_experts() -> None:
    from types import SimpleNamespace

    from vllm.distributed.eplb.eplb_state import EplbState

    from engines.vllm.eplb_models import Config, Engine

    engine = Engine(use_async=False)
    engine.state = EplbState(engine.parallel, torch.device("cpu"))
    engine.state.prepare_forward(Config(model="dense"), 3, None)
    engine.warm_up()
    engine.state = SimpleNamespace(eplb_state=None)
    engine.warm_up()


def test_a_worker_without_experts_goes_on() -> None:
    """A stage of a pipeline may have none: vLLM announces its passes all the same."""
    run_ranks(2, without_experts, timeout=SECONDS)


def resumed(folder: str, use_async: bool) -> tuple[list[bool], int]:
    """-> after every step, whether experts lie as an earlier run left them; and how many of these are a warm-up's."""
    from engines.vllm.eplb_models import EXPERTS, REDUNDANT, Engine

    engine = Engine(use_async, interval=1000, warm=False, state_directory=folder)
    kept, found = Placement.load(next(Path(folder).glob("*.placement.safetensors"))), []

    def step() -> None:
        engine.step()
        found.append(np.array_equal(engine.placed("target"), kept.phy2log))

    assert engine.adapter.resumes
    assert not np.array_equal(engine.placed("target"), kept.phy2log)
    for _ in range(5):  # as real as any, and graphs are captured after them
        step()
    warm = len(found)
    engine.warm_up()
    while not found[-1]:
        assert len(found) < 500
        step()
        time.sleep(0.01 * use_async)  # where a model would run
    for _ in range(3):
        step()
    assert engine.placed("target").shape == (3, EXPERTS + REDUNDANT)
    assert engine.state.expert_rearrangement_step < 500  # the next one comes an interval later
    return found, warm


@pytest.mark.parametrize("use_async", [True, False], ids=["async", "sync"])
def test_a_resume_waits_for_the_warm_up(tmp_path: Path, use_async: bool) -> None:
    """The placement that an earlier run ended with is moved to at the first step after it, no sooner, and stays."""
    topology = Topology(2, 1, 8)
    deployment = Deployment("target", "vllm", "mixed", topology, 12, (0, 1, 2))
    placement = Placement(linear_placement(3, 12, 16).phy2log[:, ::-1], [0, 1, 2])
    placement.save(StateDirectory(tmp_path).placement_file(deployment), deployment.placement_header())
    for found, warm in run_ranks(2, resumed, str(tmp_path), use_async, timeout=SECONDS):
        assert not any(found[:warm])
        first = found.index(True)
        assert all(found[first:])
        assert use_async or first == warm
