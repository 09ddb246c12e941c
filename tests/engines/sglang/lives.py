"""Passes of two schedulers through several rebalances, and what each rank saw after every pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from eplb_plugin import route
from eplb_plugin.dispatch.cover import cover_maps, cover_token, mixed

from .schedulers import EXPERTS, MOE_LAYERS, TOP_K, Scheduler, Start

REBALANCES, TOKENS, FAILING, INTERVAL = 5, 6, 2, 4


def routed(rank: int, step: int, shared: bool) -> np.ndarray:
    """[MoE layers, T, K] logical experts of a pass; every rank routes its own tokens unless they are shared.

    In every third pass, only the first rank has any: the other's batch is idle.
    """
    random = np.random.default_rng([0 if shared else rank, step])
    tokens = 0 if rank > 0 and not shared and step % 3 == 1 else TOKENS
    skew = np.linspace(0.2, 1, EXPERTS)
    return np.argsort(random.random((len(MOE_LAYERS), tokens, EXPERTS)) * skew, axis=2)[:, :, :TOP_K]


@dataclass
class Seen:
    """Of one rank. begun, over: the pass at whose end each rebalance began, and the one at whose end it was over.

    maps: [L, P], plans: digests of those in force, after every pass. statistics: what each rebalance was planned from.
    weighted: layers and passes that were compared with `route` while a plan with weights was in force. copies: [L, E]
    that SGLang's maps name at the start.
    """

    first_map: np.ndarray
    copies: np.ndarray
    gatherer: str
    begun: list[int]
    over: list[int]
    maps: list[np.ndarray]
    statistics: list[dict[str, np.ndarray]]
    weights_right: bool = True
    addresses_kept: bool = True
    table: np.ndarray | None = None
    plans: list[str] = field(default_factory=list)
    weighted: int = 0
    after_another_layout: tuple[bool, bool] | None = None
    slots_counted: list[bool] = field(default_factory=list)  # by SGLang's recorder, of passes whole: are they right?


def live(start: Start, shared: bool) -> Seen:
    """Passes of the target, each with one of a draft before it; rebalance number FAILING finds a planner that fails.

    If layers move one by one, new weights are loaded once between two of them.
    """
    import eplb_plugin.runtime.proposal as proposal
    from eplb_plugin.engines.sglang.state import get_adapter

    scheduler = Scheduler(start)
    adapter, metadata = get_adapter(), scheduler.metadata
    entry, plan = adapter.rebalancer.entries["target"], proposal.plan_for

    def failing_once(*args: Any, **kwargs: Any) -> Any:
        if entry.rebalances + 1 == FAILING:
            raise RuntimeError("no plan today")
        return plan(*args, **kwargs)

    proposal.plan_for = failing_once
    (gatherer,) = scheduler.recorder._single_pass_gatherers.values()
    first_map = metadata.physical_to_logical_map_cpu.numpy().copy()
    copies = metadata.logical_to_all_physical_map_num_valid.numpy().copy()
    seen = Seen(first_map, copies, type(gatherer).__name__, [], [], [], [])
    observe = adapter.rebalancer.observe

    def observing(*args: Any) -> None:
        observe(*args)
        seen.begun.append(len(seen.maps))
        if entry.history._windows:
            seen.statistics.append(dict(vars(entry.history._windows[-1])))

    adapter.rebalancer.observe = observing
    before, reload = seen.first_map, start.options.get("eplb_rebalance_layers_per_chunk") == 1
    addresses = addresses_of(scheduler, entry.recorder)
    scheduler.route(np.tile(routed(scheduler.rank, 2000, shared), (1, 3, 1)))  # a warm-up, outside any pass
    while len(seen.over) < REBALANCES:
        step = len(seen.maps)
        with scheduler.running(2 * TOKENS), scheduler.recorder.disable_this_region():
            scheduler.route(np.tile(routed(scheduler.rank, 100_000 + step, shared), (1, 2, 1)))
        if step == 2:
            scheduler.recorder.dump_record()  # what HTTP asks for: a file, and a window of SGLang's that starts anew
        expected = planned_routes(scheduler.rank, adapter)
        scheduler.forward(routed(scheduler.rank, step, shared), batches=1 + step % len(entry.recorder.stage))
        for layer, (logical, physical) in enumerate(scheduler.routed):
            if expected is not None:
                np.testing.assert_array_equal(np.sort(physical), np.sort(expected(logical, layer)))
                seen.weighted += 1
        whole = step % len(entry.recorder.stage) == 0  # in one batch
        if whole and seen.gatherer == "_SelectExpertsSinglePassGatherer" and gatherer._data.any():
            seen.slots_counted.append(counted_right(scheduler, gatherer._data.numpy()))
        if len(seen.begun) > len(seen.over) and not adapter._rebalancing:
            seen.over.append(step)
        seen.maps.append(metadata.physical_to_logical_map_cpu.numpy().copy())
        seen.plans.append(entry.plan.digest if entry.plan is not None else "")
        seen.weights_right &= scheduler.weights_are_right()
        moved, before = not np.array_equal(before, seen.maps[-1]), seen.maps[-1]
        if reload and moved and adapter._rebalancing:
            reload = False
            scheduler.reload()
            addresses = addresses_of(scheduler, entry.recorder)
            seen.weights_right &= scheduler.weights_are_right()
            seen.maps[-1] = before = metadata.physical_to_logical_map_cpu.numpy().copy()
    assert not reload
    seen.addresses_kept = addresses == addresses_of(scheduler, entry.recorder)
    adapter.rebalancer.observe = observe
    if scheduler.reloads:
        seen.after_another_layout = after_another_layout(scheduler, shared)
    if metadata.logical_to_rank_dispatch_physical_map is not None:
        seen.table = metadata.logical_to_rank_dispatch_physical_map.numpy()
    return seen


def counted_right(scheduler: Scheduler, counts: np.ndarray) -> bool:
    """Whether SGLang's recorder holds the slots of the pass that is just over. counts: [decoder layers, P]."""
    found = [
        np.array_equal(counts[layer], np.bincount(physical.ravel(), minlength=counts.shape[1]))
        for layer, (_, physical) in zip(MOE_LAYERS, scheduler.routed, strict=True)
    ]
    return all(found)


