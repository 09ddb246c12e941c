"""What is measured: deployments, and the loads that every arm gets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from eplb_plugin import RoutingStatistics
from eplb_plugin.plan_types import Dispatch
from eplb_plugin.workloads.routing import ClusteredRouter

REAL_NOISE = 0.15  # sigma of the log-normal noise between the window that is planned on and the next


@dataclass(frozen=True)
class Row:
    """One deployment. drift: 0 = solve from scratch, else sigma of the change since the window of the old placement.

    rule: policy affinity for this dispatch rule, on routed tokens (no peer does that); "" = loads alone.
    windows: the whole of what a server does: a forecast from so many windows, then the plan; 0 = the plan alone.
    """

    name: str
    layers: int
    experts: int
    nodes: int
    ranks: int
    slots_per_rank: int
    groups: int = 1
    imbalance: float = 2.5
    drift: float = 0.0
    kind: str = "full"
    rule: Dispatch | Literal[""] = ""
    windows: int = 0

    @property
    def slots(self) -> int:
        return self.ranks * self.slots_per_rank

    @property
    def title(self) -> str:
        return f"{self.name}, {self.layers} x {self.experts} -> {self.slots}, {self.ranks} ranks, {self.nodes} nodes"

    def tokens(self) -> NDArray[np.int16]:
        """[L, 8192, 8] tokens of clustered routing; a server's sample has so many rows."""
        return ClusteredRouter(self.layers, self.experts, 8, strength=1.5).window(8192)

    def first_load(self) -> NDArray[np.float64]:
        """[L, E] log-normal loads whose max / mean is `imbalance` in every layer."""
        raw = np.random.default_rng(1).normal(size=(self.layers, self.experts))
        low, high = np.zeros((self.layers, 1)), np.full((self.layers, 1), 8.0)
        for _ in range(50):
            sigma = 0.5 * (low + high)
            load = np.exp(sigma * raw)
            mild = (load.max(1) / load.mean(1))[:, None] < min(self.imbalance, 0.9 * self.experts)
            low, high = np.where(mild, sigma, low), np.where(mild, high, sigma)
        load = np.exp(low * raw)
        return np.rint(load / load.mean(1, keepdims=True) * 10_000)

    def load(self) -> NDArray[np.float64]:
        """[L, E] the window to be planned on."""
        if self.rule:
            return np.stack([np.bincount(rows.ravel(), minlength=self.experts) for rows in self.tokens()]).astype(float)
        return noisy(self.first_load(), self.drift, seed=5) if self.drift else self.first_load()

    def history(self) -> list[RoutingStatistics]:
        """`windows` windows that drift up to the load to be planned on, as a server keeps them: a sample in each, pair
        counts in the newest. Both are of other tokens than the loads, which changes no time.
        """
        of_tokens = RoutingStatistics.from_topk(self.tokens(), self.experts)
        sample, start, end = np.ascontiguousarray(of_tokens.sample), self.first_load(), self.load()
        way = np.linspace(0.0, 1.0, self.windows)[:-1]
        loads = [noisy(start + (end - start) * share, REAL_NOISE, seed) for seed, share in enumerate(way)]
        older = [RoutingStatistics(load, sample=sample) for load in loads]
        return [*older, RoutingStatistics(end, of_tokens.coactivation, sample)]


def noisy(load: NDArray[np.float64], sigma: float, seed: int) -> NDArray[np.float64]:
    return np.rint(load * np.exp(np.random.default_rng(seed).normal(0, sigma, load.shape)))


V3 = Row("DeepSeek-V3", 58, 256, 4, 32, 9, groups=8)
FULL = (
    V3,
    Row("DeepSeek-V3, imbalance 5", 58, 256, 4, 32, 9, groups=8, imbalance=5.0),
    Row("DeepSeek-V3", 58, 256, 8, 64, 5, groups=8),
    Row("DeepSeek-V3", 58, 256, 18, 144, 2, groups=8),
    Row("DeepSeek-V3", 58, 256, 40, 320, 1, groups=8),
    Row("Qwen3-235B", 94, 128, 4, 32, 5),
    Row("Kimi-K2", 60, 384, 4, 32, 13),
    Row("Mixtral", 32, 8, 1, 8, 2),
)
DRIFT = tuple(
    replace(row, name=f"{row.name}, drift {sigma}", drift=sigma, kind="drift")
    for row in FULL
    if row.imbalance == V3.imbalance
    for sigma in (0.15, 0.30)
)
SERVED = tuple(replace(row, name=f"{row.name}, served", windows=8, kind="served") for row in DRIFT[:1])
SCALE = tuple(
    Row("scale", 61, experts, nodes, ranks, slots, kind="scale")
    for experts, nodes, ranks, slots in ((256, 8, 64, 5), (512, 16, 128, 5), (1024, 32, 256, 5), (1024, 64, 512, 3))
)
AFFINITY = tuple(
    Row(f"{rule}", layers, experts, nodes, ranks, slots, kind="affinity", rule=rule)
    for layers, experts, nodes, ranks, slots in (
        (1, 256, 8, 64, 5), (2, 256, 8, 64, 5), (4, 256, 8, 64, 5), (2, 256, 18, 144, 2),
        (1, 512, 16, 128, 5), (1, 1024, 32, 256, 5), (1, 1024, 32, 512, 3),
    )
    for rule in ("weighted", "cover")
)  # fmt: skip


def chosen(quick: bool) -> tuple[Row, ...]:
    if quick:
        return FULL[0], FULL[-1], DRIFT[0], *SERVED, SCALE[0], *AFFINITY[:2]
    return *FULL, *DRIFT, *SERVED, *SCALE, *AFFINITY
