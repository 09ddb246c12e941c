"""Which ranks route the same tokens, by vLLM's own parallel configuration, and which layers are refused."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.model_executor.layers.fused_moe import config as moe_config
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig, FusedMoEParallelConfig, RoutingMethodType
from vllm.model_executor.layers.fused_moe.experts import cutlass_moe as cutlass
from vllm.model_executor.layers.fused_moe.experts.flashinfer_cutlass_moe import FlashInferExperts
from vllm.model_executor.layers.fused_moe.modular_kernel import FusedMoEKernel
from vllm.model_executor.layers.fused_moe.oracle.fp8 import Fp8MoeBackend, make_fp8_moe_quant_config
from vllm.model_executor.layers.fused_moe.oracle.nvfp4 import NvFp4MoeBackend, make_nvfp4_moe_quant_config
from vllm.model_executor.layers.fused_moe.prepare_finalize.no_dp_ep import MoEPrepareAndFinalizeNoDPEPModular
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

from eplb_plugin.engines.vllm.moe_layers import inspect_layers, left_behind, movable, owner_group_size
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


SLOTS = 9


def config() -> FusedMoEConfig:
    """One rank's 9 of 72 slots."""
    parallel = FusedMoEParallelConfig(
        tp_size=1, pcp_size=1, dp_size=8, ep_size=8, tp_rank=0, pcp_rank=0, dp_rank=2, ep_rank=2, sp_size=1,
        use_ep=True, all2all_backend="deepep_low_latency", enable_eplb=True,
    )  # fmt: skip
    return FusedMoEConfig(
        num_experts=8 * SLOTS, experts_per_token=8, hidden_dim=32, intermediate_size=16, num_local_experts=SLOTS,
        num_logical_experts=64, activation=MoEActivation.SILU, device="cpu", routing_method=RoutingMethodType.Default,
        moe_parallel_config=parallel, in_dtype=torch.bfloat16,
    )  # fmt: skip


def parameters(*more: str) -> dict[str, torch.Tensor]:
    """Of one rank's experts, all entries different."""
    names = ("w13_weight", "w2_weight", "w13_weight_scale", "w2_weight_scale", *more)
    return {name: torch.rand(SLOTS, 3) if name.endswith("weight") else torch.rand(SLOTS) for name in names}


def fp8() -> Any:
    made = parameters()
    return made, moe_config.fp8_w8a8_moe_quant_config(made["w13_weight_scale"], made["w2_weight_scale"])


def cutlass_fp8() -> Any:
    made, quant = fp8()
    return made, cutlass.CutlassExpertsFp8(config(), quant)


def cutlass_batched_fp8() -> Any:
    made, quant = fp8()
    return made, cutlass.CutlassBatchedExpertsFp8(config(), quant, max_num_tokens=4, num_dispatchers=8)


def cutlass_w4a8() -> Any:
    """b_strides: as CUTLASS answers them when it encodes the weights."""
    made = parameters("w13_weight_chan_scale", "w2_weight_chan_scale")
    quant = moe_config.int4_w4afp8_moe_quant_config(
        made["w13_weight_scale"], made["w2_weight_scale"], made["w13_weight_chan_scale"], made["w2_weight_chan_scale"]
    )
    strides = [torch.full((SLOTS, 2), value) for value in (32, 16)]
    return made, cutlass.CutlassExpertsW4A8Fp8(config(), quant, *strides, group_size=128)


def nvfp4(backend: NvFp4MoeBackend, kind: type, per_expert: bool = False) -> Any:
    """per_expert: scales of activations, which vLLM makes one for all where the kernel has only one."""
    made = parameters("w13_weight_scale_2", "w2_weight_scale_2")
    scales = [torch.rand(SLOTS) if per_expert else torch.rand(1).repeat(SLOTS) for _ in range(2)]
    quant = make_nvfp4_moe_quant_config(
        backend, made["w13_weight_scale"], made["w2_weight_scale"], made["w13_weight_scale_2"],
        made["w2_weight_scale_2"], *scales,
    )  # fmt: skip
    kernel = kind(config(), quant)
    made |= {"w13_input_scale": scales[0][:1].expand(SLOTS), "w2_input_scale": scales[1][:1].expand(SLOTS)}
    return made, kernel


