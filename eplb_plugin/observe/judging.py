"""A plan on tokens whose source ranks are not known: figures averaged over random ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..plan_types import Plan
from ..planning.score import LayerScores, judge_layers


def judge_draws(topk_ids: NDArray[Any], plan: Plan, draws: int, seed: int) -> LayerScores:
    """Every layer's figures for `topk_ids: [L, T, k]`, mean over `draws` of one random source rank per token."""
    ranks, tokens = plan.topology.num_ranks, topk_ids.shape[1]
    drawn = [
        judge_layers(topk_ids, np.random.default_rng([seed, draw]).integers(0, ranks, tokens), plan)
        for draw in range(draws)
    ]
    return average(drawn)


def average(scores: Sequence[LayerScores]) -> LayerScores:
    return LayerScores(*(np.mean([getattr(s, field.name) for s in scores], axis=0) for field in fields(LayerScores)))
