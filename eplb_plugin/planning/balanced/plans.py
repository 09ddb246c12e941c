"""Plans of `balanced`: all layers at once, every replica of an expert serving the same; then what shares can do."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...placement import Placement
from ...plan_types import Plan, placement_of
from ..layer.packing import solve_balanced
from ..layer.solve import as_used
from ..moves.budget import NO_LIMIT, count_moved
from ..rules.base import Layer
from ..sample import MAX_ROWS
from ..side_by_side import solve_each
from .layers import repair_layers

if TYPE_CHECKING:
    from ..planner import Planner


def plan_evenly(planner: Planner, previous: Plan | Placement | None) -> Plan:
    """All layers at once, with every copy of an expert serving the same; then whatever weights can do."""
    if previous is None:
        old, resolved = None, len(planner.load)
        phy2log = solve_balanced(planner.load, planner.topology.num_slots, planner.topology.num_ranks)
    else:
        old = placement_of(previous).phy2log
        phy2log, resolved = repair_layers(planner.load, old, planner.topology, planner.options)
    if planner.statistics.parts is not None:
        phy2log = _even_out_parts(planner, phy2log, old)
    if not planner.is_weighed:
        return replace(planner.use(phy2log), resolved_layers=resolved)
    layers = planner.weigh_all(Placement(phy2log, planner.statistics.layer_ids))
    if planner.dispatch == "cover" and not (previous is not None and planner.options.is_bounded):
        layers = [_or_at_home(planner, number, layer, old) for number, layer in enumerate(layers)]
    if previous is not None:
        layers = _or_as_it_is(planner, previous, layers)
    return replace(planner.plan_of_layers(layers), resolved_layers=resolved)


def _even_out_parts(planner: Planner, phy2log: NDArray[np.int32], old: NDArray[np.int32] | None) -> NDArray[np.int32]:
    """Every part of the traffic evened out, too, within the bounds on moves; copies serve the same still."""
    as_hash, options = replace(planner, dispatch="hash"), planner.options
    cap = NO_LIMIT if options.max_moved_slots is None else options.max_moved_slots
    made = phy2log.copy()

    def even_out(layer: int, budget: int) -> None:
        rule, _ = as_hash.rule(layer, 0)
        if len(rule.parts) < 2:
            return
        start = None if old is None else old[layer]
        made[layer] = planner.by_layer.even_out_parts(rule, as_used(rule, made[layer]), start, budget).phy2log

    if options.max_moved_slots_total is None:
        solve_each(lambda layer: even_out(layer, cap), range(len(made)))
        return made
    ranks, experts = planner.topology.num_ranks, planner.statistics.num_experts
    spent = np.zeros(len(made), np.int64) if old is None else count_moved(made, old, ranks, experts)
    left = options.max_moved_slots_total - int(spent.sum())
    for layer in range(len(made)):
        even_out(layer, min(cap, int(spent[layer]) + left))
        if old is not None:
            left += int(spent[layer] - count_moved(made[layer][None], old[layer][None], ranks, experts)[0])
    return made


def _or_at_home(planner: Planner, number: int, layer: Layer, old: NDArray[np.int32] | None) -> Layer:
    is_foreseen, before = planner.is_foreseen(layer), None if old is None else old[number]
    return planner.by_layer.or_at_home(planner.rule(number, MAX_ROWS)[0], layer, before, is_foreseen)


def _or_as_it_is(planner: Planner, previous: Plan | Placement, layers: list[Layer]) -> list[Layer]:
    """The previous placement instead, where new weights alone make it even enough, or no worse."""
    enough = 1.0 + planner.options.balance_tolerance
    pairs = zip(planner.weigh_all(previous), layers, strict=True)
    return [old if planner.is_foreseen(old) and old.peak <= max(enough, new.peak) else new for old, new in pairs]
