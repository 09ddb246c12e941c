"""How long the affinity method searches: one method, its settings for a quick answer or the best one."""

from __future__ import annotations

from typing import NamedTuple

from ..plan_types import Effort


class Search(NamedTuple):
    """rows: most sampled tokens that a layer is planned on, the others thinned out evenly; sweeps: of swaps between
    nodes, each over all experts; turns: of homes, replicas and weights, at most; rounds: in which replicas are placed;
    tries: of packing a node's ranks.
    """

    rows: int
    sweeps: int
    turns: int
    rounds: int
    tries: int


SEARCHES: dict[Effort, Search] = {
    "thorough": Search(rows=8192, sweeps=12, turns=6, rounds=4, tries=4),
    "fast": Search(rows=1024, sweeps=2, turns=1, rounds=2, tries=1),
}
REPAIR_ROWS = 2048  # of a repair: swaps that do not beat noise are left out anyway
