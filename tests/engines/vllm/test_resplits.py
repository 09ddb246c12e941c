"""Weights between rebalances in vLLM's own EplbState: in force on the same step on all ranks, and what `route` says."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from eplb_plugin import PluginError, route
from processes import run_ranks

SECONDS = 300.0  # the planner may have to be compiled
STEPS, INTERVAL = 2000, 24


@dataclass
class Seen:
    """Of one rank, before every step. plans: digests; settled: whether no expert moves; maps: [L, P]."""

    plans: list[str] = field(default_factory=list)
    settled: list[bool] = field(default_factory=list)
    maps: list[bytes] = field(default_factory=list)
    routed: int = 0


def serve(use_async: bool) -> Seen:
    from engines.vllm.eplb_models import EXPERTS, TOP_K, Engine

    engine, seen = Engine(use_async, interval=INTERVAL, dispatch="weighted"), Seen()
    rank, cycle = dist.get_rank(), engine.adapter.cycle
    entry, random = engine.adapter.rebalancer.entries["target"], np.random.default_rng(dist.get_rank())
    while len(renewals(seen)) < 6 or seen.routed < 60:  # on all ranks alike: planning takes as many steps as it takes
        step = len(seen.plans)
        assert step < STEPS
        plan, settled = entry.plan, cycle.settled("target")
        seen.plans.append(plan.digest if plan is not None else "")
        seen.settled.append(settled)
        seen.maps.append(engine.placed("target").tobytes())
        if settled and plan.has_weights:
            for index, layer in enumerate(engine.models["target"].moe_layers):
                ids = np.argsort(random.random((1 + step % 40, EXPERTS)), axis=1)[:, :TOP_K]
                found = layer.router._apply_eplb_mapping(torch.from_numpy(ids).int()).numpy()
                np.testing.assert_array_equal(found, route(ids, rank, plan, index))
                seen.routed += 1
        engine.step()
        time.sleep(0.002 if settled else 0.05)  # so that a rebalance, which waits for a plan, is few steps long
    return seen


@pytest.fixture(scope="module", params=[True, False], ids=["async", "sync"])
def seen(request: pytest.FixtureRequest) -> list[Seen]:
    return run_ranks(2, serve, request.param, timeout=SECONDS)


def renewals(seen: Seen) -> list[int]:
    """Steps before which the weights were renewed: another plan, and no rebalance."""
    changed = [step for step in range(1, len(seen.plans)) if seen.plans[step] != seen.plans[step - 1]]
    quiet = [step for step in changed if seen.settled[step] and seen.settled[step - 1]]
    return [step for step in quiet if seen.maps[step] == seen.maps[step - 1]]


def test_on_the_same_step_everywhere(seen: list[Seen]) -> None:
    """Half a window after a window's end; several times between two rebalances."""
    first, other = seen
    assert first.settled == other.settled
    assert all(a == b for a, b, settled in zip(first.plans, other.plans, first.settled, strict=True) if settled)
    assert renewals(first) == renewals(other)
    assert len(renewals(first)) >= 6
    steps = np.diff(renewals(first))
    assert steps.min() <= 4, "never twice between two rebalances"


def test_tokens_go_where_route_says(seen: list[Seen]) -> None:
    """Batches of 1 to 40 tokens, compared in every step before which nothing moves."""
    assert min(one.routed for one in seen) >= 60


def refused_tables() -> str:
    from engines.vllm import eplb_models
    from eplb_plugin.engines import device_tables

    made = device_tables.hashed_maps
    device_tables.hashed_maps = lambda plan, owners, *args: made(
        plan, [dist.get_rank()], *args
    )  # as if nobody shared tokens
    with pytest.raises(PluginError) as caught:
        eplb_models.Engine(False, dispatch="weighted", topology={"nodes": 1}, all_to_all=False)
    return str(caught.value)


def test_unequal_tables_of_owners_are_refused() -> None:
    """When the model is registered: ranks that route the same tokens must have the same tables."""
    for text in run_ranks(2, refused_tables, timeout=SECONDS):
        assert text.startswith("token-owner group [0, 1]: found other tables on rank 1 than on rank 0")


def computed(tables_differ: bool) -> Any:
    """Two ranks of a TP group: each computes the copies that it holds for the tokens that both route; they add up."""
    from engines.vllm import eplb_models
    from eplb_plugin.engines import device_tables as engine_tables

    engine = eplb_models.Engine(False, interval=INTERVAL, dispatch="weighted", topology={"nodes": 2})
    rank, model = dist.get_rank(), engine.models["target"]
    while not engine.adapter.rebalancer.entries["target"].rebalances:
        engine.step()
    plan = engine.adapter.rebalancer.entries["target"].plan
    owners = [rank] if tables_differ else [0, 1]
    device_tables = engine_tables.DispatchTables(plan, owners, torch.device("cpu"))
    ids = np.argsort(np.random.default_rng(5).random((30, eplb_models.EXPERTS)), axis=1)[:, : eplb_models.TOP_K]
    own = model.num_local_physical_experts
    total = torch.zeros(30, 6, 4)
    for index, layer in enumerate(model.moe_layers):
        state = layer.router.eplb_state
        state.logical_to_physical_map, state.logical_replica_count = (
            device_tables.rows[index],
            device_tables.counts[index],
        )
        slots = layer.router._apply_eplb_mapping(torch.from_numpy(ids).int()).long()
        here = slots // own == rank
        weights = layer.routed_experts.w13_weight[(slots - rank * own).clamp(0, own - 1)]
        total += torch.where(here[..., None, None], weights, 0.0).sum(1)
    dist.all_reduce(total)
    expected = torch.zeros_like(total)
    for layer in model.moe_layers:
        one = torch.stack([layer.routed_experts.row(e, "w13_weight", (6, 4)) for e in range(eplb_models.EXPERTS)])
        expected += one[torch.from_numpy(ids)].sum(1)
    return float((total - expected).abs().max())


def test_owners_with_other_tables_compute_something_else() -> None:
    """What the refusal prevents: a copy computed twice, or by nobody."""
    assert max(run_ranks(2, computed, False, timeout=SECONDS)) < 1e-5
    assert min(run_ranks(2, computed, True, timeout=SECONDS)) > 0.1
