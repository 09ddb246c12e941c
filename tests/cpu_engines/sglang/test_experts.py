"""The local experts' share of an MoE layer against plain matrix products, through SGLang's own function."""

from types import SimpleNamespace

import pytest
import torch
from eplb_cpu_engines.sglang.experts import _only_local_experts
from sglang.srt.layers.moe.fused_moe_native import moe_forward_native
from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig
from sglang.srt.layers.moe.topk import StandardTopKOutput

EXPERTS, HIDDEN, INTERMEDIATE, TOKENS, K = 8, 16, 8, 17, 3
CONFIG = MoeRunnerConfig(activation="silu")


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return SimpleNamespace(
        x=torch.randn(TOKENS, HIDDEN),
        w13=torch.randn(EXPERTS, 2 * INTERMEDIATE, HIDDEN) / HIDDEN**0.5,
        w2=torch.randn(EXPERTS, HIDDEN, INTERMEDIATE) / INTERMEDIATE**0.5,
        weights=torch.rand(TOKENS, K),
        ids=torch.stack([torch.randperm(EXPERTS)[:K] for _ in range(TOKENS)]).int(),
    )


def share(layer, rows: list[int]) -> torch.Tensor:
    """What the rank that holds the experts `rows` adds to each token."""
    local = torch.full((EXPERTS,), -1, dtype=torch.int32)
    local[rows] = torch.arange(len(rows), dtype=torch.int32)
    ids = torch.where(layer.ids < 0, -1, local[layer.ids.clamp(min=0)])
    rank = SimpleNamespace(num_experts=EXPERTS, w13_weight=layer.w13[rows], w2_weight=layer.w2[rows])
    topk = StandardTopKOutput(layer.weights, ids, None)
    return _only_local_experts(moe_forward_native)(rank, layer.x, topk, CONFIG)


def plain(layer, rows: list[int]) -> torch.Tensor:
    output = torch.zeros_like(layer.x)
    for token in range(TOKENS):
        for weight, expert in zip(layer.weights[token], layer.ids[token].tolist(), strict=True):
            if expert in rows:
                gate, up = (layer.w13[expert] @ layer.x[token]).chunk(2)
                output[token] += weight * (layer.w2[expert] @ (torch.nn.functional.silu(gate) * up))
    return output


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [7, 2], [5], list(range(EXPERTS))])
def test_only_local_experts_in_any_order(layer, rows):
    torch.testing.assert_close(share(layer, rows), plain(layer, rows))


def test_no_local_expert_gives_zeros(layer):
    layer.ids.clamp_(max=3)
    assert not share(layer, [6, 7]).any()


def test_absent_choices_are_left_out(layer):
    layer.ids[::2, 1] = -1
    torch.testing.assert_close(share(layer, [1, 3, 5]), plain(layer, [1, 3, 5]))


def test_the_stock_function_still_needs_the_test_bed(layer):
    """Where SGLang has mended it, this file can go."""
    layer.ids[0, 0] = -1
    with pytest.raises(RuntimeError, match="out of bounds"):
        moe_forward_native(
            SimpleNamespace(num_experts=EXPERTS, w13_weight=layer.w13, w2_weight=layer.w2),
            layer.x,
            StandardTopKOutput(layer.weights, layer.ids, None),
            CONFIG,
        )