def flashinfer_nvfp4() -> Any:
    return nvfp4(NvFp4MoeBackend.FLASHINFER_CUTLASS, FlashInferExperts)


def flashinfer_mxfp4_limits() -> Any:
    """gpt-oss on Hopper."""
    made = parameters("w13_bias", "w2_bias")
    quant = moe_config.mxfp4_mxfp8_moe_quant_config(
        made["w13_weight_scale"], made["w2_weight_scale"], gemm1_alpha=1.702, gemm1_beta=1.0, gemm1_clamp_limit=7.0
    )
    return made, FlashInferExperts(config(), quant)


def served(made: dict[str, torch.Tensor], kernel: Any) -> Any:
    """A layer with these parameters and this kernel, where vLLM keeps it."""
    experts = torch.nn.Module()
    for name, tensor in made.items():
        experts.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=False))
    experts.local_num_experts = SLOTS
    whole = FusedMoEKernel.__new__(FusedMoEKernel)  # its own checks ask for the GPU's kernels
    all_to_all = MoEPrepareAndFinalizeNoDPEPModular()
    all_to_all.workspace = torch.rand(SLOTS, 4)  # as FlashInfer's: an entry per rank
    whole.impl = SimpleNamespace(prepare_finalize=all_to_all, fused_experts=kernel)
    experts.quant_method = SimpleNamespace(moe_kernel=whole, moe_quant_config=kernel.quant_config)
    (_, parallel), *_ = parallel_configs(2, 1, False)
    return layer(parallel, 5, routed_experts=experts)


@pytest.mark.parametrize(
    ("kernel", "kept"),
    [
        (cutlass_fp8, 3),
        (cutlass_batched_fp8, 3),
        (cutlass_w4a8, 7),
        (flashinfer_nvfp4, 2),
        (flashinfer_mxfp4_limits, 4),
    ],
)
def test_kernels_that_keep_the_same_for_every_expert_are_served(kernel: Any, kept: int) -> None:
    """vLLM's own: strides, limits, one scale for all: compared over ranks, and refused if one entry differs."""
    made, experts = kernel()
    one = served(made, experts)
    values = left_behind([one])["model.layers.5.mlp.experts"].values
    shared = {name for name in made if name.endswith("input_scale")}
    assert len(movable(one).matrices) == len(made) - len(shared)
    beside = {path: value for path, value in values.items() if path not in shared}
    assert set(values) == {*beside, *shared}
    assert len(beside) == kept
    for path, value in beside.items():
        before = value.clone()
        value += 1  # in the memory of the kernel's first entry
        with pytest.raises(PluginError) as caught:
            left_behind([one])
        assert str(caught.value).startswith(f"model.layers.5.mlp.experts: {path}: found [9")
        value.copy_(before)


def test_scales_of_single_experts_beside_the_parameters_are_refused() -> None:
    """FP8 with scales of activations folded into alphas, and NVFP4 on vLLM's CUTLASS: they stay with the slot."""
    made = parameters()
    scales = torch.tensor(0.5), torch.tensor(0.25)
    quant = make_fp8_moe_quant_config(
        Fp8MoeBackend.FLASHINFER_CUTLASS, made["w13_weight_scale"], made["w2_weight_scale"], *scales
    )
    kernel = FlashInferExperts(config(), quant)
    with pytest.raises(PluginError, match=r"found \[9\] torch.float32, expected a parameter, or entries that are all"):
        left_behind([served(made, kernel)])
    made, kernel = nvfp4(NvFp4MoeBackend.VLLM_CUTLASS, cutlass.CutlassExpertsFp4, per_expert=True)
    with pytest.raises(PluginError, match=r"alpha_or_gscale: found \[9\] torch.float32"):
        left_behind([served(made, kernel)])
