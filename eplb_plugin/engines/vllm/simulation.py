"""A vLLM server loaded with a chosen imbalance, or with recorded tokens, instead of what its model routes.

`VLLM_MOE_ROUTING_SIMULATION_STRATEGY="eplb_plugin:factor=2,ranks=16"` or `"eplb_plugin:trace=FILE"` makes vLLM's own
RoutingSimulator ask this file. It does not tell a strategy which layer it routes: made-up layers all have one
distribution, and a token's experts differ from layer to layer; recorded ones are told apart by a hook on their routers.
The model's output is not valid, as vLLM says itself. Works with and without EPLB, in every arm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from vllm.distributed.parallel_state import get_dp_group
from vllm.model_executor.layers.fused_moe.router.routing_simulator_router import RoutingSimulator, RoutingStrategy

from ...errors import mismatch
from ...workloads.families import checked_family
from ...workloads.imbalance import fitted_router, loads_at, reachable_factor
from ...workloads.routing import ClusteredRouter
from .. import hooks
from ..hooks import Hook
from ..replay import Recorded, Replay
from ..settings import SIMULATION, named_values

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
        given = named_values(text, kinds, SIMULATION, expected)
        if not {"factor", "ranks"} <= set(given):
            raise mismatch(SIMULATION, found=text, expected=expected, fix="give factor and ranks")
        made = cls(**given)
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
        return _even_weights(ids), ids.to(indices_type or torch.long)

    def _window(self, experts: int, top_k: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Made at the first call, which is the engine's profile run: before graphs are captured."""
        if (experts, top_k) not in self._dealt:
            rows = torch.from_numpy(self.workload.window(experts, top_k).astype(np.int64)).to(device)
            self._dealt[experts, top_k] = rows, torch.zeros((), dtype=torch.int64, device=device)
        return self._dealt[experts, top_k]


class ReplayedRouting(RoutingStrategy):  # type: ignore[misc]  # not typed for mypy
    """Deals out recorded rows. Data-parallel ranks, whose tokens are others, begin at different places."""

    def __init__(self, recorded: Recorded) -> None:
        self.recorded = recorded
        self.router: object = None  # that asks
        self._replay: Replay | None = None

    def route_tokens(
        self,
        hidden_states: torch.Tensor,
        router_logits: torch.Tensor,
        top_k: int,
        indices_type: torch.dtype | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As ImbalancedRouting."""
        if self._replay is None:  # at the engine's profile run, when its groups are there
            group = get_dp_group()
            self._replay = Replay(self.recorded, group.rank_in_group, group.world_size)
        ids = self._replay.deal(self.router, len(hidden_states), top_k, router_logits.shape[-1], hidden_states.device)
        return _even_weights(ids), ids.to(indices_type or torch.long)


def _even_weights(ids: torch.Tensor) -> torch.Tensor:
    return torch.full(ids.shape, 1.0 / ids.shape[1], dtype=torch.float32, device=ids.device)


_replayed: ReplayedRouting | None = None  # the strategy of this process


def _compute_routing(original: Callable[..., Any], self: Any, *tensors: Any, **named: Any) -> Any:
    if _replayed is not None:
        _replayed.router = self
    return original(self, *tensors, **named)


REPLAY_HOOKS = (
    Hook(
        "vllm.model_executor.layers.fused_moe.router.routing_simulator_router:RoutingSimulatorRouter._compute_routing",
        "around",
        "tells a replay of recorded tokens which router asks, since every layer has recorded rows of its own",
        "(self, hidden_states, router_logits, indices_type, *, input_ids=None)",
        _compute_routing,
        older=("(self, hidden_states, router_logits, indices_type)",),
    ),
)


def register_simulation(name: str) -> None:
    """Let vLLM know the strategy `eplb_plugin:…` that its environment asks for. Raises PluginError for a bad one."""
    global _replayed
    words = name.partition(":")[2]
    if not words.startswith("trace="):
        RoutingSimulator.register_strategy(name, ImbalancedRouting(Workload.parse(words)))
        return
    _replayed = ReplayedRouting(Recorded.parse(words, SIMULATION))
    RoutingSimulator.register_strategy(name, _replayed)
    hooks.apply(REPLAY_HOOKS)
