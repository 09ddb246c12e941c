"""A plan on tokens whose source ranks are not known: figures averaged over random ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..dispatch.exact.step import route_step
from ..dispatch.rules import route
from ..errors import mismatch
from ..plan_types import Plan
from ..planning.score import LayerScores, count_slots, judge_layers, layer_balancedness, layer_scores


def judge_draws(topk_ids: NDArray[Any], plan: Plan, draws: int, seed: int) -> LayerScores:
    """Every layer's figures for `topk_ids: [L, T, k]`, mean over `draws` of one random source rank per token."""
    drawn = [judge_layers(topk_ids, _sources(plan, topk_ids.shape[1], seed, draw), plan) for draw in range(draws)]
    return average(drawn)


def judge_steps(
    topk_ids: NDArray[Any], plan: Plan, step_tokens: int, draws: int, seed: int, *, exact: bool = False
) -> tuple[LayerScores, NDArray[np.float64]]:
    """The same where tokens come in steps of `step_tokens`, in their order; and [L] the balancedness of single steps,
    mean over them: a step waits for its own busiest rank, however even a window is.

    exact: every step's ranks are evened out by quotas (`route_step`) instead of the plan's tables.
    Tokens behind the last whole step are left out. Raises PluginError if there is no whole step.
    """
    layers, steps = len(topk_ids), topk_ids.shape[1] // step_tokens
    if not steps:
        found = f"{topk_ids.shape[1]} token rows to judge"
        raise mismatch("step tokens", found=found, expected=f"at least {step_tokens}", fix="lower them, or record more")
    choose: Callable[..., NDArray[Any]] = route_step if exact else route
    nodes, ranks, judged = plan.topology.num_nodes, plan.topology.num_ranks, topk_ids[:, : steps * step_tokens]
    drawn, per_step = [], np.zeros(layers)
    for draw in range(draws):
        sources = _sources(plan, topk_ids.shape[1], seed, draw)
        rank_load, visited = np.zeros((steps, layers, ranks)), np.zeros((steps, layers))
        arriving = np.zeros((steps, layers, nodes))
        for step, layer in np.ndindex(steps, layers):
            part = slice(step * step_tokens, (step + 1) * step_tokens)
            slots = choose(judged[layer, part], sources[part], plan, layer)
            counted = count_slots(slots, sources[part], plan.topology)
            rank_load[step, layer], visited[step, layer], arriving[step, layer] = counted
        drawn.append(layer_scores(judged, rank_load.sum(axis=0), visited.sum(axis=0), arriving.sum(axis=0)))
        per_step += np.mean([layer_balancedness(one) for one in rank_load], axis=0) / draws
    return average(drawn), per_step


def average(scores: Sequence[LayerScores]) -> LayerScores:
    return LayerScores(*(np.mean([getattr(s, field.name) for s in scores], axis=0) for field in fields(LayerScores)))


def _sources(plan: Plan, tokens: int, seed: int, draw: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, draw]).integers(0, plan.topology.num_ranks, tokens)
