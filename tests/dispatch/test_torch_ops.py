"""The operator that compilers see: what it declares is what it does."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from cover_passes import CPU
from eplb_plugin import Placement, Plan, PluginError, Topology, route
from eplb_plugin.dispatch import kernels
from eplb_plugin.dispatch.buffers import Counters
from eplb_plugin.dispatch.kernels import CoverTables
from eplb_plugin.dispatch.rules import replica_weights
from eplb_plugin.dispatch.torch_ops import Chooser, choose, cover, key_of, look_up, record
from eplb_plugin.engines.device_tables import DispatchTables
from eplb_plugin.recording.recorder import Recorder
from recorded import counters as passed

EXPERTS, TOP_K, TOKENS, LAYERS = 6, 3, 8, 6
ROWS = np.array([[3, 4, 0, 1, 0, 1, 2, 5], [0, 1, 2, 3, 4, 5, 0, 2]], np.int32)
EVEN = np.full((LAYERS, 8), 3, np.int32)
PLAN = Plan(Placement(np.tile(ROWS, (3, 1))), Topology(4, 1, 2), "cover", np.ones(EVEN.shape), 0.0, cover_weights=EVEN)
SHARES = replica_weights(PLAN.placement, PLAN.topology, "weighted")
WEIGHTED = replace(PLAN, dispatch="weighted", cover_weights=None, replica_weights=SHARES)


def counters(recorder: Recorder, layer: int = 0) -> Counters:
    return passed(recorder, layer, TOKENS - 2, slot_load=torch.zeros(8, dtype=torch.int32))


def recorder() -> Recorder:
    return Recorder(LAYERS, EXPERTS, TOP_K, TOKENS, 4, CPU)


def ids(seed: int, tokens: int = TOKENS) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((tokens, EXPERTS)).argsort(1)[:, :TOP_K])


@pytest.mark.parametrize("name", ["cover", "look_up", "record"])
def test_its_schema_tells_what_it_writes(name: str) -> None:
    """torch's own check: nothing else is mutated, nothing returned is aliased, shapes are as announced."""
    tables = {
        "cover": CoverTables(PLAN, [1], CPU).layer(0),
        "look_up": [DispatchTables(WEIGHTED, [1], CPU).rows[0]],
        "record": [torch.from_numpy(ROWS[0])],
    }
    torch.library.opcheck(getattr(torch.ops.eplb_plugin, name).default, (ids(0), *tables[name], *counters(recorder())))


def test_compiled_whole_it_maps_and_counts_as_ever() -> None:
    """In few graphs for all layers and batch sizes, functionalized on the way: counts land at the old addresses."""
    tables, plain, traced = CoverTables(PLAN, [1], CPU), recorder(), recorder()
    addresses = [part.data_ptr() for part in traced.passing(1)]
    counting = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(cover, backend=counting, fullgraph=True, dynamic=True)
    with torch.inference_mode():
        for seed, (layer, tokens) in enumerate(product(range(LAYERS), (19, 11, 3))):
            rows = ids(seed, tokens)
            slots = compiled(rows, tables.layer(layer), counters(traced, layer))
            np.testing.assert_array_equal(slots, route(rows.numpy(), 1, PLAN, layer))
            cover(rows, tables.layer(layer), counters(plain, layer))
    assert counting.frame_count <= 3  # the first and the second layer lie at offsets that are sizes, too
    assert plain.passing(1).pairs.any()
    for layer in range(LAYERS):
        assert all(map(torch.equal, plain.passing(layer), traced.passing(layer)))
    assert [part.data_ptr() for part in traced.passing(1)] == addresses


def test_what_chooses_on_the_host_is_not_traced() -> None:
    """It branches on sizes and counts; two graphs serve all layers, each of which is known by its key."""
    tables, plain, traced = CoverTables(PLAN, [1], CPU), recorder(), recorder()

    def chooser(layer: int) -> Chooser:
        def run(rows: torch.Tensor, passed: Counters) -> torch.Tensor:
            return kernels.cover(rows if len(rows) > 10 else rows.flip(0).contiguous(), tables.layer(layer), passed)

        return run

    keys = [key_of(chooser(layer), CPU) for layer in range(LAYERS)]
    counting = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(choose, backend=counting, fullgraph=True, dynamic=True)
    with torch.inference_mode():
        for seed, (layer, tokens) in enumerate(product(range(LAYERS), (19, 11, 3))):
            rows = ids(seed, tokens)
            expected = route(rows.numpy() if tokens > 10 else rows.numpy()[::-1], 1, PLAN, layer)
            np.testing.assert_array_equal(compiled(rows, keys[layer], counters(traced, layer)), expected)
            chooser(layer)(rows, counters(plain, layer))
    assert counting.frame_count <= 3
    for layer in range(LAYERS):
        assert all(map(torch.equal, plain.passing(layer), traced.passing(layer)))


def test_rows_of_another_length_are_refused() -> None:
    """They would be counted beyond the end of the buffer."""
    narrow, refused = ids(0)[:, :2], "experts per token: found 2, expected 3; fix: serve without the plugin"
    with pytest.raises(PluginError, match=refused):
        cover(narrow, CoverTables(PLAN, [1], CPU).layer(0), counters(recorder()))
    with pytest.raises(PluginError, match=refused):
        look_up(narrow, DispatchTables(WEIGHTED, [1], CPU).rows[0], counters(recorder()))
    with pytest.raises(PluginError, match=refused):
        choose(narrow, key_of(lambda rows, passed: rows, CPU), counters(recorder()))
    with pytest.raises(PluginError, match=refused):
        record(narrow, counters(recorder()), torch.from_numpy(ROWS[0]))