def planned_routes(rank: int, adapter: Any) -> Callable[[np.ndarray, int], np.ndarray] | None:
    """`route` of the plan in force from this rank; None where there is none with weights, or experts move."""
    plan, tables = adapter.rebalancer.entries["target"].plan, adapter._tables
    if tables is None or not adapter._mover.settled or not plan.has_weights:
        return None
    shared = len(tables.owners) > 1  # a group on several nodes is near to none
    if shared and plan.dispatch == "cover":
        return lambda logical, layer: covered_by_all(logical, plan, layer)
    used = replace(plan, source_weights=None) if shared else plan
    return lambda logical, layer: route(logical, 0 if shared else rank, used, layer)


def covered_by_all(logical: np.ndarray, plan: Any, layer: int) -> np.ndarray:
    """Of tokens that lie on both nodes: every copy is near, and the first rank stands for both."""
    maps = cover_maps(plan, [layer])
    choices = [
        cover_token(row, 0b11, mixed(token, 0), 2, *(one[0] for one in maps)) for token, row in enumerate(logical)
    ]
    return np.array(choices, np.int32).reshape(logical.shape)


def after_another_layout(scheduler: Scheduler, shared: bool) -> tuple[bool, bool]:
    """Weights that are laid out otherwise are loaded: whether nothing moves any more, and whether they stay right."""
    scheduler.reload(columns=5)
    before = scheduler.metadata.physical_to_logical_map_cpu.clone()
    for step in range(2 * INTERVAL):
        scheduler.forward(routed(scheduler.rank, step, shared))
    return bool((before == scheduler.metadata.physical_to_logical_map_cpu).all()), scheduler.weights_are_right()


def addresses_of(scheduler: Scheduler, recorder: Any) -> list[int]:
    """Of what a captured graph would read or write."""
    held = [*vars(scheduler.metadata).values(), *vars(recorder).values(), *scheduler.model.parameters()]
    return [one.data_ptr() for one in held if hasattr(one, "data_ptr")]
