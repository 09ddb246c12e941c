"""What is measured: sizes, and the routing of every rank's tokens at a target imbalance factor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eplb_plugin.workloads.families import checked_family
from eplb_plugin.workloads.imbalance import fitted_router, loads_at, reachable_factor
from eplb_plugin.workloads.routing import ClusteredRouter

NEARLY = 0.999  # of the largest factor that a family reaches
ORDERS = 16


@dataclass(frozen=True)
class Case:
    """tokens: of every rank. real: on deep_ep, else on the CPU reference. rounds: of every PEO schedule."""

    real: bool
    ranks: int
    tokens: int
    hidden: int
    inter: int
    experts: int
    top_k: int
    distribution: str
    factors: tuple[float, ...]
    rounds: int
    repeats: int
    seed: int


def routed(case: Case, factor: float) -> np.ndarray:
    """[ranks, tokens, k] int64 expert ids. A factor that the distribution cannot reach becomes the largest it can.

    What it can reach depends on which experts lie together on a rank: the best of some orders is taken.
    """
    family, shape = checked_family(case.distribution), (case.experts, case.ranks, case.top_k, 1)
    reach = {seed: reachable_factor(family, *shape, seed) for seed in range(case.seed, case.seed + ORDERS)}
    order = next((seed for seed, most in reach.items() if NEARLY * most >= factor), max(reach, key=reach.__getitem__))
    loads = loads_at(min(max(factor, 1.0), max(1.0, NEARLY * reach[order])), family, *shape, order)
    plain = ClusteredRouter(1, case.experts, case.top_k, strength=0.0, model_seed=case.seed)
    router = fitted_router(plain, loads.shares, case.ranks * case.tokens, case.seed)
    ids = router.window(case.ranks * case.tokens, case.seed)[0]
    return ids.astype(np.int64).reshape(case.ranks, case.tokens, case.top_k)


def selections(case: Case, ids: np.ndarray) -> np.ndarray:
    """ids: [ranks, tokens, k] -> [ranks] (token, expert) selections that each rank serves."""
    return np.bincount(ids.ravel() // (case.experts // case.ranks), minlength=case.ranks)
