"""The case space that planning is tried on, enumerated: shapes of real deployments, and shapes that break code."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from eplb_plugin import RoutingStatistics, Topology
from eplb_plugin.workloads.routing import ClusteredRouter

POLICIES = ("deepseek", "balanced", "affinity")
RULES = ("hash", "nearest", "weighted", "cover")


@dataclass(frozen=True)
class Shape:
    """One deployment: a router and the slots its experts go to."""

    name: str
    experts: int
    top_k: int
    nodes: int
    ranks_per_node: int
    slots_per_rank: int
    groups: int = 1

    def __str__(self) -> str:
        return self.name

    @property
    def topology(self) -> Topology:
        return Topology(self.nodes, self.ranks_per_node, self.slots_per_rank)

    def tokens(self, layers: int = 2, count: int = 512, seed: int = 0) -> NDArray[np.int16]:
        top_groups = max(self.groups // 2, 1)
        router = ClusteredRouter(
            layers, self.experts, self.top_k, num_topics=8, num_groups=self.groups, top_groups=top_groups
        )
        return router.window(count, seed)

    def statistics(self, layers: int = 2, count: int = 512, seed: int = 0) -> RoutingStatistics:
        return RoutingStatistics.from_topk(self.tokens(layers, count, seed), self.experts)


SHAPES = (
    Shape("demo: 2 ranks, 2 nodes", 32, 4, 2, 1, 18),
    Shape("demo: 4 ranks, 4 nodes", 32, 4, 4, 1, 9),
    Shape("Qwen3-30B, EP32", 128, 8, 4, 8, 5),
    Shape("DeepSeek-V3, EP32", 256, 8, 4, 8, 9, groups=8),
    Shape("DeepSeek-V3, EP64: as many nodes as groups", 256, 8, 8, 8, 5, groups=8),
    Shape("nodes do not divide experts", 64, 6, 6, 2, 6),
    Shape("18 nodes, two slots per rank", 64, 6, 18, 2, 2),
    Shape("40 nodes of one rank", 96, 6, 40, 1, 3),
    Shape("more nodes than groups", 64, 4, 8, 2, 5, groups=4),
    Shape("no redundant slot", 64, 4, 4, 4, 4),
    Shape("one slot per rank", 32, 4, 5, 8, 1),
    Shape("one node", 32, 4, 1, 8, 5),
    Shape("one rank", 16, 2, 1, 1, 20),
    Shape("more slots on a rank than experts", 4, 2, 2, 2, 6),
    Shape("every expert on every rank", 8, 2, 2, 4, 8),
)


def solves(shapes: tuple[Shape, ...] = SHAPES) -> list[tuple[Shape, str, str]]:
    """Every shape × policy × dispatch rule."""
    return list(product(shapes, POLICIES, RULES))


def vllm_result(qps: float = 4.0, concurrency: int = 8, **changed: object) -> dict[str, object]:
    """What `vllm bench serve --save-result` writes, less the figures that nobody reads; slower as `qps` falls."""
    return {
        "date": "20260101-000000", "endpoint_type": "vllm", "backend": "vllm", "label": None, "model_id": "m",
        "tokenizer_id": "m", "num_prompts": 64, "request_rate": "inf", "burstiness": 1.0,
        "max_concurrency": concurrency, "duration": 64 / qps, "completed": 64, "failed": 0, "total_input_tokens": 4096,
        "total_output_tokens": 2048, "request_throughput": qps, "output_throughput": 32 * qps,
        "median_ttft_ms": 400 / qps, "p50_ttft_ms": 400 / qps, "p90_tpot_ms": 80 / qps, "p95_itl_ms": 120 / qps,
        **changed,
    }  # fmt: skip


def sglang_result(qps: float = 4.0, concurrency: int = 8, **changed: object) -> dict[str, object]:
    """What `sglang.bench_serving` appends to its output file, less the figures that nobody reads."""
    return {
        "tag": None, "backend": "sglang", "dataset_name": "random", "request_rate": "inf",
        "max_concurrency": concurrency, "sharegpt_output_len": None, "random_input_len": 64, "random_output_len": 32,
        "random_range_ratio": 1.0, "server_info": {"model_path": "m", "enable_eplb": False}, "duration": 64 / qps,
        "completed": 64, "total_input_tokens": 4096, "total_output_tokens": 2048, "request_throughput": qps,
        "median_ttft_ms": 400 / qps, "p90_tpot_ms": 80 / qps, "p95_itl_ms": 120 / qps, **changed,
    }  # fmt: skip
