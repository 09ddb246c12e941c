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


PRICED = {"expert_bytes": 1e6, "link_gbps": 400, "seconds_per_selection": 1e-6}


def test_prices_are_optional():
    assert not PlanOptions().is_priced
    assert PlanOptions(**PRICED).is_priced
    assert PlanOptions(**PRICED, window_steps=100, horizon_steps=1000).is_priced


@pytest.mark.parametrize("missing", [*PRICED, "horizon_steps"])
def test_half_a_price_is_refused(missing):
    given = {**PRICED, "window_steps": 100, "horizon_steps": 10}
    del given[missing]
    with pytest.raises(PluginError, match=r"price of a move: found .*; fix: pass what is missing"):
        PlanOptions(**given)


@pytest.mark.parametrize("name", [*PRICED, "window_steps", "horizon_steps", "token_bytes", "load_error"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_prices_are_finite_and_not_negative(name, value):
    with pytest.raises(PluginError, match=f"{name}: found"):
        PlanOptions(**{**PRICED, "window_steps": 1, "horizon_steps": 1, name: value})


@pytest.mark.parametrize(
    "bad", [{"effort": "quick"}, {"balance_tolerance": -0.1}, {"balance_tolerance": 1.1}, {"max_moved_slots": -1}]
)
def test_options_are_checked(bad):
    with pytest.raises(PluginError, match=next(iter(bad))):
        PlanOptions(**bad)


@pytest.mark.parametrize("name", ["max_moved_slots", "max_moved_slots_total"])
@pytest.mark.parametrize("bound", [float("nan"), 2.5, -1, True, "3"])
def test_a_bound_on_moves_is_a_count(name, bound):
    with pytest.raises(PluginError, match=f"{name}: .*whole number"):
        PlanOptions(**{name: bound})
