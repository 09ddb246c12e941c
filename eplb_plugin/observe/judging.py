"""A plan on tokens whose source ranks are not known: figures averaged over random ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..dispatch.exact.step import route_step
from ..dispatch.rules import route
from ..errors import mismatch
from ..plan_types import Plan
from ..planning.replicas.at_home import known_from_loads
from ..planning.score import LayerScores, count_slots, judge_layers, layer_scores
from ..planning.step_balance import loads_by_shares, reached_by_quotas, step_balancedness
from ..statistics import RoutingStatistics


def judge_draws(topk_ids: NDArray[Any], plan: Plan, draws: int, seed: int) -> LayerScores:
    """Every layer's figures for `topk_ids: [L, T, k]`, mean over `draws` of one random source rank per token."""
    drawn = [judge_layers(topk_ids, _sources(plan, topk_ids.shape[1], seed, draw), plan) for draw in range(draws)]
    return average(drawn)


def judge_steps(
    topk_ids: NDArray[Any], plan: Plan, step_tokens: int, draws: int, seed: int, *, exact: bool = False
) -> LayerScores:
    """The same where tokens come in steps of `step_tokens`, in their order; with the balancedness of these steps.

    exact: every step's ranks are evened out by quotas (`route_step`) instead of the plan's tables.
    Tokens behind the last whole step are left out. Raises PluginError if there is no whole step.
    """
    layers, steps = len(topk_ids), topk_ids.shape[1] // step_tokens
    if not steps:
        found = f"{topk_ids.shape[1]} token rows to judge"
        raise mismatch("step tokens", found=found, expected=f"at least {step_tokens}", fix="lower them, or record more")
    choose: Callable[..., NDArray[Any]] = route_step if exact else route
    nodes, ranks, judged = plan.topology.num_nodes, plan.topology.num_ranks, topk_ids[:, : steps * step_tokens]
    drawn: list[LayerScores] = []
    for draw in range(draws):
        sources = _sources(plan, topk_ids.shape[1], seed, draw)
        rank_load, visited = np.zeros((steps, layers, ranks)), np.zeros((steps, layers))
        arriving = np.zeros((steps, layers, nodes))
        for step, layer in np.ndindex(steps, layers):
            part = slice(step * step_tokens, (step + 1) * step_tokens)
            slots = choose(judged[layer, part], sources[part], plan, layer)
            counted = count_slots(slots, sources[part], plan.topology)
            rank_load[step, layer], visited[step, layer], arriving[step, layer] = counted
        whole = layer_scores(judged, rank_load.sum(axis=0), visited.sum(axis=0), arriving.sum(axis=0))
        drawn.append(replace(whole, step_balancedness=step_balancedness(rank_load)))
    return average(drawn)


def recorded_steps(window: RoutingStatistics, plan: Plan) -> float | None:
    """Balancedness of the single steps that a server has recorded, replicas used by the plan's shares; None without
    them, and where it takes tokens to know what ranks get."""
    if window.steps is None or not (plan.has_weights or known_from_loads(plan)):
        return None
    return step_balancedness(loads_by_shares(window.steps, plan))


def evened_steps(window: RoutingStatistics, plan: Plan) -> float | None:
    """The same where `exact` evens every step out; None, too, where it cannot serve the plan's placement."""
    return None if window.steps is None else reached_by_quotas(window.steps, plan)


def average(scores: Sequence[LayerScores]) -> LayerScores:
    names = ("balancedness", "node_fan_out", "cross_node_copies", "busiest_ingress")
    steps = [one.step_balancedness for one in scores if one.step_balancedness is not None]
    figures = (np.mean([getattr(one, name) for one in scores], axis=0) for name in names)
    return replace(LayerScores(*figures), step_balancedness=float(np.mean(steps)) if steps else None)


def _sources(plan: Plan, tokens: int, seed: int, draw: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, draw]).integers(0, plan.topology.num_ranks, tokens)
