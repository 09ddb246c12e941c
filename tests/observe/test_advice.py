"""Advice: figures of unseen tokens, a rule that can say no, and settings that the server accepts."""

from __future__ import annotations

import numpy as np
import pytest

from eplb_plugin import PluginError, RoutingStatistics, Topology, plan
from eplb_plugin.observe.advice import Survey, slots_of, split, survey
from eplb_plugin.observe.judging import judge_draws
from eplb_plugin.observe.recommendation import recommend
from eplb_plugin.placement import linear_placement
from eplb_plugin.planning.planner import plan_of
from eplb_plugin.planning.score import moved_slots
from surveys import BALANCED, EXPERTS, HASH, LAYERS


def test_figures_are_those_of_the_unseen_half(skewed: RoutingStatistics, surveyed: Survey) -> None:
    """By hand for one direction: planned on the first half, judged on the second, against the engine's start."""
    rows, topology = skewed.sample, Topology(2, 2, 9)
    first, second = (RoutingStatistics.from_topk(half, EXPERTS) for half in (rows[:, :800], rows[:, 800:]))
    made = plan(first, topology, policy="affinity", dispatch="hash")
    after = judge_draws(second.sample, made, 1, 0)
    start = plan_of(linear_placement(LAYERS, EXPERTS, EXPERTS), Topology(2, 2, 8), "hash")
    before = judge_draws(second.sample, start, 1, 0)
    found = surveyed.outcomes[1]
    assert found.balancedness.forth == pytest.approx(after.balancedness.mean())
    assert found.cross_node_copies.forth == pytest.approx(after.cross_node_copies.mean())
    assert found.copies_saved.forth == pytest.approx(
        1 - after.cross_node_copies.mean() / before.cross_node_copies.mean()
    )
    assert found.work_saved.forth == pytest.approx(1 - (1 / after.balancedness).sum() / (1 / before.balancedness).sum())
    assert surveyed.balancedness.forth == pytest.approx(before.balancedness.mean())
    following = plan(second, topology, policy="affinity", dispatch="hash", previous=made.placement)
    moves = moved_slots(following.placement, made.placement, topology).sum()
    assert found.next_moves.forth == moves
    assert found.gigabytes_moved == pytest.approx(found.next_moves.mean * 1e6 / 1e9)
    assert found.memory_gib == pytest.approx(LAYERS * 1e6 / 2**30)  # one slot more per rank
    assert surveyed.outcomes[0].memory_gib == 0.0


def test_loads_alone_are_split_by_drawing() -> None:
    """Every selection goes to one of the halves; nothing is said of nodes."""
    window = RoutingStatistics(np.arange(1, 65).reshape(2, 32) * 100)
    first, second = split(window)
    np.testing.assert_array_equal(first.load + second.load, window.load)
    made = survey(window, 2, 2, [BALANCED])
    assert (made.has_tokens, made.outcomes[0].copies_saved) == (False, None)
    assert recommend(made, HASH).enable
    with pytest.raises(PluginError, match="recording: found no selection"):
        survey(RoutingStatistics(np.zeros((1, 4))), 2, 2, [BALANCED])


def test_slots_divide_onto_ranks() -> None:
    assert (slots_of(32, 4), slots_of(32, 4, 4), slots_of(30, 4)) == (8, 9, 8)
    with pytest.raises(PluginError, match=r"found 5, expected 0 or more by steps of 4.*the nearest is 4"):
        slots_of(32, 4, 5)
