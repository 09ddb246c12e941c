"""What maps and counts, made twice: equal where the same was done, and the difference named where not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eplb_plugin import PluginError
from eplb_plugin.doctor.lanes import HOST, Lane, make_ids, make_plan


def lanes(rule: str = "cover") -> list[Lane]:
    plan = make_plan(np.random.default_rng(0), rule, layers=2, experts=9, nodes=4, spare=3)  # type: ignore[arg-type]
    return [Lane(plan, HOST, top_k=3, max_tokens=32) for _ in range(2)]


def test_made_plans_have_the_room_asked_for() -> None:
    """Every expert is placed, redundant slots are at least as many, weights only where the rule has some."""
    for rule in ("weighted", "cover"):
        plan = make_plan(np.random.default_rng(0), rule, layers=2, experts=9, nodes=4, spare=4)
        assert plan.topology.num_slots == 16
        assert plan.placement.num_experts == 9
        assert (plan.cover_weights is None) == (rule == "weighted")


def test_made_ids_are_not_all_routings() -> None:
    """Some are none, some rows are empty, some name an expert twice; all are experts."""
    ids = make_ids(np.random.default_rng(0), 500, 9, 3)
    assert ids.shape == (500, 3)
    assert (ids.min(), ids.max()) == (-1, 8)
    assert 20 < (ids == -1).all(axis=1).sum() < 100
    full = ids[(ids >= 0).all(axis=1)]
    assert 5 < sum(len(set(row)) < 3 for row in full.tolist()) < 100


@pytest.mark.parametrize("rule", ["weighted", "cover"])
def test_the_same_work_is_counted_alike(rule: str) -> None:
    """Per pass and, folded, per window; one token more is seen, by the name of the count."""
    one, other = lanes(rule)
    ids = torch.from_numpy(make_ids(np.random.default_rng(1), 20, 9, 3))
    for lane in (one, other):
        lane.set(18)
    assert torch.equal(one.map(ids, 1), other.map(ids, 1))
    one.equals("x", other)
    for lane in (one, other):
        lane.recorder.fold()
    one.equals("x", other)
    assert one.recorder.totals.any()
    other.set(1)
    other.map(torch.tensor([[0, 1, 2]]), 0)
    with pytest.raises(PluginError, match=r"^x: \w+ of the pass, layer 0: found"):
        one.equals("x", other)
    other.recorder.fold()
    with pytest.raises(PluginError, match=r"^x: totals: found"):
        one.equals("x", other)


def test_switches_say_what_is_counted() -> None:
    """Nothing of a pass outside a window, but where ids go is the same."""
    one, other = lanes()
    ids = torch.from_numpy(np.array([[0, 1, 2], [3, 4, 5]]))
    one.set(2)
    other.set(2, load=False, slots=False)
    assert torch.equal(one.map(ids, 0), other.map(ids, 0))
    assert one.slot_load.sum() == 6
    assert other.slot_load.sum() == 0
    assert other.recorder.passing(0).load.sum() == 0
