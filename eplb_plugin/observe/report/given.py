"""What a report is made of, and the placements in it as plans that can be judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ...errors import mismatch
from ...placement import Placement, linear_placement
from ...plan_types import Dispatch, Plan
from ...planning.planner import plan_of
from ...statistics import RoutingStatistics
from ...topology import Topology
from ..advice_file import Advice
from ..bench_results import Run
from ..demo_results import DemoResults
from ..gantt import SimulatedLayer
from ..paired_file import PairedRounds
from ..rebalance_log import Rebalance

BEFORE = "engine's start"


class View(NamedTuple):
    """What placements are shown on.

    nodes, ranks_per_node: the deployment
    dispatch: rule by which tokens choose replicas
    layer: decoder-layer number whose co-activation is drawn; None: the one least balanced at the engine's start
    """

    nodes: int = 1
    ranks_per_node: int = 1
    dispatch: Dispatch = "weighted"
    layer: int | None = None


ONE_RANK = View()


@dataclass(frozen=True)
class Given:
    """All of it optional.

    windows, placements: by name, oldest first; headers: of the windows' files. arms: runs of load generators; rounds:
    of a benchmark in paired rounds. rebalances: by model, in the order of the log.
    """

    windows: Mapping[str, RoutingStatistics] = field(default_factory=dict)
    placements: Mapping[str, Placement] = field(default_factory=dict)
    view: View = ONE_RANK
    headers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    arms: Mapping[str, Sequence[Run]] = field(default_factory=dict)
    rounds: PairedRounds | None = None
    demo: DemoResults | None = None
    rebalances: Mapping[str, Sequence[Rebalance]] = field(default_factory=dict)
    advice: Advice | None = None
    simulated: Sequence[SimulatedLayer] = ()


@dataclass(frozen=True)
class Placed:
    """Windows with the placements that are shown on them: the engine's start first, then those given."""

    windows: Mapping[str, RoutingStatistics]
    plans: Mapping[str, Plan]

    @property
    def newest(self) -> RoutingStatistics:
        return list(self.windows.values())[-1]

    @property
    def newest_name(self) -> str:
        return list(self.windows)[-1]

    @property
    def ends(self) -> dict[str, Plan]:
        """The engine's start and the newest placement."""
        return {label: self.plans[label] for label in dict.fromkeys([BEFORE, list(self.plans)[-1]])}


def placed(given: Given) -> Placed | None:
    """None without windows. Raises PluginError if files are of different models, or not of this deployment."""
    if not given.windows:
        if given.placements:
            fix = "pass --trace too"
            raise mismatch("report", found="placements alone", expected="a recorded window", fix=fix)
        return None
    view, newest = given.view, list(given.windows.values())[-1]
    ranks = view.nodes * view.ranks_per_node
    least = -(-newest.num_experts // max(ranks, 1)) * ranks
    slots = next((one.num_slots for one in given.placements.values()), least)
    _refuse_other_models(given, newest, slots)
    if ranks < 1 or slots % ranks:
        fix = "pass --nodes and --ranks-per-node of the placement"
        raise mismatch("topology", found=f"{ranks} ranks", expected=f"a divisor of {slots} slots", fix=fix)
    topology = Topology(view.nodes, view.ranks_per_node, slots // ranks)
    start = linear_placement(newest.num_layers, newest.num_experts, slots, newest.layer_ids)
    plans = {BEFORE: plan_of(start, topology, view.dispatch)}
    for name, placement in given.placements.items():
        plans[name if name != BEFORE else f"{name} (file)"] = plan_of(placement, topology, view.dispatch)
    return Placed(given.windows, plans)


def _refuse_other_models(given: Given, newest: RoutingStatistics, slots: int) -> None:
    expected = f"{newest.num_experts} experts in layers {newest.layer_ids.tolist()}"
    files: list[tuple[str, RoutingStatistics | Placement]] = [*given.windows.items(), *given.placements.items()]
    for name, one in files:
        found = f"{one.num_experts} experts in layers {one.layer_ids.tolist()}"
        if found != expected:
            raise mismatch(name, found=found, expected=expected, fix="pass files of one model")
    for name, placement in given.placements.items():
        if placement.num_slots != slots:
            found = f"{placement.num_slots} slots"
            fix = "pass placements of one EP group"
            raise mismatch(name, found=found, expected=f"{slots} as in the first placement", fix=fix)
