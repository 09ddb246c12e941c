"""`count` and `choose` of every rank: together they are `route_step`, and quotas are what is served."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import Placement, Topology, route_step
from eplb_plugin.dispatch.exact.kernels import choose, count
from eplb_plugin.dispatch.exact.step import solve_counts
from eplb_plugin.dispatch.exact.tables import ExactTables, exact_maps, replicas_in
from eplb_plugin.planning.planner import plan_of
from eplb_plugin.recording.recorder import Recorder
from exact_steps import CPU, ExactStep, exact_steps, gather, layers_of
from recorded import Reference, counters
from strategies import QUICK


def uncounted(step: ExactStep):
    experts, top_k = step.plan.placement.num_experts, step.ids[0].shape[1]
    return counters(Recorder(1, experts, top_k, 64, 4, CPU), 0, enabled=False)


@QUICK
@given(exact_steps(groups=False), st.sampled_from([torch.int32, torch.int64]))
def test_all_ranks_together_are_route_step(step: ExactStep, dtype: torch.dtype):
    """Bit for bit, idle ranks and padding included; ids of no expert change nothing."""
    experts = step.plan.placement.num_experts
    layers, sources = layers_of(step), np.repeat(np.arange(len(step.ids)), [len(ids) for ids in step.ids])
    gathered, nothing = gather(step, layers, count), uncounted(step)
    expected = route_step(np.concatenate(step.ids), sources, step.plan, 0, tolerance=step.tolerance)
    given = [torch.from_numpy(np.where(ids < 0, experts + rank, ids)) for rank, ids in enumerate(step.ids)]
    found = [choose(ids.to(dtype), layer, gathered, nothing) for ids, layer in zip(given, layers, strict=True)]
    assert all(slots.dtype == dtype for slots in found)
    np.testing.assert_array_equal(torch.cat(found).numpy(), expected)


@QUICK
@given(exact_steps())
def test_owners_choose_alike_and_quotas_are_what_is_served(step: ExactStep):
    """Ranks that route the same tokens are one source; every selection reaches its expert."""
    layers = layers_of(step)
    gathered, nothing = gather(step, layers, count), uncounted(step)
    topology, replicas = step.plan.topology, replicas_in(layers[0])
    served = np.zeros(topology.num_slots, int)
    for source, ids in enumerate(step.ids):
        owners = layers[source * step.together :][: step.together]
        found = [choose(torch.from_numpy(ids), layer, gathered, nothing).numpy() for layer in owners]
        assert all(np.array_equal(slots, found[0]) for slots in found)
        assert ((found[0] < 0) == (ids < 0)).all()
        assert (step.plan.placement.phy2log[0][found[0]] == ids)[ids >= 0].all()
        served += np.bincount(found[0][ids >= 0], minlength=topology.num_slots)
    ranks, wishes = topology.num_ranks, topology.num_nodes + 1
    counts = gathered[:, :-ranks].numpy().reshape(len(gathered), -1, wishes)
    base = gathered[:, -ranks:].numpy().sum(0, dtype=np.int32)
    whole = counts[:, : len(replicas.expert)].sum(0, dtype=np.int32)
    quota = solve_counts(replicas, whole, base, layers[0].tolerance)
    assert served[replicas.slot].tolist() == quota.tolist()
    assert not counts[:, len(replicas.expert) :].any()


def test_what_is_mapped_is_recorded_like_under_any_rule():
    """Load, pairs and rows of real tokens; the engine's own count of their slots; padding is mapped alone."""
    plan = plan_of(Placement(np.arange(8, dtype=np.int32)[None] % 5), Topology(2, 2, 2), "cover")
    ids = np.argsort(np.random.default_rng(0).random((12, 5)), axis=1)[:, :2]
    ids[3] = 4, 4  # no router's row
    recorder, slot_load = Recorder(1, 5, 2, 16, 8, CPU), torch.zeros(8, dtype=torch.int32)
    layer, given = ExactTables(plan, range(4), CPU, 0.0).layer(0), torch.from_numpy(ids)
    recorder.expect([9])
    slots = choose(given, layer, count(given, layer)[None], counters(recorder, 0, 9, slot_load=slot_load))
    recorder.fold()
    assert (slots >= 0).all()
    Reference(1, 5, 2, 8, [row[None] for row in ids[:9]]).agrees_with(recorder)
    assert slot_load.tolist() == np.bincount(slots[:9].flatten(), minlength=8).tolist()


def test_refilled_tables_are_followed():
    """A graph holds the addresses: a layer that was taken before the switch maps by the new placement."""
    topology, ids = Topology(2, 1, 4), torch.arange(60).reshape(20, 3) % 6
    first, second = (
        plan_of(Placement((np.arange(8, dtype=np.int32) * turn)[None] % 6), topology, "hash") for turn in (1, 5)
    )
    tables = ExactTables(first, [0, 1], CPU, 0.0)
    layer, nothing = tables.layer(0), counters(Recorder(1, 6, 3, 64, 4, CPU), 0, enabled=False)
    for plan in (first, second, first):
        tables.put(exact_maps(plan, [0]), [0])
        slots = choose(ids, layer, count(ids, layer)[None], nothing).numpy()
        assert (plan.placement.phy2log[0][slots] == ids.numpy()).all()
        assert np.bincount(slots.ravel() // 4).tolist() == [30, 30]
