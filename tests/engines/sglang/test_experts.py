"""What of an SGLang layer moves with an expert, and what is refused. The module is SGLang's, without its kernels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE

from eplb_plugin.engines.sglang.experts import expert_layers, refuse_left_behind
from eplb_plugin.errors import PluginError

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
        refuse_left_behind(served, [3, 5], found)
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
    with pytest.raises(PluginError, match=r"FusedMoE.quant_method.g1_alphas: found \["):
        refuse_left_behind(served, [3], expert_layers(served, [3], SLOTS, None))


def test_what_sglang_alone_would_move_refused() -> None:
    """A tensor in SGLang's list that is none of the layer's."""
    served = model(experts(3), elsewhere=torch.rand(SLOTS, 7))
    with pytest.raises(PluginError, match=r"layer 3: found \[6, 7\] torch.float32 that SGLang moves, expected"):
        refuse_left_behind(served, [3], expert_layers(served, [3], SLOTS, None))
