"""How long the affinity method searches: one method, its settings for a quick answer or the best one."""

from __future__ import annotations

from typing import NamedTuple

from ..plan_types import Effort


class Search(NamedTuple):
    """rows: most sampled tokens that a layer is planned on, the others thinned out evenly; starts: of the homes;
    turns: further ones from the best start; sweeps: of swaps between nodes, each over all experts; rounds: in which
    replicas are placed; exchanges: rounds of replicas changing places with redundant ones; tries: of packing ranks.
    """

    rows: int
    starts: int
    turns: int
    sweeps: int
    rounds: int
    exchanges: int
    tries: int


SEARCHES: dict[Effort, Search] = {
    "thorough": Search(rows=8192, starts=4, turns=1, sweeps=12, rounds=4, exchanges=12, tries=4),
    "fast": Search(rows=1024, starts=1, turns=0, sweeps=1, rounds=1, exchanges=0, tries=1),
}
REPAIR_ROWS = 2048  # of a repair: swaps that do not beat noise are left out anyway
