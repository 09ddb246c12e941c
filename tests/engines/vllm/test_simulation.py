"""Routing with a chosen imbalance, or of recorded tokens, asked for through vLLM's own simulator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vllm.model_executor.layers.fused_moe.router.router_factory import create_fused_moe_router
from vllm.model_executor.layers.fused_moe.router.routing_simulator_router import RoutingSimulator

from eplb_plugin.engines import hooks
from eplb_plugin.engines.vllm import simulation
from eplb_plugin.engines.vllm.simulation import (
    REPLAY_HOOKS,
    TOKENS,
    ImbalancedRouting,
    Workload,
    register_simulation,
)
from eplb_plugin.errors import PluginError
from eplb_plugin.workloads.imbalance import imbalance_factor

EXPERTS, TOP_K = 32, 4


def routed(strategy: ImbalancedRouting, tokens: int) -> np.ndarray:
    hidden, logits = torch.zeros(tokens, 8), torch.zeros(tokens, EXPERTS)
    weights, ids = strategy.route_tokens(hidden, logits, TOP_K, torch.int32)
    assert ids.dtype == torch.int32
    torch.testing.assert_close(weights.sum(1), torch.ones(tokens))
    return ids.numpy()


@pytest.mark.parametrize("factor", [1.0, 1.5, 2.5])
def test_the_ranks_get_the_factor(factor: float) -> None:
    """Over steps of uneven length; no token selects an expert twice."""
    strategy = ImbalancedRouting(Workload(factor, 4))
    ids = np.concatenate([routed(strategy, tokens) for tokens in (1, 500, 4000, 3691)])
    assert len(ids) == TOKENS
    assert (np.diff(np.sort(ids, axis=1), axis=1) > 0).all()
    load = np.bincount(ids.ravel(), minlength=EXPERTS)[None]
    assert imbalance_factor(load, 4)[0] == pytest.approx(factor, abs=0.02)


def test_ranks_that_make_the_same_calls_route_alike() -> None:
    """As tensor-parallel ranks must."""
    one, other = (ImbalancedRouting(Workload(2.0, 4)) for _ in range(2))
    for tokens in (3, 70, 1):
        np.testing.assert_array_equal(routed(one, tokens), routed(other, tokens))


def test_vllms_router_asks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The router that vLLM's own factory makes under this environment variable."""
    name = "eplb_plugin:factor=1.5,ranks=4,family=gamma,seed=3"
    monkeypatch.setenv("VLLM_MOE_ROUTING_SIMULATION_STRATEGY", name)
    register_simulation(name)
    try:
        router = create_fused_moe_router(TOP_K, EXPERTS)
        _, ids = router._compute_routing(torch.zeros(5, 8), torch.zeros(5, EXPERTS), torch.int64)
        np.testing.assert_array_equal(ids, Workload.parse(name.partition(":")[2]).window(EXPERTS, TOP_K)[:5])
        strategy = RoutingSimulator._routing_strategies[name]
        assert strategy.workload == Workload(1.5, 4, "gamma", seed=3)
    finally:
        del RoutingSimulator._routing_strategies[name]


def test_every_layers_router_deals_its_own_recorded_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers by vLLM's own factory, on the second of two data-parallel ranks, which begins in the middle."""
    ids = np.stack([np.arange(8)[:, None] + [0, 8, 16, 24], np.arange(8)[:, None] + [16, 0, 8, 24]])
    np.savez(tmp_path / "a.npz", topk_ids=ids, num_experts=EXPERTS)
    name = f"eplb_plugin:trace={tmp_path / 'a.npz'},answers=1"
    monkeypatch.setenv("VLLM_MOE_ROUTING_SIMULATION_STRATEGY", name)
    monkeypatch.setattr(simulation, "get_dp_group", lambda: SimpleNamespace(rank_in_group=1, world_size=2))
    register_simulation(name)
    try:
        routers = [create_fused_moe_router(TOP_K, EXPERTS) for _ in range(2)]
        for begin in (4, 1):
            for router, rows in zip(routers, ids, strict=True):
                weights, found = router._compute_routing(torch.zeros(5, 8), torch.zeros(5, EXPERTS), torch.int32)
                assert found.dtype == torch.int32
                np.testing.assert_array_equal(found, rows[(begin + np.arange(5)) % 8])
                torch.testing.assert_close(weights, torch.full((5, TOP_K), 1 / TOP_K))
    finally:
        hooks.remove(REPLAY_HOOKS)
        del RoutingSimulator._routing_strategies[name]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "found , expected"),
        ("factor=2", "found factor=2, expected eplb_plugin:factor=2,ranks=16"),
        ("factor=x,ranks=2", "found factor=x"),
        ("factor=2,ranks=2,colour=1", "found colour=1"),
        ("factor=2,ranks=2,family=zipf", "family: found 'zipf'"),
    ],
)
def test_a_bad_one_is_refused(text: str, found: str) -> None:
    with pytest.raises(PluginError) as caught:
        Workload.parse(text)
    assert found in str(caught.value)


@pytest.mark.parametrize("words", ["factor=2", "trace="])
def test_a_bad_one_ends_the_process_with_one_line(words: str) -> None:
    """vLLM would only log what a plugin raises."""
    code = "from eplb_plugin.engines.vllm import register; register()"
    environment = os.environ | {"VLLM_MOE_ROUTING_SIMULATION_STRATEGY": f"eplb_plugin:{words}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("eplb-plugin: VLLM_MOE_ROUTING_SIMULATION_")]
