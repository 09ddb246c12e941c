"""A rebalance of all models of an EP group, one after the other: plan, then move the experts, on every rank alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from ..migration.layout import ExpertRows
from ..migration.limits import Budget
from ..migration.shuffle import Shuffler
from ..migration.wires.nixl import Nixl
from ..placement import Placement
from ..plan_types import Plan
from ..planning.planner import plan_of
from .outcome import Outcome
from .rebalancer import Rebalancer

SwitchLayers = Callable[[Sequence[int], Plan], None]
Loads = Mapping[str, NDArray[Any]]  # of entries without a recorder: [L, E]


@dataclass(eq=False)
class _Model:
    """placed: [L, P] the placement in force. plan: the one that it is, or is becoming."""

    placed: NDArray[np.int32]
    switch: SwitchLayers
    plan: Plan
    shuffler: Shuffler
    decided: float = 0.0  # when, by time.perf_counter; 0 = not in this cycle


class Cycle:
    """Either `run`, which returns when all is done, or `begin` and then `step` on every forward step.

    plans: a CPU group for planning, which happens in a background thread; rows may travel on it too and, between
    rebalances, new weights (ResplitLoop), nothing else.
    """

    def __init__(self, rebalancer: Rebalancer, plans: dist.ProcessGroup) -> None:
        self.rebalancer, self._plans = rebalancer, plans
        self._models: dict[str, _Model] = {}
        self._ahead: list[str] = []  # the first is under way
        self._loads: Loads = {}

    def add(
        self,
        key: str,
        layers: Sequence[ExpertRows],
        plan: Plan,
        *,
        data: dist.ProcessGroup | Nixl,
        votes: dist.ProcessGroup,
        switch: SwitchLayers,
    ) -> None:
        """A model that the Rebalancer knows. plan: in force at the start. data, votes: see Shuffler.

        switch(layers, plan): the experts of these layers lie as in `plan`; from now on tokens are sent there by it.
        Raises PluginError if the tensors do not fit the plan's topology.
        """
        budget = Budget(**self.rebalancer.config.migration.model_dump(exclude_none=True))
        shuffler = Shuffler(
            layers, plan.topology, data=data, votes=votes, switch=partial(self._switch, key), budget=budget
        )
        self._models[key] = _Model(plan.placement.phy2log.copy(), switch, plan, shuffler)

    def run(self, loads: Loads) -> None:
        """Collective: all at once, while the engine stands still."""
        self.begin(loads)
        self.finish()

    def begin(self, loads: Loads) -> None:
        """On every rank at the same step, after `step` returned False. Returns at once."""
        self._loads, self._ahead = loads, list(self._models)
        self._start()

    def step(self) -> bool:
        """Collective, once per forward step on every rank, idle or not. Returns whether there is more to do."""
        while self._ahead:
            if self._models[self._ahead[0]].shuffler.step():
                return True
            self._end(self._ahead.pop(0))
            self._start()
        return False

    def settled(self, key: str) -> bool:
        """Whether nothing moves, and this model's experts lie as the plan says that was agreed on last."""
        if self._ahead:
            return False
        plan = self.rebalancer.entries[key].plan
        return plan is not None and np.array_equal(self._models[key].placed, plan.placement.phy2log)

    def finish(self) -> None:
        """Collective: what is under way, to its end, without forward steps in between."""
        while self._ahead:
            self._models[self._ahead[0]].shuffler.finish()
            self._end(self._ahead.pop(0))
            self._start()

    def rebind(self, key: str, layers: Sequence[ExpertRows]) -> None:
        """See Shuffler."""
        self._models[key].shuffler.rebind(layers)

    def _start(self) -> None:
        """The next model. One that lost a rank said so when it did, and is left alone from then on."""
        while self._ahead:
            key = self._ahead[0]
            model = self._models[key]
            if model.shuffler.wires.intact:
                model.shuffler.begin(model.placed, partial(self._decide, key, self._loads))
                return
            self._ahead.pop(0)

    def _decide(self, key: str, loads: Loads) -> NDArray[np.int32]:
        model = self._models[key]
        model.plan = self.rebalancer.decide(key, model.placed, self._plans, loads.get(key))
        model.decided = time.perf_counter()
        return model.plan.placement.phy2log

    def _switch(self, key: str, layers: list[int], rows: NDArray[np.int32]) -> None:
        """Tokens of a layer that has hops before it are spread evenly over the replicas that it has meanwhile."""
        model = self._models[key]
        model.placed[layers] = rows
        arrived = (rows == model.plan.placement.phy2log[layers]).all(axis=1)
        there, on_the_way = (np.array(layers)[chosen].tolist() for chosen in (arrived, ~arrived))
        if there:
            model.switch(there, model.plan)
        if on_the_way:
            placed = Placement(model.placed, model.plan.placement.layer_ids)
            model.switch(on_the_way, plan_of(placed, model.plan.topology, model.plan.dispatch, on_the_way))

    def _end(self, key: str) -> None:
        model = self._models[key]
        if model.decided:
            self.rebalancer.entries[key].stages.note("move", time.perf_counter() - model.decided)
            model.decided = 0.0
        if model.shuffler.refusal and dist.get_rank(self._plans) == 0:
            self.rebalancer.tell(Outcome(self.rebalancer.entries[key].name, "interrupted"))
