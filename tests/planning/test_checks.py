"""What `plan()` refuses before it computes anything: one line each, with what was found and what would do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from eplb_plugin import PlanOptions, PluginError, RoutingStatistics, Topology
from eplb_plugin.limits import MOST_NODES, MOST_RANKS
from eplb_plugin.placement import linear_placement
from eplb_plugin.planning.checks import POLICIES, check_input, checked_policy, runs_on

LOAD = RoutingStatistics(np.ones((2, 8)), layer_ids=[1, 3])
TOKENS = RoutingStatistics.from_topk(np.array([[[0, 1], [2, 7]]] * 2), 8, [1, 3])
PLACED = linear_placement(2, 8, 12, [1, 3])


def check(**changed: Any) -> None:
    values: dict[str, Any] = {
        "statistics": TOKENS, "topology": Topology(2, 2, 3), "policy": "affinity", "previous": None,
        "dispatch": "weighted", "num_groups": 1, "options": PlanOptions(),
    }  # fmt: skip
    check_input(**(values | changed))


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"previous": PLACED, "options": PlanOptions(max_moved_slots=1, max_moved_slots_total=0)},
        {"statistics": LOAD, "policy": "balanced"},
        {"statistics": LOAD, "topology": Topology(1, 4, 3)},  # on one node it does not matter who goes with whom
        {"statistics": LOAD, "policy": "balanced", "dispatch": "cover", "previous": PLACED},
        {"statistics": RoutingStatistics(LOAD.load, TOKENS.coactivation, layer_ids=[1, 3])},
        {"num_groups": 4},
        {"topology": Topology(MOST_NODES, 1, 1), "policy": "deepseek"},
        {"topology": Topology(MOST_NODES + 1, 1, 1), "dispatch": "nearest"},
    ],
)
def test_what_fits_passes(changed: dict[str, Any]) -> None:
    """At the borders too."""
    check(**changed)


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"policy": "best"}, "policy: found 'best', expected one of deepseek, balanced, affinity"),
        ({"topology": Topology(1, 7, 1)}, "topology.num_slots: found 7, expected at least 8"),
        ({"topology": Topology(1, MOST_RANKS + 1, 1)}, f"topology.num_ranks: found {MOST_RANKS + 1}, expected at most"),
        ({"num_groups": 3}, "num_groups: found 3, expected a divisor of 8 experts"),
        ({"num_groups": 0}, "num_groups: found 0"),
        ({"topology": Topology(MOST_NODES + 1, 1, 1)}, f"topology.num_nodes: found {MOST_NODES + 1}, expected at most"),
        ({"statistics": LOAD}, "policy affinity: found load only, expected co-activation or a token sample"),
        (
            {"statistics": LOAD, "policy": "deepseek", "dispatch": "cover"},
            "dispatch cover: found load only, and policy deepseek",
        ),
        (
            {
                "statistics": LOAD, "policy": "balanced", "dispatch": "cover", "previous": PLACED,
                "options": PlanOptions(max_moved_slots=1),
            },
            "dispatch cover: found load only, and a bound on moves",
        ),
        ({"previous": linear_placement(2, 8, 16, [1, 3])}, "previous placement: found layers, experts, slots (2, 8, 1"),
        ({"previous": linear_placement(2, 8, 12, [1, 2])}, "previous placement: found layers, experts, slots (2, 8,"),
        (
            {"previous": PLACED, "policy": "deepseek", "options": PlanOptions(max_moved_slots_total=3)},
            "max_moved_slots or max_moved_slots_total: found policy deepseek",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(changed: dict[str, Any], line: str) -> None:
    """In one line that says how to mend it."""
    with pytest.raises(PluginError) as caught:
        check(**changed)
    assert str(caught.value).startswith(line)
    assert "; fix: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_policies_and_nodes() -> None:
    """A policy that is known is returned; rules with weights keep a set of nodes in one number."""
    assert [checked_policy(name) for name in POLICIES] == list(POLICIES)
    able = [rule for rule in ("hash", "nearest", "weighted", "cover") if runs_on(rule, MOST_NODES + 1)]
    assert able == ["hash", "nearest"]
