"""What is compared: each arm is a server and, where one running server serves several arms, a placement on it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eplb_plugin.bench.engine import Eplb
from eplb_plugin.bench.vllm import VLLM

# Rebalances on a server of placements come this often, so that an order does not wait long; each but the ordered ones
# changes nothing.
_ORDER_STEPS = 48

_NUM_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")  # in config.json; transformers 5 writes the 2nd


@dataclass(frozen=True)
class Layout:
    """Nodes and the expert-parallel ranks on each, as written in `--network 4x1`."""

    nodes: int
    ranks_per_node: int

    @classmethod
    def of(cls, text: str) -> Layout:
        """Raises ValueError."""
        nodes, _, ranks = text.partition("x")
        if not (nodes.isdecimal() and ranks.isdecimal() and int(nodes) and int(ranks)):
            raise ValueError(f"found {text!r}, expected NODESxRANKS, e.g. 4x1")
        return cls(int(nodes), int(ranks))

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def settings(self) -> dict[str, Any]:
        """The plugin's settings that say so."""
        return {"topology": {"nodes": self.nodes, "ranks_per_node": self.ranks_per_node}}

    def redundant_experts(self, model: Path, share: float) -> int:
        """The fewest that are at least `share` of the model's experts and fill all ranks equally."""
        config = json.loads((model / "config.json").read_text())
        experts = int(next(config[name] for name in _NUM_EXPERTS if name in config))
        slots = -(-experts * (1 + share) // self.ranks)
        return int(slots) * self.ranks - experts


@dataclass(frozen=True)
class ServerKind:
    """How a server is started. eplb: the engine's own, on or off, background or not; settings: the plugin's, or None;
    takes_orders: placements are the benchmark's to choose."""

    name: str
    eplb: bool = True
    use_async: bool = True
    settings: tuple[tuple[str, Any], ...] | None = None
    takes_orders: bool = False

    def arguments(self, eplb: Eplb, config: Path) -> list[str]:
        """eplb: of the arms that rebalance; config: where the plugin's settings have been written."""
        if not self.eplb:
            return VLLM.node_arguments()
        if self.takes_orders:
            eplb = Eplb(eplb.redundant_experts, _ORDER_STEPS, _ORDER_STEPS, use_async=False)
        else:
            eplb = Eplb(eplb.redundant_experts, eplb.window_size, eplb.step_interval, self.use_async)
        words = VLLM.node_arguments(eplb)
        return words if self.settings is None else words + VLLM.plugin_arguments(config)


@dataclass(frozen=True)
class Arm:
    """placement: policy and dispatch ordered before each of its rounds, on a server that takes orders."""

    name: str
    server: ServerKind
    placement: tuple[str, str] | None = None


_PLACED = ServerKind("placed", settings=(("dispatch", "weighted"), ("resplit_windows", 0)), takes_orders=True)


def _plugin(name: str, **settings: str) -> Arm:
    return Arm(name, ServerKind(name, settings=tuple(settings.items())))


# Arms named placed-* are placements on one running server, planned by that arm's planner from the same earlier
# traffic: what a placement is worth, without what differs between servers. The others are whole products that
# rebalance while they serve, each on a server of its own: what moving costs is in their figures.
ARMS: Mapping[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("none", ServerKind("none", eplb=False)),
        Arm("vanilla", ServerKind("vanilla")),
        Arm("vanilla-sync", ServerKind("vanilla-sync", use_async=False)),
        _plugin("balanced", policy="balanced"),
        _plugin("affinity-hash", policy="affinity", dispatch="hash"),
        _plugin("affinity-weighted", policy="affinity", dispatch="weighted"),
        _plugin("affinity-cover", policy="affinity", dispatch="cover"),
        Arm("placed-engine", _PLACED, ("engine", "hash")),
        Arm("placed-vanilla", _PLACED, ("deepseek", "hash")),
        Arm("placed-balanced", _PLACED, ("balanced", "hash")),
        Arm("placed-affinity-hash", _PLACED, ("affinity", "hash")),
        Arm("placed-affinity-weighted", _PLACED, ("affinity", "weighted")),
        Arm("placed-affinity-cover", _PLACED, ("affinity", "cover")),
    )
}
