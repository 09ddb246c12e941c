"""Where a plan is less even than vanilla's placement under its hash, and why: the plan says it, by layer and reason."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..placement import Placement
from ..plan_types import Plan
from .planner import Planner, plan_of
from .replicas.at_home import known_from_loads
from .sample import knows_tokens
from .score import expected_rank_load, layer_balancedness

LEAST = 0.005  # of balancedness: what is worth a word


def less_even(planner: Planner, made: Plan, previous: NDArray[np.int32] | None) -> tuple[str, ...]:
    """previous: [L, P] the placement that was repaired, if any."""
    if planner.shares_evenly and (previous is None or planner.policy == "deepseek"):
        return ()  # vanilla's own, or a full solve that starts from no less
    if not (knows_tokens(planner.statistics) or known_from_loads(made)):
        return (
            "all layers may be less even than vanilla's placement under its hash: some experts are on several nodes "
            f"({planner.statistics.num_experts} experts, {made.topology.num_nodes} nodes), and how dispatch cover uses "
            "these cannot be known from loads alone",
        )
    balance = layer_balancedness(expected_rank_load(planner.load, made))
    if planner.shares_evenly:  # vanilla's placement would take ten times as long as this plan
        vanilla = np.ones(len(balance))
    else:
        vanilla = layer_balancedness(expected_rank_load(planner.load, _vanilla(planner, made)))
    reasons: dict[str, list[int]] = {}
    for row in np.flatnonzero(balance < vanilla - LEAST):
        reasons.setdefault(_reason(planner, made, previous, int(row), float(balance[row])), []).append(int(row))
    lines = []
    for why, rows in reasons.items():
        behind = vanilla[rows] - balance[rows]
        worst, verb = int(np.argmax(behind)), "may be" if planner.shares_evenly else "are"
        lines.append(
            f"{len(rows)} of {len(balance)} layers {verb} less even than vanilla's placement under its hash, "
            f"by up to {behind[worst]:.3f} (layer {planner.statistics.layer_ids[rows[worst]]}): {why}"
        )
    return tuple(lines)


def _stays(made: Plan, previous: NDArray[np.int32], row: int) -> bool:
    """Whether every rank keeps its experts, in whatever order."""
    held = [slots[row].reshape(made.topology.num_ranks, -1) for slots in (made.placement.phy2log, previous)]
    return np.array_equal(np.sort(held[0], axis=1), np.sort(held[1], axis=1))


def _vanilla(planner: Planner, made: Plan) -> Plan:
    return plan_of(Placement(planner.solve_as_vanilla(None), made.placement.layer_ids), planner.topology, "hash")


def _reason(planner: Planner, made: Plan, previous: NDArray[np.int32] | None, row: int, balance: float) -> str:
    options = planner.options
    if planner.policy == "deepseek":
        return f"policy deepseek takes vanilla's placement, which dispatch {planner.dispatch} uses less evenly"
    if previous is not None and options.is_priced and _stays(made, previous, row):
        return "a move would cost more time than it saves"
    if previous is not None and options.is_bounded:
        return "the number of moved slots is bounded"
    if balance * (1.0 + options.balance_tolerance) >= 1.0:
        return f"within balance_tolerance {options.balance_tolerance:g} of even"
    if previous is not None:
        return f"a full solve is not more even by 2 points under dispatch {planner.dispatch}, so that few slots move"
    if planner.keeps_locality:
        return f"policy affinity gives up to balance_tolerance {options.balance_tolerance:g} for fewer nodes per token"
    return f"no placement that was tried is more even under dispatch {planner.dispatch}"
