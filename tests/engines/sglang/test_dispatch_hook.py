"""The chooser: bit for bit what `route` says, with SGLang's own functions around it, and fit for a captured graph."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from sglang.srt.eplb import expert_location_dispatch
from sglang.srt.eplb.expert_location_dispatch import ExpertLocationDispatchInfo
from sglang.srt.layers.moe import topk

from cover_passes import CPU, Run, check_run, runs
from eplb_plugin import RoutingStatistics, Topology, plan, route
from eplb_plugin.dispatch.buffers import Counters, LayerTables
from eplb_plugin.engines.device_tables import DispatchTables
from eplb_plugin.engines.sglang.dispatch_hook import TableDispatchInfo, _choose, _init_new
from eplb_plugin.engines.sglang.state import set_adapter
from eplb_plugin.plan_types import Dispatch
from eplb_plugin.recording.recorder import Recorder
from eplb_plugin.workloads.routing import ClusteredRouter
from recorded import counters
from strategies import QUICK

EXPERTS, TOPOLOGY = 16, Topology(2, 2, 6)
ROUTER = ClusteredRouter(num_layers=2, num_experts=EXPERTS, top_k=3)
WINDOW = RoutingStatistics.from_topk(ROUTER.window(2000, 0), EXPERTS)


def theirs(topk_ids: torch.Tensor, info: ExpertLocationDispatchInfo) -> torch.Tensor:
    raise AssertionError("SGLang's chooser was asked")


def info(tables: LayerTables | torch.Tensor, counters: Counters) -> TableDispatchInfo:
    none = torch.empty(0)
    return TableDispatchInfo("dynamic", None, none, none, 24, tables=tables, counters=counters)


def mapped(ids: torch.Tensor, tables: LayerTables | torch.Tensor, counters: Counters) -> torch.Tensor:
    return _choose(theirs, ids, info(tables, counters))


@QUICK
@given(runs())
def test_ids_are_mapped_as_route_says_and_counted(run: Run) -> None:
    """Over any steps: slots bit for bit, counts exactly; padding, holes and columns of shared experts are left out."""
    check_run(run, mapped)


@pytest.mark.parametrize("rule", ["weighted", "cover"])
def test_inside_the_function_that_sglang_compiles(rule: Dispatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remap and mask of padding, whole and functionalized, as on GPUs. New tables at the old address are seen."""
    original = expert_location_dispatch._topk_ids_logical_to_physical_dynamic
    hooked = lambda topk_ids, info: _choose(original, topk_ids, info)  # noqa: E731
    monkeypatch.setattr(expert_location_dispatch, "_topk_ids_logical_to_physical_dynamic", hooked)
    function = topk._biased_grouped_topk_postprocess._torchdynamo_orig_callable
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)
    first, second = (
        plan(RoutingStatistics(load), TOPOLOGY, policy="balanced", dispatch=rule)
        for load in (WINDOW.load, WINDOW.load[:, ::-1])
    )
    tables, recorder = DispatchTables(first, [2], CPU), Recorder(2, EXPERTS, 3, 64, 8, CPU)
    addresses = [part.data_ptr() for part in (tables.rows, *(tables.cover.tensors() if tables.cover else ()))]
    assert first.digest != second.digest
    for layer, tokens, real, made in [(0, 9, 7, first), (1, 9, 9, first), (1, 30, 20, second), (0, 5, 4, second)]:
        tables.switch([0, 1], made)
        bound, ids = torch.tensor(real, dtype=torch.int32), torch.from_numpy(ROUTER.window(tokens, 1)[layer])
        own = info(tables.layer(layer), counters(recorder, layer, bound))
        expected = route(ids.numpy(), 2, made, layer)
        expected[real:] = -1
        np.testing.assert_array_equal(compiled(ids, own, bound), expected)
    assert [int(recorder.passing(layer).load[:EXPERTS].sum()) for layer in range(2)] == [3 * 11, 3 * 29]
    assert [part.data_ptr() for part in (tables.rows, *(tables.cover.tensors() if tables.cover else ()))] == addresses


def test_sglang_chooses_where_there_are_no_tables() -> None:
    """Drafts, and rules that SGLang knows itself, get what SGLang gives."""

    class Without:
        def tables_of(self, layer_id: int) -> None: ...

    set_adapter(Without())  # type: ignore[arg-type]
    try:
        plain = ExpertLocationDispatchInfo("dynamic", None, torch.zeros(EXPERTS, 2), torch.ones(EXPERTS), 24)
        assert _init_new(lambda cls, layer_id, is_draft: plain, ExpertLocationDispatchInfo, 3) is plain
        assert _init_new(lambda cls, layer_id, is_draft: None, ExpertLocationDispatchInfo, 3, is_draft=True) is None
        assert _choose(lambda topk_ids, info: "theirs", torch.zeros(1, 1), plain) == "theirs"
    finally:
        set_adapter(None)
