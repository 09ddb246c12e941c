"""What a rebalance came to, as numbers and as one line."""

from __future__ import annotations

import numpy as np

from eplb_plugin import PlanOptions, RoutingStatistics, Topology, plan
from eplb_plugin.placement import linear_placement
from eplb_plugin.planning.planner import plan_of
from eplb_plugin.planning.score import judge, moved_slots
from eplb_plugin.runtime.outcome import Assessment, assess
from eplb_plugin.workloads.routing import ClusteredRouter

TOPOLOGY = Topology(2, 2, 10)
WINDOW = RoutingStatistics.from_topk(ClusteredRouter(2, 32, 4).window(512), 32)
START = plan_of(linear_placement(2, 32, 40), TOPOLOGY, "hash")


def test_assess() -> None:
    """Its figures are those of the score, before and after."""
    made = plan(WINDOW, TOPOLOGY, dispatch="hash", previous=START, options=PlanOptions(max_moved_slots=5))
    found = assess(WINDOW, START, made)
    sources = np.arange(512) % 4
    assert found.copies == tuple(judge(WINDOW.sample, sources, one).cross_node_copies for one in (START, made))
    assert found.moved_slots == moved_slots(made.placement, START.placement, TOPOLOGY).sum() <= 10
    assert (found.slots, found.tokens) == (80, 512)
    assert found.balancedness[1] > found.balancedness[0]
    assert str(found).startswith(f"planned balancedness {found.balancedness[0]:.3f} -> {found.balancedness[1]:.3f}, ")
    assert str(found).endswith(" ms from 512 tokens")


def test_what_is_not_known_is_left_out() -> None:
    """Of load counts alone: no copies, no tokens; layers that stay are named where there are any."""
    loads = RoutingStatistics(WINDOW.load)
    found = assess(loads, START, START)
    assert (found.copies, found.tokens) == (None, None)
    text = str(Assessment((0.5, 1.0), None, None, 3, 40, 2, 0.0125, None))
    assert text == (
        "planned balancedness 0.500 -> 1.000, 3 of 40 slots move "
        "(layers that stay because their move would not pay: 2), planned in 12.5 ms"
    )
