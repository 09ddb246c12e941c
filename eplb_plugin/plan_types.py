"""What planning takes and gives. No algorithm here."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .errors import mismatch
from .placement import Placement
from .topology import Topology

Policy = Literal["deepseek", "balanced", "affinity"]
Dispatch = Literal["hash", "nearest", "weighted", "cover"]
WEIGHED: tuple[Dispatch, ...] = ("weighted", "cover")  # replicas have shares of their own; in engines, by our tables
Effort = Literal["fast", "thorough"]
PRICES = ("expert_bytes", "link_gbps", "token_bytes", "seconds_per_selection", "window_steps", "horizon_steps")


@dataclass(frozen=True)
class PlanOptions:
    """How to plan, and what moves cost.

    effort: how long policy affinity searches; fast finds most of the gain in a fraction of the time.
    balance_tolerance: share by which a node's planned load may exceed the mean (affinity policy).
    ingress_tolerance: share by which the copies that arrive at a node from others may exceed the mean before every
        further one has a price (affinity policy, solved afresh); 1.0 = they may arrive anywhere.
    max_moved_slots: slots per layer that may get another expert when `previous` is given; None = no bound.
    max_moved_slots_total: likewise, of all layers together.

    The price of a move (planning/price.py): without them every move is made. Given, they must be complete:
    expert_bytes: weights of one expert in one layer.
    link_gbps: Gbit/s of a rank's link to other nodes; of a network card that several ranks share, the rank's share.
    token_bytes: of one copy of a token sent to another node, there and back.
    seconds_per_selection: that a rank needs to compute one (token, expert) selection in one layer.
    window_steps: forward steps that the statistics were counted over.
    horizon_steps: steps until the next rebalance; neither = they are equally many.
    load_error: relative error of an expert's load as a forecast of the next window, as `forecast_error` measures it.

    peo_rounds: rounds of per-expert overlap that the slots of a rank are ordered for; None = in any order.
    exact: arrange replicas for `exact`, from loads of single steps (`RoutingStatistics.steps`).
    """

    effort: Effort = "thorough"
    balance_tolerance: float = 0.02
    ingress_tolerance: float = 0.02
    max_moved_slots: int | None = None
    max_moved_slots_total: int | None = None
    expert_bytes: float | None = None
    link_gbps: float | None = None
    token_bytes: float | None = None
    seconds_per_selection: float | None = None
    window_steps: float | None = None
    horizon_steps: float | None = None
    load_error: float = 0.15
    peo_rounds: int | None = None
    exact: bool = False

    def __post_init__(self) -> None:
        if self.effort not in get_args(Effort):
            raise mismatch("effort", found=repr(self.effort), expected="fast or thorough", fix="name one of them")
        for name in ("balance_tolerance", "ingress_tolerance"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise mismatch(name, found=getattr(self, name), expected="0.0..1.0", fix="pass a value from 0 to 1")
        for name in ("max_moved_slots", "max_moved_slots_total"):
            bound = getattr(self, name)
            if bound is not None and (isinstance(bound, bool) or not isinstance(bound, (int, np.integer)) or bound < 0):
                fix = "pass a whole number, or None for no bound"
                raise mismatch(name, found=repr(bound), expected="a whole number >= 0, or None", fix=fix)
        self._check_prices()

    @property
    def is_bounded(self) -> bool:
        """Whether the number of moved slots is."""
        return self.max_moved_slots is not None or self.max_moved_slots_total is not None

    @property
    def is_priced(self) -> bool:
        """Whether a layer moves only if that saves more time than it costs."""
        return self.expert_bytes is not None

    def _check_prices(self) -> None:
        given = {name: getattr(self, name) for name in PRICES if getattr(self, name) is not None}
        for name, value in {**given, "load_error": self.load_error}.items():
            positive = name in ("link_gbps", "window_steps", "horizon_steps")
            if not (0.0 <= value < float("inf")) or (positive and value == 0.0):
                raise mismatch(name, found=value, expected="> 0" if positive else ">= 0", fix="pass a finite number")
        complete = {"expert_bytes", "link_gbps"} <= set(given) and {"token_bytes", "seconds_per_selection"} & set(given)
        if given and (not complete or ("window_steps" in given) != ("horizon_steps" in given)):
            raise mismatch(
                "price of a move", found=", ".join(given),
                expected="expert_bytes, link_gbps, token_bytes or seconds_per_selection; both numbers of steps or none",
                fix="pass what is missing, or none of them",
            )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Plan:
    """A placement and how it is meant to be used.

    replica_weights: [L, P] float64, the planned share of its expert's tokens that a slot serves, summed over sources;
        the slots of one expert sum to 1.
    seconds: time the planner took.
    source_weights: [nodes, L, P] float64 for dispatch `weighted`: the share of a source node's tokens of an expert
        that a slot serves; None: `replica_weights`, from everywhere.
    cover_weights: [L, P] int32 >= 1 for dispatch `cover`: in which proportion a token picks among the replicas within
        its reach; None: in proportion to `replica_weights`.
    resolved_layers: layers that were solved afresh, not repaired from the previous placement.
    skipped_layers: layers that keep the previous row because their move would cost more time than it saves.
    less_even: for every reason why layers are planned less even than vanilla's placement is under its hash, by more
        than half a point, one line that says how many, by how much, and why (planning/evenness.py). Empty: none is, or
        nobody compared: servers do not, and a plan arranged for `exact` is for steps.
    """

    placement: Placement
    topology: Topology
    dispatch: Dispatch
    replica_weights: NDArray[np.float64]
    seconds: float
    source_weights: NDArray[np.float64] | None = None
    cover_weights: NDArray[np.int32] | None = None
    resolved_layers: int = 0
    skipped_layers: int = 0
    less_even: tuple[str, ...] = ()

    @property
    def has_weights(self) -> bool:
        """Whether its replicas' shares are its own, not only what the dispatch makes of the placement."""
        return self.source_weights is not None or self.cover_weights is not None

    @cached_property
    def digest(self) -> str:
        """Equal on two ranks only if placement, shares and dispatch are equal bit for bit."""
        state = hashlib.sha256(self.dispatch.encode())
        shares = (self.replica_weights, self.source_weights, self.cover_weights)
        for array in (self.placement.phy2log, self.placement.layer_ids, *shares):
            state.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
        return state.hexdigest()[:16]


def placement_of(previous: Plan | Placement) -> Placement:
    """Of what plans may start from."""
    return previous.placement if isinstance(previous, Plan) else previous
