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

from eplb_plugin import Placement, PluginError, route_step
from eplb_plugin.migration.shuffle import EXIT_CODE
from eplb_plugin.migration.transfer import Transfer
from eplb_plugin.planning.planner import plan_of
from eplb_plugin.runtime import proposal
from processes import Ranks, run_ranks

SECONDS = 300.0  # the planner may have to be compiled


def serve(use_async: bool, drafts: int) -> dict[str, int]:
    """The last rank is idle half of the time: it steps without tokens, as vLLM's idle data-parallel ranks do."""
    from engines.vllm.eplb_models import TOKENS, Engine

    engine = Engine(use_async, drafts)
    last = dist.get_rank() == dist.get_world_size() - 1
    seen: dict[str, set[bytes]] = {key: set() for key in engine.models}
    while len(seen["target"]) < 20 or min(map(len, seen.values())) < 4:  # the same on all ranks, as maps are
        assert engine.steps < 3000, {key: len(maps) for key, maps in seen.items()}
        engine.step(0 if last and engine.steps % 20 < 10 else TOKENS)
        time.sleep(0.002)
        for key in seen:
            seen[key].add(engine.placed(key).tobytes())
    assert engine.state.async_worker is None
    return {key: len(maps) for key, maps in seen.items()}


@pytest.mark.parametrize("use_async", [True, False], ids=["async", "sync"])
@pytest.mark.parametrize("drafts", [0, 1])
def test_weights_and_maps_agree_on_every_step(use_async: bool, drafts: int) -> None:
    """Target and draft, with a rank that is idle for a while: rows are moved many times, and right after every step."""
    found = run_ranks(2, serve, use_async, drafts, timeout=SECONDS)
    assert found[0] == found[1]


def with_idle_steps() -> list[int]:
    """The loads of single steps of one layer that the window of a plan has, added up over experts."""
    from engines.vllm.eplb_models import TOKENS, Engine

    engine = Engine(use_async=False)
    idle = dist.get_rank() == dist.get_world_size() - 1
    for step in range(5):  # vLLM's first interval is over after one; of the second, the last two are the window
        engine.step(0 if idle and step == 3 else TOKENS)
    return [
        load
        for window in engine.adapter.rebalancer.entries["target"].history._windows
        if window.steps is not None
        for load in window.steps[:, 0].sum(axis=1).tolist()
    ]


def test_single_steps_are_added_up_over_ranks_also_where_one_is_idle() -> None:
    """A step of an idle rank is a step: ranks keep the same ones, and only those of the window."""
    from engines.vllm.eplb_models import TOKENS, TOP_K

    assert run_ranks(2, with_idle_steps, timeout=SECONDS) == [[TOKENS * TOP_K, 2 * TOKENS * TOP_K], []]


def even_out(use_async: bool) -> tuple[int, int]:
    """Large steps and small ones in turn, over many moves; how many layers were evened out, and how many were not."""
    from engines.vllm.eplb_models import TOKENS, Engine
    from eplb_plugin.engines import exchange

    engine = Engine(use_async, dispatch="cover", exact={"min_tokens": TOKENS})
    choose, topology, evened, layers = exchange.choose, engine.adapter.rebalancer.entries["target"].topology, 0, 0

    def checked(ids: Any, layer: Any, gathered: Any, counters: Any) -> Any:
        nonlocal evened
        found, everywhere = choose(ids, layer, gathered, counters), [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, ids.numpy())
        owners = np.repeat(np.arange(len(everywhere)), [len(one) for one in everywhere])
        placed = plan_of(Placement(engine.placed("target")), topology, "cover")
        expected = route_step(np.concatenate(everywhere), owners, placed, evened % 3)
        np.testing.assert_array_equal(found, expected[owners == dist.get_rank()])
        evened += 1
        return found

    exchange.choose, maps = checked, set()
    while len(maps) < 12:
        assert engine.steps < 3000
        engine.step(TOKENS if engine.steps % 3 else TOKENS - 1)
        layers += 3
        maps.add(engine.placed("target").tobytes())
        time.sleep(0.002)
    return evened, layers


