"""GPUs with their links, and the models' shapes, from public sources. What nobody publishes is marked as an assumption.

Speeds of the GPUs, of a rank's RDMA link and its latency: eplb_plugin/peo/presets.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from eplb_plugin.errors import mismatch
from eplb_plugin.peo.presets import HARDWARE, MODELS, Hardware, Model


@dataclass(frozen=True)
class Cluster:
    """gpu: one rank, with its own RDMA card; nvlink_gbs: reachable GB/s of its NVLink, each way."""

    gpu: Hardware
    nvlink_gbs: float


# H800: DeepEP's docs/legacy.md, normal kernels within a node (153 dispatch, 158 combine). The others' data sheets say
# 900 GB/s both ways where H800 has 400; that the same share of it is reached is an assumption.
_REACHED = 155.0 / 200.0
CLUSTERS = {
    "H800": Cluster(HARDWARE["H800"], 155.0),
    **{name: Cluster(HARDWARE[name], 450.0 * _REACHED) for name in ("H20", "H100", "H200")},
}


@dataclass(frozen=True)
class Shape:
    """layers: those with experts; groups, top_groups: of group-limited routing, 1 = none."""

    model: Model
    layers: int
    groups: int = 1
    top_groups: int = 1


# config.json on huggingface.co: num_hidden_layers less first_k_dense_replace, n_group, topk_group
SHAPES = {
    "deepseek-v3": Shape(MODELS["deepseek-v3"], 61 - 3, 8, 4),
    "kimi-k2": Shape(MODELS["kimi-k2"], 61 - 1),
    "qwen3-235b": Shape(MODELS["qwen3-235b"], 94),
    "glm-4.5": Shape(MODELS["glm-4.5"], 92 - 3),
}


def redundant_experts(shape: Shape, ranks: int) -> int:
    """The fewest that are an eighth of the experts or more and fill all ranks equally."""
    if ranks < 1:
        raise mismatch("--ranks", found=ranks, expected=">= 1", fix="count the GPUs")
    experts = shape.model.num_experts
    slots = -(-(experts + experts // 8) // ranks)
    return slots * ranks - experts
