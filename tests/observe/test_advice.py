"""Advice: figures of unseen tokens, a rule that can say no, and settings that the server accepts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from eplb_plugin import PlanOptions, PluginError, RoutingStatistics, Topology, plan
from eplb_plugin.observe.advice import Candidate, Cluster, Survey, slots_of, survey
from eplb_plugin.observe.halves import split
from eplb_plugin.observe.judging import judge_draws, judge_steps, recorded_steps
from eplb_plugin.observe.recommendation import recommend
from eplb_plugin.placement import linear_placement
from eplb_plugin.planning.planner import plan_of
from eplb_plugin.planning.score import moved_slots
from surveys import AFFINITY, BALANCED, EXPERTS, HASH, LAYERS, recording


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


def test_loads_alone_say_nothing_of_nodes() -> None:
    window = RoutingStatistics(np.arange(1, 65).reshape(2, 32) * 100)
    made = survey(window, Cluster(2, 2), [BALANCED])
    assert (made.has_tokens, made.outcomes[0].copies_saved, made.step_balancedness) == (False, None, None)
    assert recommend(made, HASH).enable
    with pytest.raises(PluginError, match="recording: found no selection"):
        survey(RoutingStatistics(np.zeros((1, 4))), Cluster(2, 2), [BALANCED])


EXACT = replace(AFFINITY, exact=True)


def test_exact_is_judged_in_steps_of_unseen_tokens(skewed: RoutingStatistics) -> None:
    """By hand for one direction; tables beside it in the same steps, and a word of what it would add to the best."""
    made = survey(skewed, Cluster(2, 2, step_tokens=200), [AFFINITY, EXACT])
    first, rows = skewed.sample[:, :800], skewed.sample[:, 800:]
    known = RoutingStatistics.from_topk(first, EXPERTS, steps=np.arange(800) // 200)
    topology = Topology(2, 2, 9)
    options = (PlanOptions(), PlanOptions(exact=True))
    plans = [plan(known, topology, policy="affinity", dispatch="hash", options=one) for one in options]
    tables, exact = (
        judge_steps(rows, one, 200, 1, 0, exact=way) for one, way in zip(plans, (False, True), strict=True)
    )
    assert [one.candidate.exact for one in made.outcomes] == [False, True]
    assert made.outcomes[0].step_balancedness.forth == pytest.approx(tables.step_balancedness)
    assert made.outcomes[1].step_balancedness.forth == pytest.approx(exact.step_balancedness)
    assert made.outcomes[1].cross_node_copies.forth == pytest.approx(exact.cross_node_copies.mean())
    assert min(made.outcomes[1].step_balancedness) > max(made.outcomes[0].step_balancedness)
    assert made.step_balancedness.mean < made.balancedness.mean
    found = recommend(made, HASH)
    assert found.best is made.outcomes[0]
    (line,) = [reason for reason in found.reasons if reason.startswith("exact, 4 redundant experts, would bring")]
    assert f"{made.outcomes[0].step_balancedness.mean:.2f} to {made.outcomes[1].step_balancedness.mean:.2f}" in line


def test_recorded_steps_are_enough_where_tokens_are_of_no_known_step() -> None:
    """A server's window without its tokens: planned on the earlier steps, judged on the later ones, both ways."""
    ids = recording(1.35).sample
    steps = RoutingStatistics.from_topk(ids, EXPERTS, steps=np.arange(1600) // 200).steps
    window = RoutingStatistics(steps.sum(axis=0), steps=steps)
    candidates = [Candidate("balanced", "hash", 4), Candidate("balanced", "hash", 4, exact=True)]
    tables, exact = survey(window, Cluster(2, 2), candidates).outcomes
    halves = split(window)
    made = plan(halves[0], Topology(2, 2, 9), policy="balanced", dispatch="hash")
    assert tables.step_balancedness.forth == pytest.approx(recorded_steps(halves[1], made))
    assert (exact.cross_node_copies, exact.break_even_tokens) == (None, None)
    assert min(exact.step_balancedness) > max(tables.step_balancedness) + 0.02


def test_a_placement_that_exact_cannot_serve_has_no_row() -> None:
    """More than 16 replicas of one expert."""
    loads = np.array([[[1000, 1, 1]]] * 4)
    window = RoutingStatistics(loads.sum(axis=0), steps=loads)
    candidates = [Candidate("balanced", "hash", 17), Candidate("balanced", "hash", 17, exact=True)]
    made = survey(window, Cluster(1, 20), candidates)
    assert [one.candidate.exact for one in made.outcomes] == [False]


def test_slots_divide_onto_ranks() -> None:
    assert (slots_of(32, 4), slots_of(32, 4, 4), slots_of(30, 4)) == (8, 9, 8)
    with pytest.raises(PluginError, match=r"found 5, expected 0 or more by steps of 4.*the nearest is 4"):
        slots_of(32, 4, 5)
