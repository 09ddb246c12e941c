"""What of an SGLang layer moves with an expert, and what is refused. The module is SGLang's, without its kernels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from sglang.srt.layers.moe import cutlass_moe_params
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig
from sglang.srt.layers.moe.moe_runner.flashinfer_cutlass import materialize_swiglu_params_for_cutlass
from sglang.srt.layers.quantization import w4afp8 as w4afp8_method
from sglang.srt.layers.quantization.compressed_tensors.schemes.compressed_tensors_w4a8_fp8_moe import (
    CompressedTensorsW4AFP8MoE,
)
from sglang.srt.layers.quantization.fp8 import Fp8MoEMethod
from sglang.srt.layers.quantization.mxfp4_flashinfer_cutlass_moe import Mxfp4FlashinferCutlassMoEMethod

from eplb_plugin.engines.sglang.expert_tensors import expert_layers, left_behind, refuse_unlisted
from eplb_plugin.errors import PluginError
from eplb_plugin.migration.unmoved import refuse_unequal_values
from processes import run_ranks

SLOTS, SHARED = 6, 2


def experts(layer: int, **tensors: torch.Tensor) -> Any:
    """Of this rank: SLOTS routed experts, then SHARED ones."""
    made = FusedMoE.__new__(FusedMoE)
    torch.nn.Module.__init__(made)
    made.layer_id, made.is_draft, made.num_local_experts = layer, False, SLOTS + SHARED
    plain = {"w13_weight": torch.rand(SLOTS + SHARED, 4, 3), "w2_weight_scale": torch.rand(SLOTS + SHARED, 2)}
    for name, tensor in (plain | tensors).items():
        made.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=False))
    return made


def model(*layers: Any, **moved: torch.Tensor) -> Any:
    """moved: what SGLang's updater would move beside the layers' weights."""
    made = torch.nn.Sequential(*layers)
    made.routed_experts_weights_of_layer = {
        one.layer_id: [one.w13_weight.data[:SLOTS], *moved.values()] for one in layers
    }
    return made


def test_routed_experts_move_and_nothing_else() -> None:
    """Weights and scales without the slots of shared experts; not what all experts share, nor another layer."""
    layer = experts(3, w2_input_scale=torch.ones(1).expand(SLOTS + SHARED), correction_bias=torch.rand(40))
    whole = torch.nn.Parameter(torch.rand(40), requires_grad=False)
    whole._sglang_require_global_experts = True
    layer.register_parameter("w13_input_scale", whole)
    canaries = torch.arange(2 * SLOTS).reshape(2, SLOTS)
    served = model(layer, experts(5), experts(9))
    for found in (expert_layers(served, [3, 5], SLOTS, None), expert_layers(served, [3, 5], SLOTS, canaries)):
        assert set(left_behind(served, [3, 5], found)) == {"layer 3", "layer 5"}
        assert [one.num_slots for one in found] == [SLOTS, SLOTS]
        assert found[0].matrices[0].data_ptr() == layer.w13_weight.data_ptr()
        assert found[0].matrices[1].data_ptr() == layer.w2_weight_scale.data_ptr()
    assert [len(one.matrices) for one in found] == [3, 3]
    assert found[1].matrices[2].data_ptr() == canaries[1].data_ptr()


@pytest.mark.parametrize(
    ("layer", "line"),
    [
        (experts(3, w2_zeros=torch.rand(5, 4)), r"layer 3: w2_zeros: found \[5, 4\]"),
        (experts(4), "layer 3: found no FusedMoE"),
    ],
)
def test_what_is_not_understood_refused(layer: Any, line: str) -> None:
    """By layer and name."""
    with pytest.raises(PluginError, match=line):
        expert_layers(model(layer), [3], SLOTS, None)


@pytest.mark.parametrize("rows", [SLOTS, SLOTS + SHARED])
def test_what_a_kernel_keeps_beside_the_parameters_refused(rows: int) -> None:
    """It would go on describing the experts that were there before."""
    layer = experts(3)
    layer.quant_method = SimpleNamespace(g1_alphas=torch.rand(rows))
    served = model(layer)
    with pytest.raises(PluginError, match=r"layer 3: FusedMoE.quant_method.g1_alphas: found \["):
        left_behind(served, [3], expert_layers(served, [3], SLOTS, None))


def test_what_sglang_alone_would_move_refused() -> None:
    """A tensor in SGLang's list that is none of the layer's."""
    served = model(experts(3), elsewhere=torch.rand(SLOTS, 7))
    with pytest.raises(PluginError, match=r"layer 3: found \[6, 7\] torch.float32 that SGLang moves, expected"):
        refuse_unlisted(served, [3], expert_layers(served, [3], SLOTS, None))
    unlisted = torch.nn.Sequential(experts(3))  # of a model that SGLang's own EPLB cannot serve
    refuse_unlisted(unlisted, [3], expert_layers(unlisted, [3], SLOTS, None))


SIZES = (SLOTS + SHARED, 256, 128, torch.bfloat16)  # experts, hidden and intermediate size, and type of activations


def w4afp8(scale: float = 1.0) -> Any:
    """DeepSeek in W4AFP8, loaded. scale: of the activations of this rank's first expert; the others' are half of it."""
    layer = experts(3)
    layer.quant_method = w4afp8_method.W4AFp8MoEMethod(w4afp8_method.W4AFp8Config(group_size=128))
    for name in ("w13_weight", "w2_weight_scale"):
        delattr(layer, name)
    layer.quant_method.create_weights(layer, *SIZES, weight_loader=None)
    for name, parameter in layer.named_parameters():
        if name.endswith("input_scale"):
            parameter.fill_(scale / 2)[0] = scale
        elif parameter.is_floating_point():
            parameter.uniform_()
    layer.quant_method.process_weights_after_loading(layer)
    return layer


def cutlass_fp8() -> Any:
    layer = experts(3)
    layer.quant_method = Fp8MoEMethod.__new__(Fp8MoEMethod)
    layer.intermediate_size_per_partition, layer.moe_runner_config = 8, SimpleNamespace(is_gated=True)
    layer.w2_weight = torch.nn.Parameter(torch.rand(SLOTS + SHARED, 3, 8), requires_grad=False)
    layer.quant_method._ensure_cutlass_buffers_initialized(layer)
    return layer


def compressed_tensors_w4a8() -> Any:
    layer = experts(3)
    layer.scheme = CompressedTensorsW4AFP8MoE.__new__(CompressedTensorsW4AFP8MoE)
    layer.scheme._init_cutlass_buffers(*SIZES[:3], "cpu")
    return layer


def cutlass_fp4() -> Any:
    layer = experts(3)
    kind = cutlass_moe_params.CutlassMoEType.BlockscaledFP4
    layer.cutlass_moe_params = cutlass_moe_params.CutlassMoEParams(kind, "cpu", SLOTS + SHARED, 128, 256)
    return layer


def flashinfer_cutlass_limits() -> Any:
    layer = experts(3)
    config = MoeRunnerConfig(gemm1_alpha=1.702, gemm1_clamp_limit=7.0)
    layer._cutlass_swiglu_params = materialize_swiglu_params_for_cutlass(config, SLOTS + SHARED, "cpu")
    return layer


def flashinfer_mxfp4() -> Any:
    layer = experts(3)
    method = layer.quant_method = Mxfp4FlashinferCutlassMoEMethod.__new__(Mxfp4FlashinferCutlassMoEMethod)
    method._use_mxfp8_act_scaling = True
    method.create_moe_runner(layer, MoeRunnerConfig(swiglu_limit=7.0))
    return layer


@pytest.mark.parametrize(
    ("make", "kept"),
    [(w4afp8, 4), (cutlass_fp8, 4), (compressed_tensors_w4a8, 4), (cutlass_fp4, 4), (flashinfer_cutlass_limits, 3),
     (flashinfer_mxfp4, 2)],
)  # fmt: skip
def test_kernels_that_keep_the_same_for_every_expert_are_served(make: Any, kept: int) -> None:
    """SGLang's own: strides and limits are compared over ranks, and refused if one entry differs; what is written in
    every call is not looked at, whatever is in it.
    """
    layer = make()
    layer.dispatcher = SimpleNamespace(moe_a2a=SimpleNamespace(workspace=torch.rand(SLOTS, 9)))  # as FlashInfer's
    for owner in (layer.dispatcher, vars(layer).get("quant_method"), vars(layer).get("scheme")):
        for name, tensor in list(vars(owner).items() if owner else ()):
            if name.endswith(("ptr", "ptrs")) or name.startswith(("problem_sizes", "expert_offsets")):
                tensor.random_()
    served = model(layer)
    rows = expert_layers(served, [3], SLOTS, None)
    values = left_behind(served, [3], rows)["layer 3"].values
    beside = {path: value for path, value in values.items() if path.startswith("FusedMoE.")}
    assert len(beside) == kept
    for path, value in beside.items():
        before = value.clone()
        value += 1  # in the memory of the kernel's first entry
        with pytest.raises(PluginError) as caught:
            left_behind(served, [3], rows)
        assert str(caught.value).startswith(f"layer 3: {path}: found [8")
        value.copy_(before)


def scales_of_one_rank(equal: bool) -> tuple[list[float], list[float], bool]:
    """Of W4AFP8 on this rank: the scales that its own experts gave, and those that serve; whether it is one memory."""
    rank = dist.get_rank()
    layer = w4afp8(2.0 if equal else 2.0 + rank)
    parameters = [layer.w13_input_scale, layer.w2_input_scale]
    before, places = [float(one) for one in parameters], [one.data_ptr() for one in parameters]
    served = model(layer)
    rows = expert_layers(served, [3], SLOTS, None)
    refuse_unequal_values(lambda: left_behind(served, [3], rows), dist.group.WORLD)
    after = [layer.w13_input_scale, layer.w2_input_scale]
    return before, [float(one) for one in after], places == [one.data_ptr() for one in after]


@pytest.mark.parametrize("equal", [True, False])
def test_the_largest_scale_of_activations_serves_on_every_rank(equal: bool) -> None:
    """SGLang's W4AFP8 takes it over a rank's own experts: one that moved to a smaller would be clipped."""
    own = [2.0, 2.0] if equal else [2.0, 3.0]
    found = run_ranks(2, scales_of_one_rank, equal, timeout=200)
    assert found == [([one] * 2, [max(own)] * 2, True) for one in own]
