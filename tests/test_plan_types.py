from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from eplb_plugin import Placement, Plan, PlanOptions, PluginError, Topology

PLAN = Plan(Placement(np.array([[0, 1, 0, 1]])), Topology(2, 1, 2), "hash", np.full((1, 4), 0.5), 0.1)


def test_digest_follows_what_ranks_must_agree_on():
    assert replace(PLAN, seconds=9.0).digest == PLAN.digest
    others = [
        replace(PLAN, dispatch="nearest"),
        replace(PLAN, replica_weights=np.array([[0.5, 0.5, 0.5, 0.5 + 1e-15]])),
        replace(PLAN, placement=Placement(np.array([[1, 0, 0, 1]]))),
        replace(PLAN, placement=Placement(np.array([[0, 1, 0, 1]]), [5])),
    ]
    assert len({PLAN.digest, *(other.digest for other in others)}) == 5


def test_plans_are_frozen():
    with pytest.raises(FrozenInstanceError):
        PLAN.seconds = 1.0
    with pytest.raises(FrozenInstanceError):
        PlanOptions().max_moved_slots = 3


@pytest.mark.parametrize("bad", [{"balance_tolerance": -0.1}, {"balance_tolerance": 1.1}, {"max_moved_slots": -1}])
def test_options_are_checked(bad):
    with pytest.raises(PluginError, match=next(iter(bad))):
        PlanOptions(**bad)
