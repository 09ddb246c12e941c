"""How long the affinity method searches: one method, its settings for a quick answer or the best one."""

from __future__ import annotations

from typing import NamedTuple

from ..plan_types import Effort


class Search(NamedTuple):
    """rows, repair_rows: most sampled tokens that a layer is planned or repaired on, the others thinned out evenly;
    guides: of these, those that costs are estimated from on the way; starts: of the homes; turns: of homes, replicas
    and weights; sweeps: of swaps between nodes, each over all experts; rounds: in which replicas are placed;
    exchanges: rounds of replicas changing places with redundant ones; tries: of packing ranks.
    """

    rows: int
    repair_rows: int
    guides: int
    starts: int
    turns: int
    sweeps: int
    rounds: int
    exchanges: int
    tries: int


SEARCHES: dict[Effort, Search] = {
    "thorough": Search(
        rows=8192, repair_rows=4096, guides=4096, starts=4, turns=2, sweeps=12, rounds=4, exchanges=12, tries=4
    ),
    "fast": Search(
        rows=2048, repair_rows=2048, guides=1024, starts=1, turns=1, sweeps=1, rounds=2, exchanges=0, tries=1
    ),
}
