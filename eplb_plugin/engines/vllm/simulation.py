"""A vLLM server loaded with a chosen imbalance: routing made by the workload generator instead of the model.

`VLLM_MOE_ROUTING_SIMULATION_STRATEGY="eplb_plugin:factor=2,ranks=16"` makes vLLM's own RoutingSimulator ask this file.
The strategy is not told which layer it routes, so that all layers have one distribution; a token's experts differ from
layer to layer. The model's output is not valid, as vLLM says itself. Works with and without EPLB, in every arm.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from vllm.model_executor.layers.fused_moe.router.routing_simulator_router import RoutingSimulator, RoutingStrategy

from ...errors import mismatch
from ...workloads.families import checked_family
from ...workloads.imbalance import fitted_router, loads_at, reachable_factor
from ...workloads.routing import ClusteredRouter
from ..settings import SIMULATION

TOKENS = 8192  # routed once at the start, and then in turn
ORDERS = 64


@dataclass(frozen=True)
class Workload:
    """factor: max / mean selections over `ranks`, with experts on ranks in order of ids and none redundant.
    topics, strength, purity: how experts are used together, as in `eplb-plugin workload make`.
    """

    factor: float
    ranks: int
    family: str = "lognormal"
    topics: int = 24
    strength: float = 1.5
    purity: float = 0.0
    seed: int = 0

    @classmethod
    def parse(cls, text: str) -> Workload:
        """From `factor=2,ranks=16,…`. Raises PluginError for anything else."""
        kinds = {field.name: {"float": float, "int": int, "str": str}[str(field.type)] for field in fields(cls)}
        expected = f"eplb_plugin:factor=2,ranks=16; more keys: {', '.join([*kinds][2:])}"
        given: dict[str, float | int | str] = {}
        for part in text.split(","):
            name, _, value = part.partition("=")
            try:
                given[name] = kinds[name](value)
            except (KeyError, ValueError):
                raise mismatch(SIMULATION, found=part, expected=expected, fix="correct that part") from None
        if not {"factor", "ranks"} <= set(given):
            raise mismatch(SIMULATION, found=text, expected=expected, fix="give factor and ranks")
        made = cls(**given)  # type: ignore[arg-type]  # by name, of the kinds of the fields
        checked_family(made.family)
        return made

    def window(self, experts: int, top_k: int) -> np.ndarray[tuple[int, int], np.dtype[np.int16]]:
        """[TOKENS, k] logical ids. Raises PluginError if the experts cannot have the factor on these ranks."""
        family = checked_family(self.family)
        # which experts lie together on a rank limits the factor: the first order from `seed` on that can have it
        orders = range(self.seed, self.seed + ORDERS)
        reaches = (one for one in orders if reachable_factor(family, experts, self.ranks, top_k, 1, one) >= self.factor)
        target = loads_at(self.factor, family, experts, self.ranks, top_k, 1, next(reaches, self.seed))
        router = ClusteredRouter(
            1, experts, top_k, self.topics, self.strength, 0.0, self.purity, model_seed=self.seed
        )  # fmt: skip
        return fitted_router(router, target.shares, TOKENS).window(TOKENS)[0]


class ImbalancedRouting(RoutingStrategy):  # type: ignore[misc]  # not typed for mypy
    """Deals out the rows of one window in turn.

    Ranks that route the same tokens make the same calls and so deal the same rows. The place in the window lives on the
    device and moves there, so that a captured graph goes on dealing.
    """

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self._dealt: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def route_tokens(
        self,
        hidden_states: torch.Tensor,
        router_logits: torch.Tensor,
        top_k: int,
        indices_type: torch.dtype | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """hidden_states: [T, hidden], router_logits: [T, E] -> weights [T, k] float32, all 1 / k, and ids [T, k]."""
        rows, place = self._window(router_logits.shape[-1], top_k, hidden_states.device)
        tokens = len(hidden_states)
        ids = rows[(place + torch.arange(tokens, device=rows.device)) % TOKENS]
        place.add_(tokens).remainder_(TOKENS)
        weights = torch.full((tokens, top_k), 1.0 / top_k, dtype=torch.float32, device=rows.device)
        return weights, ids.to(indices_type or torch.long)

    def _window(self, experts: int, top_k: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Made at the first call, which is the engine's profile run: before graphs are captured."""
        if (experts, top_k) not in self._dealt:
            rows = torch.from_numpy(self.workload.window(experts, top_k).astype(np.int64)).to(device)
            self._dealt[experts, top_k] = rows, torch.zeros((), dtype=torch.int64, device=device)
        return self._dealt[experts, top_k]


def register_simulation(name: str) -> None:
    """Let vLLM know the strategy `eplb_plugin:…` that its environment asks for. Raises PluginError for a bad one."""
    RoutingSimulator.register_strategy(name, ImbalancedRouting(Workload.parse(name.partition(":")[2])))
