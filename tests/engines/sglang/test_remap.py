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
from eplb_plugin.dispatch.kernels import Counters, CoverTables, LayerTables
from eplb_plugin.engines.sglang.remap import CoverDispatchInfo, TableDispatchInfo, _choose, _init_new, choose
from eplb_plugin.engines.sglang.state import set_adapter
from eplb_plugin.engines.tables import DispatchTables
from eplb_plugin.recording.recorder import Recorder
from eplb_plugin.workloads.routing import ClusteredRouter
from strategies import QUICK

EXPERTS, TOPOLOGY = 16, Topology(2, 2, 6)
ROUTER = ClusteredRouter(num_layers=2, num_experts=EXPERTS, top_k=3)
WINDOW = RoutingStatistics.from_topk(ROUTER.window(2000, 0), EXPERTS)
MADE = plan(WINDOW, TOPOLOGY, policy="balanced", dispatch="weighted")


def info(kind: type[ExpertLocationDispatchInfo], rows: torch.Tensor) -> ExpertLocationDispatchInfo:
    return kind("dynamic", None, rows, torch.full((EXPERTS,), rows.shape[1]), 24)


@pytest.mark.parametrize("tokens", [0, 1, 8, 64])
@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_equal_to_route(tokens: int, rank: int, dtype: torch.dtype) -> None:
    """Also for batches of a few tokens, in both of the types that SGLang's routers give; padding stays nobody."""
    tables = DispatchTables(MADE, [rank], torch.device("cpu"))
    ids = ROUTER.window(max(tokens, 1), 1)[:, :tokens].astype(np.int64)
    ids[:, tokens // 2 :: 7] = -1
    for layer in range(2):
        found = choose(torch.from_numpy(ids[layer]).to(dtype), tables.rows[layer])
        assert found.dtype == dtype
        np.testing.assert_array_equal(found.numpy(), route(ids[layer], rank, MADE, layer))


def test_one_expert_per_row() -> None:
    """SGLang's choosers also take a flat list of ids, one per token."""
    rows = DispatchTables(MADE, [1], torch.device("cpu")).rows[0]
    ids = torch.arange(40) % EXPERTS
    assert torch.equal(choose(ids, rows), choose(ids[:, None], rows)[:, 0])


def theirs(topk_ids: torch.Tensor, info: ExpertLocationDispatchInfo) -> torch.Tensor:
    raise AssertionError("SGLang's chooser was asked")


def covered(ids: torch.Tensor, tables: LayerTables, counters: Counters) -> torch.Tensor:
    none = torch.empty(0)
    return _choose(theirs, ids, CoverDispatchInfo("dynamic", None, none, none, 24, tables=tables, counters=counters))


@QUICK
@given(runs())
def test_cover_is_route_and_records_as_torch_does(run: Run) -> None:
    """Over any steps: slots bit for bit, counts exactly; padding, holes and columns of shared experts are left out."""
    check_run(run, covered)


def test_cover_inside_the_function_that_sglang_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remap and mask of padding, whole and functionalized, as on GPUs."""
    original = expert_location_dispatch._topk_ids_logical_to_physical_dynamic
    hooked = lambda topk_ids, info: _choose(original, topk_ids, info)  # noqa: E731
    monkeypatch.setattr(expert_location_dispatch, "_topk_ids_logical_to_physical_dynamic", hooked)
    function = topk._biased_grouped_topk_postprocess._torchdynamo_orig_callable
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)
    covering = plan(WINDOW, TOPOLOGY, policy="balanced", dispatch="cover")
    tables, recorder = CoverTables(covering, [2], CPU), Recorder(2, EXPERTS, 3, 64, 8, CPU, by_kernel=True)
    none, unread = torch.empty(0), torch.zeros(24, dtype=torch.int32)
    for layer, tokens, real in [(0, 9, 7), (1, 9, 9), (1, 30, 20), (0, 5, 4)]:
        bound, ids = torch.tensor(real, dtype=torch.int32), torch.from_numpy(ROUTER.window(tokens, 1)[layer])
        counters = Counters(*recorder.passing(layer), unread, torch.tensor(True), bound, 0)
        own = CoverDispatchInfo("dynamic", None, none, none, 24, tables=tables.layer(layer), counters=counters)
        expected = route(ids.numpy(), 2, covering, layer)
        expected[real:] = -1
        np.testing.assert_array_equal(compiled(ids, own, bound), expected)
    assert [int(recorder.passing(layer).load.sum()) for layer in range(2)] == [3 * 11, 3 * 29]


def test_traced_as_a_whole_and_filled_in_place() -> None:
    """No shape and no branch follows from the ids, and new rows at the old address are seen by what was captured."""
    tables = DispatchTables(MADE, [0], torch.device("cpu"))

    def mapped(topk_ids: torch.Tensor, info: ExpertLocationDispatchInfo) -> torch.Tensor:
        return _choose(theirs, topk_ids, info)

    captured = torch.compile(mapped, backend="eager", fullgraph=True, dynamic=True)
    ids = torch.from_numpy(ROUTER.window(9, 1)[0])
    given = info(TableDispatchInfo, tables.rows[0])
    assert torch.equal(captured(ids, given), choose(ids, tables.rows[0]))
    before, address = captured(ids, given), tables.rows.data_ptr()
    other = plan(RoutingStatistics(WINDOW.load[:, ::-1]), TOPOLOGY, policy="balanced", dispatch="weighted")
    tables.switch([0, 1], other)
    assert tables.rows.data_ptr() == address
    np.testing.assert_array_equal(captured(ids, given).numpy(), route(ids.numpy(), 0, other, 0))
    assert not torch.equal(before, captured(ids, given))


def test_sglang_chooses_where_there_are_no_tables() -> None:
    """Drafts, and rules that SGLang knows itself, get what SGLang gives."""

    class Without:
        def rows_of(self, layer_id: int) -> None: ...
        def cover_of(self, layer_id: int) -> None: ...

    set_adapter(Without())  # type: ignore[arg-type]
    try:
        plain = info(ExpertLocationDispatchInfo, torch.zeros(EXPERTS, 2, dtype=torch.int64))
        assert _init_new(lambda cls, layer_id, is_draft: plain, ExpertLocationDispatchInfo, 3) is plain
        assert _init_new(lambda cls, layer_id, is_draft: None, ExpertLocationDispatchInfo, 3, is_draft=True) is None
        assert _choose(lambda topk_ids, info: "theirs", torch.zeros(1, 1), plain) == "theirs"
    finally:
        set_adapter(None)
