"""vLLM's own EplbState over several processes: it says when, the plugin plans and moves, and every row stays right."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from eplb_plugin import PluginError, controller
from processes import Ranks, run_ranks

SECONDS = 300.0  # the planner may have to be compiled


def serve(use_async: bool, drafts: int, steps: int) -> list[Any]:
    """The last rank is idle half of the time: it steps without tokens, as vLLM's idle data-parallel ranks do."""
    from engines.vllm.eplb_models import TOKENS, Engine

    engine = Engine(use_async, drafts)
    last = dist.get_rank() == dist.get_world_size() - 1
    seen: dict[str, set[bytes]] = {key: set() for key in engine.models}
    threads = {thread.name for thread in threading.enumerate()}
    for step in range(steps):
        engine.step(0 if last and step % 20 < 10 else TOKENS)
        time.sleep(0.002)
        for key in seen:
            seen[key].add(engine.placed(key).tobytes())
    assert engine.state.async_worker is None, threads
    return [len(maps) for maps in seen.values()] + [engine.adapter.rebalancer.entries["target"].rebalances]


@pytest.mark.parametrize("use_async", [True, False], ids=["async", "sync"])
@pytest.mark.parametrize("drafts", [0, 1])
def test_weights_and_maps_agree_on_every_step(use_async: bool, drafts: int) -> None:
    """Target and draft, with a rank that is idle for a while: rows are moved many times, and right after every step."""
    found = run_ranks(2, serve, use_async, drafts, 160, timeout=SECONDS)
    assert found[0] == found[1]
    *maps, rebalances = found[0]
    assert rebalances >= (10 if use_async else 40)
    assert min(maps) > 2
    assert maps[-1] > 10


def deferred() -> list[int]:
    from engines.vllm.eplb_models import Engine

    engine = Engine(use_async=True)
    solve, go = controller.plan, threading.Event()
    began = []

    def wait(*args: Any, **kwargs: Any) -> Any:
        began.append(engine.steps)
        assert go.wait(60)
        return solve(*args, **kwargs)

    controller.plan = wait
    before = engine.placed("target")
    for _ in range(14):  # three intervals
        engine.step()
    assert np.array_equal(engine.placed("target"), before)
    go.set()
    while engine.state.model_states["target"].rebalanced:
        engine.step()
        time.sleep(0.002)
    for _ in range(2):
        engine.step()
    return began


def test_a_rebalance_that_is_due_during_one_waits_for_its_end() -> None:
    """vLLM's counter goes on; the next window ends right after the migration."""
    began = run_ranks(2, deferred, timeout=SECONDS)[0]
    assert began[0] <= 4
    assert len(began) == 2 or began[1] > 14


def refused() -> str:
    from engines.vllm.eplb_models import Engine, Model

    engine = Engine(use_async=False)
    method = type("Method", (), {})()
    method.alphas = engine.models["target"].moe_layers[0].routed_experts.w13_weight.detach().clone()
    with pytest.raises(PluginError) as caught:
        engine._add("odd", Model(2, 3, method), "draft")
    return str(caught.value)


def test_state_that_would_stay_behind_is_refused_when_the_model_is_registered() -> None:
    """By the names of the layer and of the attribute that holds it."""
    text = run_ranks(2, refused, timeout=SECONDS)[0]
    assert text.startswith("layers.0.experts: Experts.quant_method.alphas: found [8, 6, 4]")


def killed(rank_to_kill: int) -> None:
    from engines.vllm.eplb_models import Engine

    engine = Engine(use_async=True, migration={"vote_seconds": 20.0})
    for _ in range(1000):
        engine.step()
        if engine.adapter.cycle._ahead and dist.get_rank() == rank_to_kill:
            os.kill(os.getpid(), signal.SIGKILL)
        engine.state.step(is_dummy=True)


def test_a_rank_killed_during_a_migration_ends_the_others() -> None:
    """By a vote that fails: no rank is left behind, none hangs."""
    with Ranks(4, SECONDS) as ranks:
        ranks.start(killed, 2)
        answers = ranks.answers({0, 1, 2, 3})
    codes = [value for _, value in answers]
    assert codes[2] == -signal.SIGKILL
    assert set(codes[:2] + codes[3:]) <= {70} or all(ok is not True for ok, _ in answers)
