"""Which ranks route the same tokens, by vLLM's own parallel configuration, and which layers are refused."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.model_executor.layers.fused_moe import config as moe_config
from vllm.model_executor.layers.fused_moe.config import FusedMoEParallelConfig
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

from eplb_plugin.engines.vllm.layers import inspect_layers, owner_group_size
from eplb_plugin.errors import PluginError


def parallel_configs(
    tp: int, dp: int, sequence_parallel: bool, pcp: int = 1, expert_parallel: bool = True
) -> list[tuple[tuple[int, int, int], FusedMoEParallelConfig]]:
    """((dp, pcp, tp) rank, the configuration that vLLM makes there) of every rank, in EP order."""
    engine = SimpleNamespace(
        enable_expert_parallel=expert_parallel, all2all_backend="allgather_reducescatter", enable_eplb=True
    )
    made = []
    for place in product(range(dp), range(pcp), range(tp)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(moe_config, "get_dp_group", lambda rank=place[0]: SimpleNamespace(rank_in_group=rank))
            patch.setattr(moe_config, "get_pcp_group", lambda rank=place[1]: SimpleNamespace(rank_in_group=rank))
            patch.setattr(moe_config, "get_tensor_model_parallel_rank", lambda rank=place[2]: rank)
            made.append((place, FusedMoEParallelConfig.make(tp, pcp, dp, tp if sequence_parallel else 1, engine)))
    return made


@pytest.mark.parametrize(
    ("tp", "dp", "sequence_parallel", "expected"),
    [
        (4, 1, False, 4),  # every rank routes the whole batch
        (4, 1, True, 1),  # every rank routes its own part of it
        (1, 4, False, 1),  # every rank has its own batch
        (2, 2, False, 2),  # GLM-4-MoE, Mixtral: a TP group routes its batch twice
        (2, 2, True, 1),  # Qwen3-MoE, DeepSeek: each rank of it routes half
        (4, 2, False, 4),
        (1, 1, False, 1),
    ],
)
def test_owner_group_size(tp: int, dp: int, sequence_parallel: bool, expected: int) -> None:
    """The size of a token-owner group under TP, DP and both, with and without sequence parallelism."""
    for _, parallel in parallel_configs(tp, dp, sequence_parallel):
        assert owner_group_size(parallel, tp) == expected


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize(("tp", "dp", "pcp"), [*product((1, 2, 4), (1, 2), (1, 2))])
def test_owner_groups_are_consecutive_ranks(tp: int, dp: int, pcp: int, sequence_parallel: bool) -> None:
    """Two EP ranks are in one group of that size, counted from rank 0, if and only if they route the same tokens."""
    tokens = {}
    for (dp_rank, pcp_rank, tp_rank), parallel in parallel_configs(tp, dp, sequence_parallel and tp > 1, pcp):
        part = tp_rank if parallel.is_sequence_parallel else None
        tokens[parallel.ep_rank] = (dp_rank, pcp_rank, part), owner_group_size(parallel, tp)
    if dp * pcp * tp == 1:
        return
    assert sorted(tokens) == list(range(tp * dp * pcp))
    for one, other in product(tokens, tokens):
        (first, size), (second, _) = tokens[one], tokens[other]
        assert (one // size == other // size) == (first == second)


class Router(BaseRouter):
    routing_method_type = None

    def _compute_routing(self, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotImplementedError


def layer(parallel: FusedMoEParallelConfig, layer_id: int = 0, top_k: int = 2, **changes: Any) -> MoERunner:
    """A MoERunner that was never set up: what the plugin reads of it is given, as attributes of its class."""
    router = Router(top_k, 8, SimpleNamespace())
    values = {
        "layer_id": layer_id,
        "layer_name": f"model.layers.{layer_id}.mlp.experts",
        "router": router,
        "moe_config": SimpleNamespace(moe_parallel_config=parallel),
        "routed_experts": SimpleNamespace(quant_method=SimpleNamespace()),
        "is_monolithic": False,
        "do_naive_dispatch_combine": False,
    }
    runner = type("Runner", (MoERunner,), {**values, **changes})
    return runner.__new__(runner)


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_layers_as_they_are(sequence_parallel: bool) -> None:
    """Numbers, routers, top-k and groups come from the layers; the chunk is the rank's in its TP group."""
    for (_, _, tp_rank), parallel in parallel_configs(2, 2, sequence_parallel):
        layers = [layer(parallel, number, top_k=3) for number in (3, 4, 6)]
        found = inspect_layers(SimpleNamespace(moe_layers=layers), 2)
        assert found.layer_ids == [3, 4, 6]
        assert found.states == [one.router.eplb_state for one in layers]
        assert (found.top_k, found.owner_group_size) == (3, 1 if sequence_parallel else 2)
        assert found.chunk == (tp_rank if sequence_parallel else 0)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"router": SimpleNamespace()}, "found router SimpleNamespace, expected vLLM's BaseRouter"),
        ({"router": Router(2, 8, None)}, "found a router without EPLB state"),
        ({"is_monolithic": True}, "a kernel that routes inside, expected routing by the router"),
        ({"do_naive_dispatch_combine": True}, "routing after the gather, expected routing of own tokens"),
    ],
)
def test_layer_that_cannot_be_seen_refused(changes: dict[str, Any], found: str) -> None:
    """A layer whose routing the plugin would miss or misattribute is refused by its name."""
    (_, parallel), *_ = parallel_configs(2, 1, False)
    layers = [layer(parallel), layer(parallel, 5, **changes)]
    with pytest.raises(PluginError) as caught:
        inspect_layers(SimpleNamespace(moe_layers=layers), 2)
    message = str(caught.value)
    assert message.startswith("model.layers.5.mlp.experts: ")
    assert found in message
    assert message.endswith("; fix: use vLLM's own EPLB for this model: remove the plugin's settings")


def test_a_layer_of_another_kind_is_refused() -> None:
    """Layers that map ids in a way of their own would go unseen."""
    with pytest.raises(PluginError, match=r"MoE layer: found SimpleNamespace, expected vLLM's MoERunner; fix: use"):
        inspect_layers(SimpleNamespace(moe_layers=[SimpleNamespace(layer_name="other")]), 2)


def test_layers_that_differ_refused() -> None:
    """One buffer serves all layers: they must agree on top-k and on who routes which token."""
    (_, plain), *_ = parallel_configs(2, 2, False)
    (_, split), *_ = parallel_configs(2, 2, True)
    with pytest.raises(PluginError, match=r"top-k: found \[2, 4\], expected one value for all layers"):
        inspect_layers(SimpleNamespace(moe_layers=[layer(plain), layer(plain, 1, top_k=4)]), 2)
    with pytest.raises(PluginError, match=r"token-owner group sizes: found \[1, 2\]"):
        inspect_layers(SimpleNamespace(moe_layers=[layer(plain), layer(split, 1)]), 2)
