"""The rule `cover` against a slow reference that reads like its description."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covering import cover_slowly, mixed_slowly
from eplb_plugin import Placement, Plan, Topology, route
from eplb_plugin.dispatch.cover import MOST_WEIGHT, integer_weights, mixed
from strategies import QUICK, cover_plans


@st.composite
def covered(draw: st.DrawFn):
    plan = draw(cover_plans())
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    experts = plan.placement.num_experts
    rows = np.argsort(rng.random((12, experts)), axis=1)[:, : min(4, experts)]
    rows[rng.random(rows.shape) < 0.1] = -1
    return plan, rows, rng.integers(0, plan.topology.num_ranks, 12), rng.integers(0, 500, 12)


@QUICK
@given(covered())
def test_cover_is_its_description(case):
    plan, rows, source, index = case
    slots = route(rows, source, plan, 0, token_index=index)
    expected = [
        cover_slowly(plan, row, s, i) for row, s, i in zip(rows.tolist(), source.tolist(), index.tolist(), strict=True)
    ]
    assert slots.tolist() == expected


@QUICK
@given(st.integers(0, 2**40), st.integers(0, 2**20))
def test_the_hash_is_32_bits(first: int, second: int):
    assert mixed(first, second) == mixed_slowly(first, second)


@pytest.mark.parametrize("batch", [1, 8, 64])
def test_small_batches_spread_as_the_weights_say(batch: int):
    """64 ranks of one node: whatever the tokens per step, copies are taken 5 : 2 : 1."""
    placement = Placement(np.array([[*range(61), 0, 0, 0]], np.int32))
    weights = np.ones((1, 64), np.int32)
    weights[0, placement.log2phy[0, 0]] = [160, 64, 16, 16]
    plan = Plan(placement, Topology(1, 64, 1), "cover", np.ones((1, 64)), 0.0, cover_weights=weights)
    slots = route(np.zeros((64 * batch, 1), int), np.repeat(np.arange(64), batch), plan, 0)
    share = np.bincount(slots[:, 0], minlength=64)[placement.log2phy[0, 0]] / len(slots)
    np.testing.assert_allclose(share, np.array([160, 64, 16, 16]) / 256, atol=1.5 / np.sqrt(64 * batch))


def test_experts_meet_on_a_node_that_the_token_needs_anyway():
    """Experts 0 and 1 are together on nodes 1 and 2, expert 2 on node 3 alone."""
    placement = Placement(np.array([[3, 4, 0, 1, 0, 1, 2, 5]], np.int32))
    plan = Plan(placement, Topology(4, 1, 2), "cover", np.ones((1, 8)), 0.0)
    for index in range(20):
        slots = route(np.array([[0, 1, 2]]), 0, plan, 0, token_index=[index])[0]
        assert slots[0] // 2 == slots[1] // 2 in (1, 2)
        assert slots[2] // 2 == 3


def test_an_expert_alone_takes_any_copy_as_its_weights_say():
    """Expert 0 is on nodes 1 and 2, which nothing else of the token needs: its weights decide, 3 : 1."""
    placement = Placement(np.array([[3, 4, 0, 1, 0, 2, 5, 6]], np.int32))
    weights = np.array([[1, 1, 30, 1, 10, 1, 1, 1]], np.int32)
    plan = Plan(placement, Topology(4, 1, 2), "cover", np.ones((1, 8)), 0.0, cover_weights=weights)
    slots = route(np.tile([0, 3, 5], (4000, 1)), 0, plan, 0)
    assert np.mean(slots[:, 0] == 2) == pytest.approx(0.75, abs=0.03)


@QUICK
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=12))
def test_weights_are_positive_integers(weights: list[float]):
    scaled = integer_weights(np.array(weights), np.zeros(len(weights), np.int32))
    assert scaled.min() >= 1
    assert scaled.max() == (MOST_WEIGHT if max(weights) > 0 else 1)
