"""Steps of all ranks under `exact`, each rank by itself, and what they must come to."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray

from eplb_plugin import Plan
from eplb_plugin.dispatch.buffers import Counters
from eplb_plugin.dispatch.exact.tables import ExactLayer, ExactTables
from eplb_plugin.planning.planner import plan_of
from strategies import placements, topologies

CPU = torch.device("cpu")


class ExactStep(NamedTuple):
    """ids: of every source [T, k], -1 = none; together: ranks of a source."""

    plan: Plan
    ids: list[NDArray[np.int64]]
    together: int
    tolerance: float


@st.composite
def exact_steps(draw: st.DrawFn, groups: bool = True) -> ExactStep:
    """Ranks with no tokens, few or many; padding that names expert 0; groups of ranks, on one node or several."""
    experts = draw(st.integers(1, 12))
    topology = draw(topologies(experts))
    plan = plan_of(draw(placements(1, experts, topology.num_slots)), topology, draw(st.sampled_from(["hash", "cover"])))
    ranks, rng = topology.num_ranks, np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    together = draw(st.sampled_from([n for n in range(1, ranks + 1) if ranks % n == 0])) if groups else 1
    top_k, most = min(draw(st.integers(1, 5)), experts), draw(st.sampled_from([1, 8, 30]))
    rows = []
    for _ in range(ranks // together):
        ids = np.argsort(rng.random((rng.integers(most + 1), experts)), axis=1)[:, :top_k]
        ids[rng.random(ids.shape) < 0.1] = -1
        ids[rng.random(len(ids)) < 0.1] = 0
        rows.append(ids)
    return ExactStep(plan, rows, together, draw(st.sampled_from([0.0, 0.1])))


def layers_of(step: ExactStep) -> list[ExactLayer]:
    """Of every rank."""
    made = []
    for rank in range(step.plan.topology.num_ranks):
        first = rank - rank % step.together
        tables = ExactTables(step.plan, range(first, first + step.together), CPU, step.tolerance)
        made.append(tables.layer(0))
    return made


Count = Callable[[torch.Tensor, ExactLayer], torch.Tensor]
Choose = Callable[[torch.Tensor, ExactLayer, torch.Tensor, Counters], torch.Tensor]


def gather(step: ExactStep, layers: list[ExactLayer], count: Count) -> torch.Tensor:
    """One row of every source, as its first rank counts."""
    firsts = layers[:: step.together]
    rows = [count(torch.from_numpy(ids), layer).clone() for ids, layer in zip(step.ids, firsts, strict=True)]
    return torch.stack(rows)
