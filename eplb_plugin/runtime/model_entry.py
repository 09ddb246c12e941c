"""What the Rebalancer knows of one model."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..deployment import Deployment, Phase
from ..placement import Placement
from ..plan_types import Dispatch, Plan, Policy
from ..planning.planner import plan_of
from ..recording.recorder import Recorder
from ..topology import Topology
from .drift import Drift
from .stage_timer import StageTimer
from .warm_up import Planned
from .window_history import WindowHistory


@dataclass
class ModelEntry:
    """One model that a server balances.

    dispatch: how the engine chooses a replica.
    recorder: None for a draft model, which is planned by the engine's own load counts.
    owner_group_size: consecutive ranks that route the same token.
    expert_bytes: weights of one expert in one layer.
    window_steps: engine steps that are recorded before each rebalance; matters where moves have a price.
    step_interval: engine steps between two rebalances; likewise.
    drift: judges, on the planning rank, windows between rebalances.
    plan: the one that was agreed on last.
    table_bytes: of the dispatch's tables, per rank.
    engine, phase: for the files that are kept.
    first: the placement that the first rebalance moves to.
    """

    name: str
    topology: Topology
    policy: Policy
    dispatch: Dispatch
    num_experts: int
    num_groups: int
    layer_ids: list[int]
    recorder: Recorder | None = None
    owner_group_size: int = 1
    expert_bytes: int = 0
    window_steps: int = 1
    step_interval: int = 1
    history: WindowHistory = field(default_factory=lambda: WindowHistory(1))
    drift: Drift = field(default_factory=lambda: Drift(1.0, 1))
    plan: Plan | None = None
    rebalances: int = 0
    table_bytes: int = 0
    engine: str = ""
    phase: Phase = "mixed"
    first: Placement | None = None
    stages: StageTimer = field(default_factory=StageTimer)

    @property
    def deployment(self) -> Deployment:
        layers = tuple(self.layer_ids)
        return Deployment(self.name, self.engine, self.phase, self.topology, self.num_experts, layers)

    @property
    def planned(self) -> Planned:
        top_k = 0 if self.recorder is None else self.recorder.sample.shape[2]
        return Planned(self.topology, self.policy, self.dispatch, self.num_experts, self.num_groups, top_k)

    def in_force(self, placed: Placement) -> Plan:
        """The plan that was agreed on last, if that is how the experts lie; else their placement, used evenly."""
        if self.plan is not None and np.array_equal(self.plan.placement.phy2log, placed.phy2log):
            return self.plan
        return plan_of(placed, self.topology, self.dispatch)

    def introduction(self, planner_seconds: float) -> str:
        """One line for the log: what will be planned, for which layout."""
        topology, recorder = self.topology, self.recorder
        return (
            f"{self.name}: {len(self.layer_ids)} MoE layers, {self.num_experts} experts in {topology.num_slots} slots "
            f"on {topology.num_nodes} nodes x {topology.ranks_per_node} ranks, policy {self.policy}, dispatch "
            f"{self.dispatch}, token-owner groups of {self.owner_group_size}, "
            f"{(recorder.nbytes() if recorder else 0) / 2**20:.1f} MiB of recording buffers and "
            f"{self.table_bytes / 2**20:.1f} MiB of tables per rank, "
            f"planner ready in {planner_seconds:.1f} s"
        )
