"""The chooser: bit for bit what `route` says, with SGLang's own functions around it, and fit for a captured graph."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sglang.srt.eplb.expert_location_dispatch import ExpertLocationDispatchInfo

from eplb_plugin import RoutingStatistics, Topology, plan, route
from eplb_plugin.engines.sglang.remap import TableDispatchInfo, _choose, _init_new, choose
from eplb_plugin.engines.sglang.state import set_adapter
from eplb_plugin.engines.tables import DispatchTables
from eplb_plugin.workloads.routing import ClusteredRouter

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


def test_traced_as_a_whole_and_filled_in_place() -> None:
    """No shape and no branch follows from the ids, and new rows at the old address are seen by what was captured."""
    tables = DispatchTables(MADE, [0], torch.device("cpu"))

    def theirs(topk_ids: torch.Tensor, info: ExpertLocationDispatchInfo) -> torch.Tensor:
        raise AssertionError("SGLang's chooser was asked")

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

    set_adapter(Without())  # type: ignore[arg-type]
    try:
        plain = info(ExpertLocationDispatchInfo, torch.zeros(EXPERTS, 2, dtype=torch.int64))
        assert _init_new(lambda cls, layer_id, is_draft: plain, ExpertLocationDispatchInfo, 3) is plain
        assert _init_new(lambda cls, layer_id, is_draft: None, ExpertLocationDispatchInfo, 3, is_draft=True) is None
        assert _choose(lambda topk_ids, info: "theirs", torch.zeros(1, 1), plain) == "theirs"
    finally:
        set_adapter(None)
