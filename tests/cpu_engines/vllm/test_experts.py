"""The local experts' share of an MoE layer against plain matrix products."""

from types import SimpleNamespace

import pytest
import torch
from eplb_cpu_engines.vllm.experts import apply_local, local_pairs
from vllm._custom_ops import cpu_prepack_moe_weight
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
from vllm.platforms import current_platform

pytestmark = pytest.mark.skipif(not current_platform.is_cpu(), reason="needs vLLM's CPU kernels")
EXPERTS, HIDDEN, INTERMEDIATE, TOKENS, K = 8, 64, 32, 17, 3
STOCK = SimpleNamespace(_use_zentorch=False, isa=CPUUnquantizedExperts.isa, w1_bias=None, w2_bias=None)


@pytest.fixture(scope="module", autouse=True)
def _kernels():
    current_platform.import_kernels()


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return SimpleNamespace(
        x=torch.randn(TOKENS, HIDDEN),
        w1=torch.randn(EXPERTS, 2 * INTERMEDIATE, HIDDEN) / HIDDEN**0.5,
        w2=torch.randn(EXPERTS, HIDDEN, INTERMEDIATE) / INTERMEDIATE**0.5,
        weights=torch.rand(TOKENS, K),
        ids=torch.stack([torch.randperm(EXPERTS)[:K] for _ in range(TOKENS)]).int(),
    )


def share(layer, rows: list[int], ids: torch.Tensor) -> torch.Tensor:
    """What the rank that holds the experts `rows` adds to each token, by the code under test."""
    expert_map = torch.full((EXPERTS,), -1, dtype=torch.int32)
    expert_map[rows] = torch.arange(len(rows), dtype=torch.int32)
    output = torch.full_like(layer.x, torch.nan)
    w1, w2 = (cpu_prepack_moe_weight(w[rows].contiguous(), STOCK.isa) for w in (layer.w1, layer.w2))
    apply_local(STOCK, output, layer.x, w1, w2, layer.weights, ids, MoEActivation.SILU, expert_map, False)
    return output


def plain(layer, rows: list[int], ids: torch.Tensor) -> torch.Tensor:
    output = torch.zeros_like(layer.x)
    for token in range(TOKENS):
        for weight, expert in zip(layer.weights[token], ids[token].tolist(), strict=True):
            if expert in rows:
                gate, up = (layer.w1[expert] @ layer.x[token]).chunk(2)
                output[token] += weight * (layer.w2[expert] @ (torch.nn.functional.silu(gate) * up))
    return output


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [7, 2], [5], list(range(EXPERTS))])
def test_only_local_experts_in_any_order(layer, rows):
    torch.testing.assert_close(share(layer, rows, layer.ids), plain(layer, rows, layer.ids))


def test_no_local_expert_gives_zeros(layer):
    ids = layer.ids.clamp(max=3)
    assert not share(layer, [6, 7], ids).any()


def test_absent_choices_are_left_out(layer):
    ids = layer.ids.clone()
    ids[::2, 1] = -1
    torch.testing.assert_close(share(layer, [1, 3, 5], ids), plain(layer, [1, 3, 5], ids))


def test_local_pairs():
    ids = torch.tensor([[2, 0], [-1, 1]], dtype=torch.int32)
    pairs, rows = local_pairs(ids, torch.tensor([5, -1, 3], dtype=torch.int32))
    assert pairs.tolist() == [0, 1]
    assert rows.tolist() == [3, 5]


def test_packing_keeps_experts_apart():
    """EPLB moves rows of packed weights, so an expert's packed row must depend on that expert only."""
    w = torch.randn(EXPERTS, 2 * INTERMEDIATE, HIDDEN)
    packed = cpu_prepack_moe_weight(w.clone(), STOCK.isa)
    assert packed.shape == w.shape
    for expert in range(EXPERTS):
        alone = cpu_prepack_moe_weight(w[expert : expert + 1].contiguous(), STOCK.isa)
        assert torch.equal(packed[expert], alone[0])
