"""What a rebalance came to, on the planning rank: one line for the log, and the numbers behind it for others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..plan_types import Plan
from ..planning.score import balancedness, expected_rank_load, judge, layer_balancedness, moved_slots
from ..statistics import RoutingStatistics
from .drift import Shortfall
from .stage_timer import Stage

Result = Literal["accepted", "refused", "skipped", "interrupted", "stalled"]
Change = Literal["rebalance", "re-split"]
WORTH = 0.001  # balancedness, or copies per token, below which new shares are no gain


@dataclass(frozen=True)
class Assessment:
    """Before and after, in-sample: what the plan is expected to do on the window that it was made for.

    copies: cross-node copies per token; None on one node, or without a sample of tokens. crossing: the share that these
    are of all copies of tokens to nodes, their own included. tokens: None where unknown.
    """

    balancedness: tuple[float, float]
    copies: tuple[float, float] | None
    crossing: tuple[float, float] | None
    moved_slots: int
    slots: int
    skipped_layers: int
    seconds: float
    tokens: int | None

    @property
    def is_gain(self) -> bool:
        """Whether a figure gets better by what is more than nothing."""
        copies = 0.0 if self.copies is None else self.copies[0] - self.copies[1]
        return max(self.balancedness[1] - self.balancedness[0], copies) > WORTH

    def __str__(self) -> str:
        text = "planned balancedness {:.3f} -> {:.3f}".format(*self.balancedness)
        if self.copies is not None:
            text += ", cross-node copies/token {:.3f} -> {:.3f}".format(*self.copies)
        text += f", {self.moved_slots} of {self.slots} slots move"
        if self.skipped_layers:
            text += f" (layers that stay because their move would not pay: {self.skipped_layers})"
        text += f", planned in {self.seconds * 1e3:.1f} ms"
        return text if self.tokens is None else f"{text} from {self.tokens} tokens"


@dataclass(frozen=True, eq=False)
class Served:
    """How the placement in force served the window that has just ended, which it was not planned on.

    rank_load: [L, ranks] selections; layer_ids: [L] decoder-layer numbers. per_rank: the settings ask for every one.
    left_out: share of the window's rows that named an expert twice. per_step: balancedness of single steps by what
    chooses replicas, tables or exact; of those that are known.
    """

    rank_load: NDArray[np.float64]
    layer_ids: NDArray[np.int32]
    per_rank: bool
    left_out: float = 0.0
    per_step: Mapping[str, float] = field(default_factory=dict)

    @property
    def balancedness(self) -> NDArray[np.float64]:
        """[L] mean / max over ranks."""
        return layer_balancedness(self.rank_load)


@dataclass(frozen=True)
class Outcome:
    """result: skipped = no token was routed in the window; interrupted = an accepted plan was not, or only in some
    layers, put in force; stalled = a stage does not end, and what becomes of the rebalance is not known. assessment:
    None if nothing was planned. seconds: of the stages that ended since the last outcome. expert_bytes: weights of one
    expert in one layer, 0 where unknown. change: re-split = new shares, every expert stays. shortfall: of the windows
    because of which the next rebalance begins early.
    """

    model: str
    result: Result
    assessment: Assessment | None = None
    served: Served | None = None
    seconds: Mapping[Stage, float] = field(default_factory=dict)
    expert_bytes: int = 0
    change: Change = "rebalance"
    shortfall: Shortfall | None = None


def assess(statistics: RoutingStatistics, before: Plan, made: Plan) -> Assessment:
    """before: the plan in force, of the same topology; statistics: those that `made` was made from."""
    balance = [balancedness(expected_rank_load(statistics.load, one)) for one in (before, made)]
    copies = crossing = None
    rows = statistics.sample
    if rows is not None and made.topology.num_nodes > 1:
        sources = np.arange(rows.shape[1]) % made.topology.num_ranks
        old, new = (judge(rows, sources, one) for one in (before, made))
        copies = old.cross_node_copies, new.cross_node_copies
        crossing = copies[0] / max(old.node_fan_out, 1e-9), copies[1] / max(new.node_fan_out, 1e-9)
    return Assessment(
        balancedness=(balance[0], balance[1]),
        copies=copies,
        crossing=crossing,
        moved_slots=int(moved_slots(made.placement, before.placement, made.topology).sum()),
        slots=made.placement.phy2log.size,
        skipped_layers=made.skipped_layers,
        seconds=made.seconds,
        # the engine's load counts, which a draft is planned by, do not say how many tokens they are of
        tokens=None if rows is None else int(statistics.num_tokens.max()),
    )