@pytest.mark.parametrize("use_async", [True, False], ids=["async", "sync"])
def test_large_steps_are_even_while_experts_move(use_async: bool) -> None:
    """`exact` among vLLM's own states: of every large step, `route_step` of the placement that serves it, also between
    the layers of a migration; small steps in between follow the tables."""
    found = run_ranks(2, even_out, use_async, timeout=SECONDS)
    assert found[0] == found[1]
    evened, layers = found[0]
    assert 0.5 * layers < evened < 0.8 * layers


def hold_back_plans() -> threading.Event:
    """No plan is made before the event is set."""
    solve, go = proposal.plan_for, threading.Event()

    def plan(*args: Any, **kwargs: Any) -> Any:
        go.wait(60)
        return solve(*args, **kwargs)

    proposal.plan_for = plan
    return go


def deferred() -> list[int]:
    from engines.vllm.eplb_models import Engine

    engine, begun = Engine(use_async=True), []
    begin, go = engine.adapter.cycle.begin, hold_back_plans()
    engine.adapter.cycle.begin = lambda loads: (begun.append(engine.steps), begin(loads))
    before = engine.placed("target")
    for _ in range(14):  # three intervals
        engine.step()
    assert len(begun) == 1
    assert np.array_equal(engine.placed("target"), before)
    go.set()
    while len(begun) < 2:
        assert engine.steps < 3000
        engine.step()
        time.sleep(0.002)
    assert not np.array_equal(engine.placed("target"), before)
    return begun


def test_a_rebalance_that_is_due_during_one_waits_for_its_end() -> None:
    """vLLM's counter goes on; the next window ends on the step on which the migration does, on all ranks."""
    found = run_ranks(2, deferred, timeout=SECONDS)
    assert found[0] == found[1]


def recovering(use_async: bool) -> tuple[str, int]:
    from engines.vllm.eplb_models import Engine

    engine, pack = Engine(use_async), Transfer._pack
    shuffler = engine.adapter.cycle._models["target"].shuffler

    def unreadable(*_: Any) -> None:
        raise OSError("struck")

    if dist.get_rank() == 1:
        Transfer._pack = unreadable
    while not shuffler.refusal:
        engine.step()
        assert engine.steps < 3000
        time.sleep(0.002)
    refusal, before = shuffler.refusal, engine.placed("target")
    Transfer._pack = pack
    while np.array_equal(engine.placed("target"), before):
        engine.step()
        assert engine.steps < 3000
        time.sleep(0.002)
    return refusal, engine.steps


@pytest.mark.parametrize("use_async", [True, False], ids=["async", "sync"])
def test_a_rank_that_cannot_read_its_weights_makes_all_refuse_until_it_can(use_async: bool) -> None:
    """Serving goes on with weights that fit the maps, on all ranks alike, and the next rebalance works."""
    (refusal, steps), (own, same) = run_ranks(2, recovering, use_async, timeout=SECONDS)
    assert " refused" in refusal
    assert own.endswith(" refused; here: reading: OSError: struck")
    assert steps == same


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

    engine = Engine(use_async=True)
    hold_back_plans()
    for _ in range(8):
        engine.step()
    assert engine.adapter.cycle._ahead
    if dist.get_rank() == rank_to_kill:
        os.kill(os.getpid(), signal.SIGKILL)
    for _ in range(100):
        engine.state.step(is_dummy=True)


def test_a_rank_killed_during_a_migration_ends_the_others() -> None:
    """By a vote that fails: no rank is left behind, none hangs."""
    with Ranks(4, SECONDS) as ranks:
        ranks.start(killed, 2)
        codes = [value for _, value in ranks.answers({0, 1, 2, 3})]
    assert codes == [EXIT_CODE, EXIT_CODE, -signal.SIGKILL, EXIT_CODE]
