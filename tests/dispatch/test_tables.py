"""Weighted tables: what rows realise, alone and together, and that small batches spread as the weights say."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import Placement, Plan, PluginError, Topology, route
from eplb_plugin.dispatch.tables import TABLE_WIDTH, hashed_maps, share_entries, weighted_tables
from eplb_plugin.planning.planner import plan_of
from strategies import QUICK, weighted_plans


def even_weights(placement: Placement) -> np.ndarray:
    return 1.0 / np.take_along_axis(placement.replica_count, placement.phy2log.astype(np.int64), axis=1)


def entries_slowly(shares: list[float], width: int) -> list[int]:
    """Largest remainders; the earlier copy on ties."""
    entries = [int(share * width + 1e-9) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda copy: (entries[copy] - shares[copy] * width, copy))
    for copy in by_remainder[: width - sum(entries)]:
        entries[copy] += 1
    return entries


@QUICK
@given(weighted_plans(), st.integers(1, 40))
def test_rows_hold_every_copy_as_often_as_its_share(plan: Plan, width: int):
    tables = weighted_tables(plan, width=width)
    topology, placement = plan.topology, plan.placement
    assert tables.shape == (topology.num_ranks, 2, placement.num_experts, width)
    for rank, layer, expert in np.ndindex(tables.shape[:3]):
        copies = placement.log2phy[layer, expert, : placement.replica_count[layer, expert]]
        shares = plan.source_weights[topology.node_of_rank[rank], layer, copies]
        found = [int((tables[rank, layer, expert] == copy).sum()) for copy in copies]
        assert sum(found) == width
        assert np.abs(np.array(found) - shares * width).max() <= 1.0 + 1e-6


@QUICK
@given(weighted_plans(), st.sampled_from([1, 2]))
def test_ranks_of_a_node_round_so_that_their_sum_is_right(plan: Plan, together: int):
    """One row cannot say a twelfth; a node's rows, one for all ranks that route the same tokens, say it together."""
    topology, placement = plan.topology, plan.placement
    if topology.ranks_per_node % together:
        return
    tables = weighted_tables(plan, together=together)
    for node, layer in np.ndindex(topology.num_nodes, 2):
        rows = tables[np.flatnonzero(topology.node_of_rank == node)[::together], layer]
        found = np.bincount(rows.ravel(), minlength=placement.num_slots)
        assert np.abs(found - plan.source_weights[node, layer] * rows[:, 0].size).max() <= 1.0 + 1e-6


@QUICK
@given(st.lists(st.integers(0, 20), min_size=1, max_size=9), st.integers(1, 64))
def test_entries_are_largest_remainders(weights: list[int], width: int):
    total = sum(weights)
    shares = [float(Fraction(w, total)) for w in weights] if total else [1 / len(weights)] * len(weights)
    found = share_entries(np.array(shares), width)
    assert found.sum() == width
    assert np.abs(np.sort(found) - np.sort(entries_slowly(shares, width))).max() <= 1
    assert np.abs(found - np.array(shares) * width).max() < 1.0 + 1e-6


@QUICK
@given(weighted_plans(), st.integers(0, 1000))
def test_route_takes_the_tables_and_nothing_else(plan: Plan, seed: int):
    rng = np.random.default_rng(seed)
    experts, ranks = plan.placement.num_experts, plan.topology.num_ranks
    rows, source = rng.integers(-1, experts, (20, 3)), rng.integers(0, ranks, 20)
    index = rng.integers(0, 2**31, 20)
    tables = weighted_tables(plan)
    slots = route(rows, source, plan, 1, token_index=index)
    for token, k in np.ndindex(rows.shape):
        entry = int(index[token]) * 2654435769 % 2**32 % TABLE_WIDTH
        expert = rows[token, k]
        assert slots[token, k] == (tables[source[token], 1, expert, entry] if expert >= 0 else -1)
    alone = route(rows[:, :1], source, plan, 1, token_index=index)
    assert np.array_equal(alone[:, 0], slots[:, 0])


def test_chosen_ranks_and_layers_are_those_of_the_whole():
    placement = Placement(np.tile(np.arange(8, dtype=np.int32) % 5, (3, 1)))
    plan = Plan(placement, Topology(2, 2, 2), "weighted", even_weights(placement), 0.0)
    assert np.array_equal(weighted_tables(plan, ranks=[2], layers=[0, 2]), weighted_tables(plan)[[2]][:, [0, 2]])


@pytest.mark.parametrize("batch", [1, 8, 64])
def test_small_batches_spread_as_the_weights_say(batch: int):
    """Eight ranks a node, one expert with copies of 1/2, 1/4, 1/8, 1/8: every batch size loads them in proportion."""
    wanted = np.array([0.5, 0.25, 0.125, 0.125])
    topology = Topology(2, 8, 1)
    placement = Placement(np.array([[0, 1, 2, 3, 4, 5, 6, 7, *range(8, 13), 0, 0, 0]], np.int32))
    shares = np.ones(16)
    shares[placement.log2phy[0, 0]] = wanted
    plan = Plan(placement, topology, "weighted", shares[None], 0.0, np.tile(shares, (2, 1, 1)))
    source = np.repeat(np.arange(16), batch)
    slots = route(np.zeros((len(source), 1), int), source, plan, 0)
    share = np.bincount(slots[:, 0], minlength=16)[placement.log2phy[0, 0]] / len(slots)
    np.testing.assert_allclose(share, wanted, atol=0.07 if batch < 64 else 0.01)


