"""What `plan` and `replay` share: figures averaged over source draws, and how they are printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..plan_types import Plan
    from ..planning.score import LayerScores

Figures = dict[str, float]
HEADINGS = {
    "balancedness": "balancedness",
    "node_fan_out": "node fan-out",
    "cross_node_copies": "cross-node copies per token",
    "busiest_ingress": "busiest ingress",
}


def judge_draws(topk_ids: NDArray[Any], plan: Plan, draws: int, seed: int) -> LayerScores:
    """Every layer's figures, mean over `draws` of one random source rank per token."""
    from ..planning.score import judge_layers

    ranks, tokens = plan.topology.num_ranks, topk_ids.shape[1]
    drawn = [
        judge_layers(topk_ids, np.random.default_rng([seed, draw]).integers(0, ranks, tokens), plan)
        for draw in range(draws)
    ]
    return average(drawn)


def average(scores: Sequence[LayerScores]) -> LayerScores:
    kind = type(scores[0])
    return kind(**{field.name: np.mean([getattr(s, field.name) for s in scores], axis=0) for field in fields(kind)})


def figures(scores: LayerScores) -> Figures:
    return asdict(scores.mean())


def layer_figures(scores: LayerScores, layer_ids: NDArray[Any]) -> list[dict[str, float]]:
    return [
        {"layer": int(number), **{name: float(getattr(scores, name)[row]) for name in HEADINGS}}
        for row, number in enumerate(layer_ids)
    ]


def cells(row: Figures) -> list[str]:
    """In the order of HEADINGS; a figure that is not known is a dash."""
    return [f"{row[name]:.3f}" if name in row else "–" for name in HEADINGS]
