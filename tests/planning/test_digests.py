"""Plans stay what they are while the planner's files are moved about: forty digests, written by the commit before.

`python tests/planning/test_digests.py` writes them anew, where plans are meant to change. Not in CI: numpy sums in
another order on another kind of processor, and a plan may then differ in its last bits.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from eplb_plugin import RoutingStatistics, Topology, forecast, plan
from eplb_plugin.workloads.routing import ClusteredRouter

DIGESTS = Path(__file__).parent / "digests.json"
TOPOLOGY = Topology(num_nodes=2, ranks_per_node=2, slots_per_rank=10)
ROUTER = ClusteredRouter(num_layers=2, num_experts=32, top_k=4, num_topics=6)
POLICIES, RULES = ("deepseek", "balanced", "affinity"), ("hash", "nearest", "weighted", "cover")
PHASES = {"one window": 1, "phases": 3}


def cases() -> list[str]:
    """40: cold and warm starts of the policies that repair, cold ones of `deepseek`, from one window and from three."""
    names = [" / ".join(case) for case in product(POLICIES, RULES, ("cold", "warm"), PHASES)]
    return [name for name in names if not name.startswith("deepseek") or "cold" in name]


def window(drift: float, seed: int) -> RoutingStatistics:
    return RoutingStatistics.from_topk(ROUTER.drifted(drift).window(1500, seed), ROUTER.num_experts)


def digest(case: str) -> str:
    policy, rule, start, phases = case.split(" / ")
    windows = [window(0.4 + 0.1 * index, index) for index in range(PHASES[phases])]
    statistics = windows[0] if len(windows) == 1 else forecast(windows)
    previous = None
    if start == "warm":
        previous = plan(window(0.0, 9), TOPOLOGY, policy=policy, dispatch=rule).placement
    made = plan(statistics, TOPOLOGY, policy=policy, dispatch=rule, previous=previous)
    assert np.isfinite(made.replica_weights).all()
    return made.digest


@pytest.mark.full
@pytest.mark.parametrize("case", cases())
def test_a_plan_is_bit_for_bit_what_it_was(case: str) -> None:
    """Placement and shares, of every policy under every rule."""
    assert digest(case) == json.loads(DIGESTS.read_text())[case]


if __name__ == "__main__":
    DIGESTS.write_text(json.dumps({case: digest(case) for case in cases()}, indent=2) + "\n")