def test_one_token_a_step_does_not_choose_the_first_copy_of_all_experts():
    experts = 64
    placement = Placement(np.tile(np.arange(experts, dtype=np.int32), 2)[None])
    plan = Plan(placement, Topology(2, 1, experts), "weighted", even_weights(placement), 0.0)
    slots = route(np.arange(experts)[:, None], 0, plan, 0, token_index=np.zeros(experts, int))
    assert 0.35 < (slots < experts).mean() < 0.65


def looked_up(maps: tuple[np.ndarray, np.ndarray], rows: np.ndarray, index: np.ndarray) -> np.ndarray:
    """[T, k] as an engine does it: entry `hash % count` of an expert's row; one layer's maps."""
    (table,), (count,) = maps
    hashed = index[:, None] * 2654435769 % 2**32
    return np.where(rows >= 0, table[rows, hashed % count[rows]], -1)


@QUICK
@given(weighted_plans(), st.sampled_from(["hash", "weighted"]), st.integers(0, 1000))
def test_an_engine_that_hashes_routes_by_the_rule(plan: Plan, rule: str, seed: int):
    """With a rank's maps, the engine's lookup is `route` from that rank."""
    plan = plan if rule == "weighted" else plan_of(plan.placement, plan.topology, "hash")
    rng = np.random.default_rng(seed)
    rank, layer = int(rng.integers(plan.topology.num_ranks)), int(rng.integers(2))
    rows, index = rng.integers(-1, plan.placement.num_experts, (20, 3)), rng.integers(0, 2**31, 20)
    found = looked_up(hashed_maps(plan, [rank], [layer]), rows, index)
    np.testing.assert_array_equal(found, route(rows, rank, plan, layer, token_index=index))


@pytest.mark.parametrize("rule", ["hash", "weighted"])
def test_ranks_that_route_the_same_token_have_the_same_maps(rule: str):
    """On one node they use its weights; spread over nodes, the weights over all sources."""
    placement = Placement(np.array([[0, 1, 2, 0, 1, 3, 0, 2]], np.int32))
    near = np.array([[1, 0, 1, 0, 1, 1, 0, 0], [0, 1, 0, 0.5, 0, 1, 0.5, 1]])[:, None]
    mean = np.array([[0.5, 0.5, 0.5, 0.25, 0.5, 1, 0.25, 0.5]])
    plan = Plan(placement, Topology(2, 2, 2), rule, mean, 0.0, near if rule == "weighted" else None)
    for owners in ([0, 1], [2, 3], [0, 1, 2, 3], [3, 0]):
        maps = [hashed_maps(plan, owners) for _ in owners]
        assert all(np.array_equal(one, maps[0][0]) for one, _ in maps)
    if rule == "weighted":
        assert set(hashed_maps(plan, [0, 1])[0][0, 0]) == {0}
        assert set(hashed_maps(plan, [2, 3])[0][0, 0]) == {3, 6}
        assert set(hashed_maps(plan, [0, 1, 2, 3])[0][0, 0]) == {0, 3, 6}


def test_nearest_is_no_map():
    placement = Placement(np.array([[0, 1, 0, 1]], np.int32))
    with pytest.raises(PluginError, match="dispatch: found nearest, expected hash, weighted or cover"):
        hashed_maps(Plan(placement, Topology(2, 2, 1), "nearest", np.full((1, 4), 0.5), 0.0), [0])


def test_under_cover_the_map_only_says_where_copies_are():
    """Cover has tables of its own; whatever else looks into the engine's map must find slots of the right expert."""
    placement = Placement(np.array([[0, 1, 0, 1]], np.int32))
    rows, counts = hashed_maps(Plan(placement, Topology(2, 2, 1), "cover", np.full((1, 4), 0.5), 0.0), [0])
    assert (rows.tolist(), counts.tolist()) == ([[[0, 2], [1, 3]]], [[2, 2]])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"width": 0}, "width"),
        ({"ranks": [4]}, "ranks"),
        ({"layers": [-2]}, "layers"),
        ({"source_weights": np.ones((1, 1, 4))}, "source_weights"),
    ],
)
def test_bad_input_is_one_line(change, word):
    placement = Placement(np.array([[0, 1, 0, 1]], np.int32))
    weights = change.pop("source_weights", None)
    plan = Plan(placement, Topology(2, 2, 1), "weighted", np.full((1, 4), 0.5), 0.0, weights)
    with pytest.raises(PluginError, match=word) as caught:
        weighted_tables(plan, **change)
    assert "\n" not in str(caught.value)
    assert "fix:" in str(caught.value)
